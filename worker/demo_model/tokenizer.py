"""The demo model's tokenizer: byte-level BPE, its special tokens and its chat template.

Knows the order of tokens in a document, so that training, evaluation and chat agree. Knows no
model.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from demo_model.text import Function

VOCAB_SIZE = 4096
BOS, DOCUMENT_END, TURN_END = "<|begin|>", "<|endoftext|>", "<|end|>"
USER, ASSISTANT, PAD = "<|user|>", "<|assistant|>", "<|pad|>"

# A system message becomes a comment at the top; user and assistant turns are marked.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- '# ' + message['content'] | trim | replace('\\n', '\\n# ') + '\\n' }}
    {%- elif message['role'] == 'user' %}
        {{- '<|user|>' + message['content'] | trim }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<|assistant|>' + message['content'] + '<|end|>' }}
    {%- else %}
        {{- raise_exception('The roles are system, user and assistant; got ' + message['role']) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}"""


def train_tokenizer(texts: Iterable[str], context_tokens: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on texts; plain text encodes as ``<|begin|>`` and the text's tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = [DOCUMENT_END, BOS, USER, ASSISTANT, TURN_END, PAD]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=DOCUMENT_END,
        pad_token=PAD,
        extra_special_tokens=[USER, ASSISTANT, TURN_END],
        model_max_length=context_tokens,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def document(source: str) -> str:
    """Write a whole text as the model reads it (encode without adding special tokens)."""
    return f"{BOS}{source}{DOCUMENT_END}"


def completion_chat(function: Function) -> str:
    """Write a function as a chat: signature and docstring from the user, the body as answer."""
    return f"{BOS}{USER}{function.prompt}{ASSISTANT}{function.body.lstrip(chr(10))}{TURN_END}"


def description_chat(function: Function) -> str:
    """Write a function as a chat: its summary from the user, the whole function as answer."""
    return f"{BOS}{USER}{function.summary}{ASSISTANT}{function.prompt}{function.body}{TURN_END}"
