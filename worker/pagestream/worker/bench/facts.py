"""What a figure was measured on: machine, versions, commit. Nothing here is measured."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

LIBRARIES = ("pagestream", "torch", "triton", "transformers", "redis", "msgspec", "numpy")


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU as its driver describes it."""

    name: str
    driver: str
    memory: str


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a figure depends on and the command line does not say."""

    gpus: list[Gpu]
    cpu: str
    cpus: int
    """Cores that this process may use."""
    system: str
    python: str
    versions: dict[str, str | None]
    """None: not installed as a distribution (a checkout on the path is not)."""
    commit: str | None
    """Of the checkout that the code lies in, `-dirty` if it was changed; None outside of one."""


def machine() -> Machine:
    """Look around."""
    return Machine(
        gpus=_gpus(),
        cpu=_cpu(),
        cpus=_usable_cpus(),
        system=platform.platform(),
        python=platform.python_version(),
        versions={name: _version(name) for name in LIBRARIES},
        commit=_commit(),
    )


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus() -> list[Gpu]:
    fields = "name,driver_version,memory.total"
    text = _output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader") or ""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return [Gpu(name=row[0], driver=row[1], memory=row[2]) for row in rows if len(row) == 3]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, unless these files only happen to lie inside of some repository."""
    git = ("git", "-C", str(Path(__file__).parent))
    if _output(*git, "ls-files", Path(__file__).name) is None:
        return None
    return _output(*git, "describe", "--always", "--dirty")


def _output(*command: str) -> str | None:
    """What a command prints; None where it cannot be run, or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
