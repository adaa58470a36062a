"""Measure a trained demo model on the held-out modules, install it and write its model card.

    python -m demo_model.evaluate --run-dir build/demo_model

copies the run's export into the package, with the figures in its README.md. Reads the running
Python's standard library: evaluate with the version that trained.
"""

import argparse
import ast
import json
import platform
import random
import re
import shutil
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from demo_model import text
from demo_model.ngram import ORDER, KneserNey
from demo_model.tokenizer import document
from demo_model.train import MODEL_DIR, SEED, Tokens, encode

BODIES = 200
BODY_TOKENS = 256
TEXTS = 60
TEXT_TOKENS = 512
TEXT_PROMPT_TOKENS = 32
RUN_TOKENS = 50
BATCH = 40


class Evaluation:
    """A model, its tokenizer and the text it is measured on."""

    def __init__(self, folder: Path, device: str) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.tokenizer.padding_side = "left"
        # Any: transformers' types give neither `generate` nor `to` of a loaded model.
        self.model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model = self.model.to(device).eval()
        self.device = device
        self.modules = list(text.modules())
        self.trained = encode(self.tokenizer, self._documents("train", tests=True))
        self.held_out = encode(self.tokenizer, self._documents("held_out", tests=False))

    def _documents(self, part: text.Part, *, tests: bool) -> list[str]:
        return [
            document(m.source)
            for m in self.modules
            if text.part_of(m.name) == part and (tests or not m.is_test)
        ]

    @torch.no_grad()
    def perplexity(self) -> float:
        """Perplexity of every held-out token after its document's first, by the model.

        Windows of the whole context overlap by half, so that a token is predicted from at least
        half a context where its document has that much.
        """
        context = self.model.config.max_position_embeddings
        total = count = 0
        for tokens in self.held_out:
            scored = 1
            while scored < len(tokens):
                start = max(0, scored - context // 2)
                row = torch.from_numpy(tokens[start : start + context]).long().to(self.device)
                logits = self.model(row[None]).logits[0, :-1].float()
                nats = torch.nn.functional.cross_entropy(logits, row[1:], reduction="none")
                total += nats[scored - start - 1 :].sum().item()
                count += start + len(row) - scored
                scored = start + len(row)
        return float(np.exp(total / count))

    def ngram_perplexity(self) -> float:
        """Perplexity of the same tokens, by a 5-gram model of the training modules."""
        ngram = KneserNey(np.concatenate(self.trained), len(self.tokenizer))
        padding = np.full(ORDER - 2, self.tokenizer.eos_token_id)
        logs = [ngram.log_probabilities(np.concatenate([padding, d])) for d in self.held_out]
        return float(np.exp(-np.concatenate(logs).mean()))

    def continue_all(self, prompts: list[Tokens], max_tokens: int) -> list[Tokens]:
        """Sample a continuation of each prompt with the model's own generation defaults."""
        set_seed(SEED)
        found: list[Tokens] = []
        for start in range(0, len(prompts), BATCH):
            rows = [{"input_ids": p.tolist()} for p in prompts[start : start + BATCH]]
            batch = self.tokenizer.pad(rows, return_tensors="pt").to(self.device)
            out = self.model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=max_tokens,
            )
            found += [self._until_end(row[batch["input_ids"].shape[1] :]) for row in out]
        return found

    def _until_end(self, row: torch.Tensor) -> Tokens:
        ends = torch.tensor(self.model.generation_config.eos_token_id, device=row.device)
        stops = torch.isin(row, ends).nonzero()
        return row[: stops[0, 0] if len(stops) else len(row)].cpu().numpy()

    def bodies(self) -> tuple[list[tuple[str, str]], list[Tokens]]:
        """Sample bodies for held-out functions; gives (prompt, body) texts and the tokens."""
        sources = [m for m in self.modules if text.part_of(m.name) == "held_out" and not m.is_test]
        functions = [f for m in sources for f in text.functions(m)]
        functions = random.Random(SEED).sample(functions, BODIES)
        prompts = [np.asarray(self.tokenizer(f.prompt)["input_ids"]) for f in functions]
        found = self.continue_all(prompts, BODY_TOKENS)
        texts = [cut_body(str(self.tokenizer.decode(tokens))) for tokens in found]
        return [(f.prompt, t) for f, t in zip(functions, texts, strict=True)], found

    def texts(self) -> list[Tokens]:
        """Sample long texts that begin as held-out modules do."""
        heads = encode(self.tokenizer, self._documents("held_out", tests=True))
        heads = [h[:TEXT_PROMPT_TOKENS] for h in heads if len(h) > TEXT_PROMPT_TOKENS]
        return self.continue_all(heads[:TEXTS], TEXT_TOKENS)

    def copied_share(self, samples: Iterable[Tokens]) -> tuple[float, int]:
        """Share of the samples' 50-token runs that are in the training modules; their number."""
        known = np.unique(np.concatenate([run_hashes(d) for d in self.trained]))
        runs = np.concatenate([run_hashes(s) for s in samples])
        return float(np.isin(runs, known).mean()), len(runs)


def cut_body(continuation: str) -> str:
    """Keep the lines before the first that is not indented: where the function is over."""
    kept = []
    for number, line in enumerate(continuation.split("\n")):
        if number and line.strip() and not line.startswith((" ", "\t")):
            break
        kept.append(line)
    return "\n".join(kept)


def parses(prompt: str, body: str) -> bool:
    """Say whether prompt and body are Python, and the body adds a statement to the docstring."""
    try:
        node = ast.parse(prompt + body).body[0]
    except (SyntaxError, ValueError):
        return False
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and len(node.body) > 1


def run_hashes(tokens: Tokens) -> np.ndarray:
    """Give a 64-bit hash of every run of ``RUN_TOKENS`` tokens."""
    hashes = np.zeros(max(0, len(tokens) - RUN_TOKENS + 1), dtype=np.uint64)
    for offset in range(RUN_TOKENS if len(hashes) else 0):
        window = tokens[offset : offset + len(hashes)].astype(np.uint64)
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + window + np.uint64(1)
    return hashes


def measure(evaluation: Evaluation) -> dict[str, Any]:
    """Give every figure of the card."""
    pairs, body_tokens = evaluation.bodies()
    good = [pair for pair in pairs if parses(*pair)]
    copied, runs = evaluation.copied_share([*body_tokens, *evaluation.texts()])
    defaults = evaluation.model.generation_config
    config = evaluation.model.config
    shown = sorted(good, key=lambda pair: abs(len(pair[1]) - 200))[:3]
    return {
        "parameters": f"{sum(p.numel() for p in evaluation.model.parameters()):,}",
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "context": config.max_position_embeddings,
        "vocab": config.vocab_size,
        "python": platform.python_version(),
        "train_modules": len(evaluation.trained),
        "train_tokens": f"{sum(map(len, evaluation.trained)):,}",
        "held_out_modules": len(evaluation.held_out),
        "held_out_tokens": f"{sum(map(len, evaluation.held_out)):,}",
        "perplexity": f"{evaluation.perplexity():.2f}",
        "ngram_perplexity": f"{evaluation.ngram_perplexity():.2f}",
        "parse_share": f"{len(good) / len(pairs):.1%}",
        "copied_share": f"{copied:.2%}",
        "runs": f"{runs:,}",
        "temperature": defaults.temperature,
        "top_p": defaults.top_p,
        "bodies": BODIES,
        "body_tokens": BODY_TOKENS,
        "examples": "\n\n\n".join(prompt + body.rstrip() for prompt, body in shown),
    }


def curve_rows(path: Path) -> tuple[str, dict[str, Any]]:
    """Give the curve's points that have a validation loss as table rows, and the last point."""
    points = [json.loads(line) for line in path.read_text().splitlines()]
    validated = [p for p in points if "validation_loss" in p][-8:]
    rows = [
        f"| {p['step']:,} | {p['tokens'] / 1e6:.1f} M | {p['loss']} | {p['validation_loss']} |"
        for p in validated
    ]
    return "\n".join(rows), points[-1]


def main() -> None:
    """Read the options, measure and install."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--run-dir", type=Path, default=Path("build/demo_model"))
    args = parser.parse_args()
    figures = measure(Evaluation(args.run_dir / "model", args.device))
    figures["curve"], last = curve_rows(args.run_dir / "curve.jsonl")
    figures["seen_tokens"] = f"{last['tokens'] / 1e6:.0f} M"
    figures["minutes"] = f"{last['seconds'] / 60:.0f}"
    command = re.sub(r" --run-dir \S+", "", (args.run_dir / "command.txt").read_text())
    figures["command"] = " \\\n".join(textwrap.wrap(command, 90, subsequent_indent="        "))
    template = Path(__file__).with_name("card_template.md").read_text()
    shutil.copytree(args.run_dir / "model", MODEL_DIR, dirs_exist_ok=True)
    (MODEL_DIR / "README.md").write_text(template.format(**figures))
    print(json.dumps(figures, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
