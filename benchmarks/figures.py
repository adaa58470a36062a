"""The figures of the README and of a release's notes, measured one after the other on one GPU.

    python benchmarks/figures.py                          # all of them: an hour on an H200
    python benchmarks/figures.py nano-8b decode-8b        # these
    python benchmarks/figures.py nano-0.6b -- --requests 8    # words for `pagestream bench`

Each is a command in a process of its own, which is printed with what came of it as soon as it has
ended; `--out` keeps every output and every JSON file. So a machine that goes away in the middle
leaves what was measured by then. Cards differ by some percent: what is to be compared belongs into
one run.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parents[1]
DUMMY = "--load-format dummy --max-model-len 8192"
LLAMA = "--model benchmarks/models/llama-3.1-8b"
M8 = f"{LLAMA} {DUMMY}"
QWEN = "--model benchmarks/models/qwen3-0.6b"
M06 = f"{QWEN} {DUMMY}"
DECODES = "latency --context 480 --batch-sizes 1 8 32 64 128 256"
PROMPTS = (
    "throughput --dataset random --requests 256 --input-len 512 --output-len 1 "
    "--range-ratio 0 --repeats 4"
)
STATIC = (
    "throughput --engine transformers --batching static --batch-size 32 --dataset nano "
    f"{LLAMA} --load-format dummy"
)


def decode_steps(report: Any) -> str:
    """Milliseconds of a step by batch size, and of the largest batch's prompts."""
    results = report["results"]
    steps = ", ".join(f"{one['batch_size']}: {one['decode_step_ms']:.3f}" for one in results)
    return f"{steps} ms; prompts of the last {results[-1]['first_tokens_ms']['p50']:,.0f} ms"


def tokens_per_s(report: Any) -> str:
    """Output tokens a second of every run, and what would make them worth less."""
    results = report["results"]
    said = " · ".join(f"{one['summary']['output_tokens_per_s']:,.0f}" for one in results)
    said += " tokens/s"
    if "kv_waste" in results[0]:
        waste, preempted = max(one["kv_waste"] for one in results), results[0]["preemptions"]
        said += f", KV waste {waste:.2%}, {preempted} preemptions"
    failed = sum(one["summary"]["failed"] for one in results)
    ready_s = report["worker_ready_s"]
    return said + f", {failed} failed" + (f", ready after {ready_s:.1f} s" if ready_s else "")


def seconds(report: Any) -> str:
    """Seconds of every run."""
    return " · ".join(f"{one['summary']['duration_s']:.3f}" for one in report["results"]) + " s"


@dataclass(frozen=True)
class Figure:
    """A measurement: its command, and what of its outcome is worth a line."""

    words: str
    """Of `pagestream bench`; or a script of this folder, and its words."""
    read: Callable[[Any], str] | None = None
    """Says it in a line, from the command's JSON; None: the end of what a script prints."""
    lines: int = 1

    def command(self, more: list[str], json: Path) -> list[str]:
        """The words to run."""
        if self.read is None:
            return [sys.executable, *f"benchmarks/{self.words}".split()]
        bench = [sys.executable, "-m", "pagestream.producer.cli", "bench", *self.words.split()]
        return [*bench, "--json", str(json), *more]


FIGURES = {
    "decode-8b": Figure(f"{DECODES} {M8}", decode_steps),
    "decode-0.6b": Figure(f"{DECODES} {M06}", decode_steps),
    "nano-8b": Figure(f"serve --dataset nano --repeats 2 {M8}", tokens_per_s),
    "nano-0.6b": Figure(f"serve --dataset nano --repeats 2 {M06}", tokens_per_s),
    "share-8b": Figure(f"serve --dataset share --repeats 2 {M8}", tokens_per_s),
    "share-0.6b": Figure(f"serve --dataset share --repeats 2 {M06}", tokens_per_s),
    "alone": Figure(f"throughput --dataset nano --repeats 2 {M8}", tokens_per_s),
    "alone-0.6b": Figure(f"throughput --dataset nano --repeats 2 {M06}", tokens_per_s),
    "deterministic": Figure(f"serve --dataset nano --repeats 2 --deterministic {M8}", tokens_per_s),
    "prompts": Figure(f"{PROMPTS} {M8}", seconds),
    "prompts-0.6b": Figure(f"{PROMPTS} {M06}", seconds),
    "first64": Figure(f"throughput --dataset nano --requests 64 --repeats 2 {M8}", tokens_per_s),
    "static64": Figure(f"{STATIC} --requests 64", tokens_per_s),
    "static": Figure(STATIC, tokens_per_s),
    "first-token-50ms": Figure(f"idle_latency.py --pause-ms 50 {M06}", lines=4),
    "first-token-5ms": Figure(f"idle_latency.py --pause-ms 5 {M06}", lines=4),
    "first-token-0ms": Figure(f"idle_latency.py --pause-ms 0 {M06}", lines=4),
    "readers": Figure(f"many_readers.py --readers 1 8 --repeats 2 {M8}", lines=4),
    "busy": Figure(f"profile_steps.py --workload nano {LLAMA}", lines=100),
    "busy-0.6b": Figure(f"profile_steps.py --workload nano {QWEN}", lines=100),
    "kernels": Figure("kernels.py", lines=400),
}


def measure(name: str, more: list[str], out: Path) -> bool:
    """Run one, keep what it says, and print what came of it; whether it ended well."""
    figure, json, log = FIGURES[name], out / f"{name}.json", out / f"{name}.log"
    command = figure.command(more, json)
    print(f"{name}: {shlex.join(command[1:])}", flush=True)
    began_s = time.monotonic()
    # A folder called `kernels` in the working directory must not shadow the library of that name;
    # a script of this folder finds its neighbours all the same only without this.
    env = os.environ | {"PYTHONSAFEPATH": "1" if figure.read else ""}
    with log.open("w") as said:
        done = subprocess.run(command, cwd=ROOT, env=env, stdout=said, stderr=subprocess.STDOUT)
    took_s = time.monotonic() - began_s
    lines = log.read_text().replace("\r", "\n").splitlines()
    if done.returncode:
        print(f"  failed ({done.returncode}) after {took_s:.0f} s", *lines[-10:], sep="\n    ")
    elif figure.read is None:
        print(*lines[-figure.lines :], sep="\n")
    else:
        print(f"  {figure.read(msgspec.json.decode(json.read_bytes()))}  ({took_s:.0f} s)")
    sys.stdout.flush()
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="figure", help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    arguments, more = parser.parse_args(words[:cut]), words[cut + 1 :]
    if unknown := set(arguments.names) - set(FIGURES):
        parser.error(f"no figure is called {', '.join(sorted(unknown))}")
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    names = arguments.names or list(FIGURES)
    return 0 if all([measure(name, more, out) for name in names]) else 1


if __name__ == "__main__":
    sys.exit(main())
