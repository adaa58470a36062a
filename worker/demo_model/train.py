"""Train the demo model on the running Python's standard library and save it for Hugging Face.

Run it from the repository root, where ``worker`` is on the path::

    python -m demo_model.train --device cuda

The run is seeded, keeps a checkpoint in ``--run-dir`` (the same command goes on from it) and
exports the model at every checkpoint; a
resumed run begins its next epoch. Nothing here reads the held-out modules; the curve's
validation loss is on modules of their own.
"""

import argparse
import json
import random
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.optim import AdamW, Muon, Optimizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo_model import text
from demo_model.tokenizer import (
    BOS,
    DOCUMENT_END,
    PAD,
    TURN_END,
    completion_chat,
    description_chat,
    document,
    train_tokenizer,
)

MODEL_DIR = Path(__file__).parents[1] / "pagestream" / "worker" / "demo_model"
CONTEXT_TOKENS = 1024
# Attention over the whole context is dear on a CPU and teaches little early on.
SHORT_CONTEXT_TOKENS = 256
SHORT_SHARE = 0.7
WARMUP_SHARE = 0.02
SEED = 0

Tokens = np.ndarray  # [tokens] int32


class Corpus:
    """The training text in tokens, and epochs of it in a seeded order."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, modules: list[text.Module]) -> None:
        train = [m for m in modules if text.part_of(m.name) == "train"]
        functions = [f for m in train for f in text.functions(m)]
        self.library = encode(tokenizer, [document(m.source) for m in train if not m.is_test])
        self.tests = encode(tokenizer, [document(m.source) for m in train if m.is_test])
        self.functions = [
            encode(tokenizer, [document(f.prompt + f.body) for f in functions]),
            encode(tokenizer, [completion_chat(f) for f in functions]),
            encode(tokenizer, [description_chat(f) for f in functions]),
        ]

    def epoch(self, number: int, context_tokens: int) -> torch.Tensor:
        """Give one epoch as rows ``[rows, context_tokens]`` in a seeded order.

        It has the library twice, half of its tests, and each function in one of its formats.
        """
        rng = random.Random(SEED + number)
        documents = self.library + self.library + self.tests[number % 2 :: 2]
        documents += [rng.choice(formats) for formats in zip(*self.functions, strict=True)]
        rng.shuffle(documents)
        tokens = np.concatenate(documents)
        rows = tokens[: len(tokens) // context_tokens * context_tokens].reshape(-1, context_tokens)
        # Shuffled once more: rows of one document in one batch would make its gradient one-sided.
        return torch.from_numpy(rows[np.random.default_rng(SEED + number).permutation(len(rows))])


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[Tokens]:
    """Encode texts whose special tokens are already written in them."""
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [np.asarray(row, dtype=np.int32) for row in rows]


def build_model(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make a model with seeded random weights, and its generation defaults."""
    begin, end, turn_end, pad = (tokenizer.vocab[t] for t in (BOS, DOCUMENT_END, TURN_END, PAD))
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=args.hidden,
            intermediate_size=args.intermediate,
            num_hidden_layers=args.layers,
            num_attention_heads=args.hidden // 64,
            num_key_value_heads=args.hidden // 128,
            max_position_embeddings=CONTEXT_TOKENS,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=begin,
            eos_token_id=[end, turn_end],
            pad_token_id=pad,
        )
    )
    model.generation_config = GenerationConfig(
        bos_token_id=begin,
        eos_token_id=[end, turn_end],
        pad_token_id=pad,
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
    )
    return model.to(args.device)


def build_optimizers(model: LlamaForCausalLM, peak: float) -> list[Optimizer]:
    """Muon for the layers' matrices, AdamW for the tied embedding and the norms."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in named if p.ndim != 2 or "embed" in name]
    return [
        Muon(matrices, lr=peak, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        AdamW(rest, lr=peak, betas=(0.9, 0.95), weight_decay=0.0),
    ]


class Trainer:
    """One run: the model, its optimizers, how far it is, and its curve."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        modules = list(text.modules())
        train = [m.source for m in modules if text.part_of(m.name) == "train" and not m.is_test]
        self.tokenizer = train_tokenizer(train, CONTEXT_TOKENS)
        self.corpus = Corpus(self.tokenizer, modules)
        unseen = [
            document(m.source)
            for m in modules
            if text.part_of(m.name) == "validation" and not m.is_test
        ]
        self.validation = np.concatenate(encode(self.tokenizer, unseen))
        self.model = build_model(args, self.tokenizer)
        self.optimizers = build_optimizers(self.model, args.learning_rate)
        self.loss: Callable[[torch.Tensor], torch.Tensor] = self._loss
        if args.compile:
            self.loss = torch.compile(self._loss, dynamic=False)
        self.tokens = self.steps = self.epoch = 0
        self.seconds = 0.0
        self.curve: list[dict[str, float]] = []

    def _loss(self, rows: torch.Tensor) -> torch.Tensor:
        with torch.autocast(rows.device.type, torch.bfloat16):
            return self.model(input_ids=rows, labels=rows, use_cache=False).loss

    @property
    def progress(self) -> float:
        """How much of the budget is used, of tokens or of minutes, whichever is nearer its end."""
        return max(
            self.tokens / (self.args.million_tokens * 1e6), self.seconds / 60 / self.args.minutes
        )

    def step(self, rows: torch.Tensor) -> float:
        """Learn from rows ``[sequences, tokens]``; gives their mean loss in nats a token."""
        warm = min(1.0, self.progress / WARMUP_SHARE)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.args.learning_rate * warm * max(0.0, 1 - self.progress)
        parts = rows.split(max(1, self.args.micro_tokens // rows.shape[1]))
        total = torch.zeros((), device=rows.device)
        for part in parts:
            loss = self.loss(part) * (len(part) / len(rows))
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return total.item()

    @torch.no_grad()
    def validate(self) -> float:
        """Give the mean loss on the validation modules, in full windows of the context."""
        windows = len(self.validation) // CONTEXT_TOKENS
        rows = torch.from_numpy(self.validation[: windows * CONTEXT_TOKENS]).long()
        losses = [
            self._loss(r).item() for r in rows.view(windows, -1).to(self.args.device).split(1)
        ]
        return sum(losses) / len(losses)

    def run(self) -> None:
        """Train to the end of the budget."""
        saved = time.monotonic()
        began = saved - self.seconds
        while self.progress < 1:
            context = SHORT_CONTEXT_TOKENS if self.progress < SHORT_SHARE else CONTEXT_TOKENS
            batches = self.corpus.epoch(self.epoch, context).split(
                self.args.batch_tokens // context
            )
            self.epoch += 1
            for rows in batches[:-1]:
                loss = self.step(rows.long().to(self.args.device))
                self.steps += 1
                self.tokens += rows.numel()
                self.seconds = time.monotonic() - began
                if self.steps % 50 == 0 or self.progress >= 1:
                    self.report(loss)
                if time.monotonic() - saved > self.args.save_every_minutes * 60:
                    self.save()
                    saved = time.monotonic()
                if self.progress >= (SHORT_SHARE if context == SHORT_CONTEXT_TOKENS else 1):
                    break
        self.save()

    def report(self, loss: float) -> None:
        """Add a point to the curve and print it; the validation loss is on every tenth."""
        point = {
            "step": self.steps,
            "tokens": self.tokens,
            "seconds": round(self.seconds),
            "loss": round(loss, 4),
        }
        if self.steps % 500 == 0 or self.progress >= 1:
            point["validation_loss"] = round(self.validate(), 4)
        self.curve.append(point)
        print(json.dumps(point), flush=True)  # noqa: T201

    def save(self) -> None:
        """Write the checkpoint, the curve and the exported model."""
        self.args.run_dir.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "counters": (self.tokens, self.steps, self.epoch, self.seconds),
            "curve": self.curve,
        }
        temporary = self.args.run_dir / "checkpoint.new"
        torch.save(state, temporary)
        temporary.replace(self.args.run_dir / "checkpoint.pt")
        curve = "".join(json.dumps(point) + "\n" for point in self.curve)
        (self.args.run_dir / "curve.jsonl").write_text(curve)
        command = shlex.join(["python", "-m", "demo_model.train", *sys.argv[1:]])
        (self.args.run_dir / "command.txt").write_text(command)
        export(self.model, self.tokenizer, self.args.run_dir / "model")

    def resume(self) -> None:
        """Go on from the run directory's checkpoint, where there is one."""
        path = self.args.run_dir / "checkpoint.pt"
        if path.exists():
            state = torch.load(path, map_location=self.args.device)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.tokens, self.steps, self.epoch, self.seconds = state["counters"]
            self.curve = state["curve"]


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a bf16 copy of the model and its tokenizer in Hugging Face format."""
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    config = LlamaConfig.from_dict(model.config.to_dict())
    copy = LlamaForCausalLM(config).bfloat16()
    copy.load_state_dict(weights)
    copy.generation_config = model.generation_config
    copy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Read the options and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--run-dir", type=Path, default=Path("build/demo_model"))
    parser.add_argument("--million-tokens", type=float, default=80)
    parser.add_argument("--minutes", type=float, default=60, help="stop by then at the latest")
    parser.add_argument("--hidden", type=int, default=256, help="a multiple of 128")
    parser.add_argument("--intermediate", type=int, default=704)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="the peak")
    parser.add_argument("--batch-tokens", type=int, default=32768)
    parser.add_argument("--micro-tokens", type=int, default=32768, help="held in memory at once")
    parser.add_argument("--save-every-minutes", type=float, default=5)
    parser.add_argument("--compile", action="store_true", help="worth it on a CPU")
    trainer = Trainer(parser.parse_args())
    trainer.resume()
    trainer.run()


if __name__ == "__main__":
    main()
