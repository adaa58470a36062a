"""Small tokenizers for the tests, made with the `tokenizers` library."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

EOS = "<|end|>"
BOS = "<|begin|>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'forbidden' %}{{ raise_exception('role forbidden') }}{% endif %}"
    "{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def byte_level() -> Tokenizer:
    """256 bytes, some merges, two special tokens and one added word; a prompt begins with BOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: index for index, char in enumerate(alphabet)}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ã", "©"), ("ð", "Ł"), ("Ċ", "Ċ")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOS, BOS])
    tokenizer.add_tokens([AddedToken("tool日", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def byte_fallback(*, strip: bool = True) -> Tokenizer:
    """Like Llama 2's: words with a leading mark, bytes for everything else."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", "▁the", "▁a", "the", "a", "é", "日", "\n", ".", "▁▁"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={word: index for index, word in enumerate(words)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def metaspace() -> Tokenizer:
    """A decoder that is neither: each id's text depends on whether it is the first."""
    words = ["<unk>", "▁the", "▁a", "b", "c", "▁日", "é"]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def save_byte_level(folder: Path, *, chat_template: str | None = TEMPLATE) -> Path:
    """Save `byte_level` as a Hugging Face folder with generation defaults, and return it."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), eos_token=EOS, bos_token=BOS, chat_template=chat_template
    )
    tokenizer.save_pretrained(str(folder))
    eos = tokenizer.convert_tokens_to_ids(EOS)
    (folder / "config.json").write_text(f'{{"model_type": "llama", "eos_token_id": {eos}}}')
    (folder / "generation_config.json").write_text(
        f'{{"eos_token_id": {eos}, "temperature": 0.5, "top_k": 40}}'
    )
    return folder
