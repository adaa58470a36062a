"""Commands of ours as processes of this host, as an image's entry point would run them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def environment(url: str = "") -> dict[str, str]:
    paths = os.pathsep.join(str(ROOT / room) for room in ("producer", "worker", "kernels"))
    given = {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    return os.environ | given | ({"PAGESTREAM_REDIS_URL": url} if url else {})


def ours(words: list[str]) -> list[str]:
    """What the images' entry point makes of a command."""
    main = "import sys; from pagestream.producer.cli import main; sys.exit(main())"
    return [sys.executable, "-c", main, *words]


def command_line(words: list[str], *more: str) -> subprocess.CompletedProcess[str]:
    command = ours([words[0], *more])
    if more[0] == "--help":
        command = ours([*words, *more])
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)


@contextmanager
def process(command: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process for the length of the block; its stderr is a pipe."""
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def cpu_ticks(pid: int | None) -> int:
    """What a process has computed so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])
