"""The commands that documents show: each is known, and those of the quickstart run.

A command is an indented line of a page outside of other blocks. Whatever is ours must parse, with
its flags; whatever cannot be tried here stands in `ELSEWHERE`, with the reason.
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import httpx2
import pytest
from loopback import free_port
from our_processes import environment, ours, process
from redis import Redis
from stub_worker import StubWorker
from typer.testing import CliRunner
from waiting import until

from pagestream.producer import Client, errors
from pagestream.producer.cli import build
from pagestream.producer.embedded import running_url
from pagestream.producer.gateway.failures import InvalidKey
from pagestream.producer.keys import Keys
from pagestream.worker import service
from pagestream.worker.errors import OutOfMemory

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
QUICKSTART = ROOT / "docs/quickstart.md"

ELSEWHERE = {
    "git": "there is nothing to clone from here, and tags are the owner's",
    "docker": "needs a container engine; what compose would start runs in test_compose.py",
    "kubectl": "needs a cluster; what it would start runs in test_kubernetes.py",
    "sed": "rewrites the manifests in place, for a registry of the reader's",
    "pip": "downloads gigabytes; test_wheel.py installs the wheel",
    "vllm": "another project's; its traffic is sent in test_vllm_bench.py",
    "redis-cli": "runs in test_wire_page.py",
    "export": "sets a variable of the reader's shell",
    ".venv/bin/pytest": "this is it",
    ".venv/bin/ruff": "`make lint` runs it",
}
STAYS = ("up", "gateway", "worker", "jobs", "top", "chat", "chaos", "bench")
"""Commands of ours that run until they are stopped, or for long; their own tests run them."""
LETTERS = [
    [kind, what] for kind in ("dead", "hooks") for what in ("show", "retry", "purge")
]  # they name one that is there: test_admin.py and test_hooks.py have some
NO_COMMANDS = re.compile(
    r"[{<]|worker/service|EVALSHA|XREAD|appendonly|appendfsync|maxmemory-policy|pagestream submit "
)
"""Indented lines that are something else: JSON, diagrams, Redis's own language, a span's name."""


def commands(page: Path) -> Iterator[str]:
    """Each command of a page, without its comment."""
    fence = ""
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            fence = "" if fence else line
        elif not fence and re.match(r"    \S", line) and not NO_COMMANDS.match(line.strip()):
            yield re.sub(r"\s+#.*", "", line.strip())


def spoken(command: str) -> list[str]:
    """Its words, without variables before, redirections behind, and what stands for more."""
    words = [word for word in shlex.split(command) if word != "…"]
    while re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    ends = [place for place, word in enumerate(words) if re.match(r"[>|&;]", word)]
    return words[: ends[0]] if ends else words


@cache
def made() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
].keys()
ALL = [(page, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize(("page", "command"), ALL, ids=lambda one: getattr(one, "name", one))
def test_every_command_is_one(page: Path, command: str) -> None:
    words = spoken(command)
    if words[0] == "pagestream":
        # What follows `config check` is another command and its flags.
        shown = words[3:] if words[1:3] == ["config", "check"] else words[1:]
        assert parses(shown), f"{page.name}: {command}"
        assert not parses([*shown, "--no-such-flag"])
    elif words[0] == "pip":
        assert set(re.findall(r"\w+", words[2].partition("[")[2])) <= EXTRAS
    elif words[0] == "make":
        assert words[1] in made()
    elif words[0] == "python":
        if words[1] == "-m":
            assert find_spec(words[2])
        else:  # the quickstart has its reader write some
            assert (ROOT / words[1]).is_file() or page == QUICKSTART
    elif words[0] == "curl":
        (url,) = re.findall(r"http://localhost:80[08]0(/[^ ?…']*)", command)
        assert f"{url.split('/')[2]}" in (ROOT / "docs/gateway.md").read_text()
    elif words[0] not in ("echo", "cat"):
        assert words[0] in ELSEWHERE, f"{page.name}: {command}"


def parses(words: list[str]) -> bool:
    """Whether our command line takes these words, up to the point of running."""
    return CliRunner().invoke(build(words), [*words, "--help"]).exit_code == 0


def test_nothing_is_left_out_that_is_not_there() -> None:
    assert {spoken(command)[0] for _, command in ALL} >= ELSEWHERE.keys() - {"redis-cli"}


def test_the_quickstart_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """In a shell, in order; what needs a terminal of its own gets one."""
    port = free_port()
    (script,) = re.findall(r"```python\n(.*?)```", QUICKSTART.read_text(), re.DOTALL)
    (tmp_path / "submit.py").write_text(script)
    env = shell_of(tmp_path)
    ran: list[str] = []
    with ExitStack() as stack:
        for command in commands(QUICKSTART):
            words = spoken(command)
            if words[0] in ELSEWHERE:
                continue
            if words[:2] == ["pagestream", "up"]:
                stack.enter_context(process(ours([*words[1:], "--port", str(port)]), env))
                until(partial(serves, tmp_path / "state"), timeout_s=60)
                until(partial(answers, port), timeout_s=60)
            else:
                moved = command.replace("8000", str(port))
                done = subprocess.run(
                    moved, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True,
                    timeout=60,
                )  # fmt: skip
                assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
                assert '{"error":' not in done.stdout, f"{command}: {done.stdout}"
            ran.append(command)
    assert len(ran) >= 14


@pytest.mark.usefixtures("nothing_around")
@pytest.mark.parametrize(
    "page", ["jobs.md", "operations.md", "scheduling.md", "troubleshooting.md"]
)
def test_what_operators_are_shown_runs(
    page: str, redis_url: str, queue_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, on a queue with a worker and an ended job."""
    monkeypatch.setenv("PAGESTREAM_REDIS_URL", redis_url)
    monkeypatch.setenv("PAGESTREAM_QUEUE", queue_name)
    ran = 0
    with StubWorker(redis_url, queue_name), Client(redis_url, queue=queue_name) as client:
        job = client.submit("hello")
        job.result(timeout_ms=20_000)
        for command in commands(ROOT / "docs" / page):
            known = {"JOB": job.id, "TENANT": "acme", "N": "7", "demo": queue_name}
            known["DIRECTORY-OR-HUB-ID"] = str(ROOT / "benchmarks/models/llama-2-7b")
            words = [known.get(word, word) for word in spoken(command)]
            if words[0] != "pagestream" or words[1] in STAYS or words[1:3] in LETTERS:
                continue
            done = CliRunner().invoke(build(words[1:]), words[1:])
            # The doctor's findings are the server's: this one keeps nothing on a disk.
            wanted = {0, 1} if words[1] == "doctor" else {0}
            assert done.exit_code in wanted, f"{command}: {done.output}"
            ran += 1
    assert ran >= 2


def shell_of(folder: Path) -> dict[str, str]:
    """Variables of a shell that has our command, and a home of its own."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "pagestream").write_text(
        f'#!/bin/sh\nexec {sys.executable} -m pagestream.producer.cli "$@"\n'
    )
    (programs / "pagestream").chmod(0o755)
    (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (programs / "python").chmod(0o755)
    env = environment() | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XDG_STATE_HOME": str(folder / "state"),
    }
    return {name: value for name, value in env.items() if name != "PAGESTREAM_REDIS_URL"}


def serves(state: Path) -> bool:
    """Whether the worker of `pagestream up` takes jobs."""
    url = running_url(state / "pagestream" / "redis")
    if url is None:
        return False
    with Redis.from_url(url) as redis:
        return bool(redis.exists(Keys("demo").model))


def answers(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx2.TransportError:
        return False


TROUBLES = (ROOT / "docs/troubleshooting.md").read_text()


def test_every_error_has_its_line() -> None:
    known = {
        (one.code, one.__name__)
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, errors.PagestreamError) and one.code != "error"
    }
    lines = set(re.findall(r"^\| `(\w+)` `(\w+)` \|", TROUBLES, re.MULTILINE))
    ends = {
        *(("cancelled", "JobCancelled"), ("expired", "JobExpired")),
        *(("crashed", "JobFailed"), (OutOfMemory.code, "JobFailed")),
    }
    assert lines == known | ends
    assert f"| `{InvalidKey.code}` |" in TROUBLES


def test_every_exit_status_has_its_line() -> None:
    section = TROUBLES.split("## What a worker's exit status says")[1].split("## ")[0]
    told = set(map(int, re.findall(r"^\| (\d+) \|", section, re.MULTILINE)))
    names = ("REDIS_UNAVAILABLE", "ENGINE_FAILED", "TRY_AGAIN", "BAD_CONFIG", "OK")
    assert told == {getattr(service, name) for name in names} | {2}
