"""`make demo`, as a log shows it: three processes, tokens, a summary, and nothing left behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_demo_answers_every_prompt_and_sums_up(tmp_path: Path) -> None:
    paths = os.pathsep.join(str(ROOT / room) for room in ("producer", "worker", "kernels"))
    environment = os.environ | {
        "PYTHONPATH": paths,
        "PYTHONSAFEPATH": "1",
        "TMPDIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "producer/examples/demo.py",
            "--requests",
            "6",
            "--max-tokens",
            "24",
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "redis    embedded: unix://" in done.stdout
    assert re.search(r"worker +pid \d+, ready in", done.stdout)
    assert "6 done, 0 failed" in done.stdout
    tokens = re.search(r"output +(\d+) tokens, \d+ tokens/s", done.stdout)
    assert tokens
    assert 6 <= int(tokens[1]) <= 6 * 24
    assert re.search(r"time to first token +p50 \d+ ms, p95 \d+ ms", done.stdout)
    worker = re.search(r"pid (\d+)", done.stdout)
    assert worker
    assert not Path("/proc", worker[1]).exists(), "the worker outlived the demo"
    assert list(tmp_path.glob("pagestream-*")) == [], "the demo left files behind"
