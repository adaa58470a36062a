"""Where a run takes place: a server, workers behind proxies, and a client with a load.

This module starts and ends things and finds out who does what; what goes wrong is `faults`' matter.
"""

import asyncio
import secrets
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Self
from urllib.parse import urlsplit

from redis.exceptions import RedisError

from pagestream.producer.client import AsyncClient
from pagestream.producer.connection import connect_async
from pagestream.producer.embedded import find_server
from pagestream.producer.errors import QueueUnavailable
from pagestream.producer.keys import QUEUES, Keys

from .answers import Answers
from .load import Load, LoadJob
from .processes import WORKER, OwnServer, Process
from .proxy import Connect, Proxy

START_S = 60.0
"""How long a worker or a server may take to its first sign of life."""
LOOK_S = 0.02
LOG_BYTES = 32 << 20
"""A server's restart reads so much within a second or two."""
MAX_RUNNING = 16
"""Few, so that an overload fills every slot and urgent jobs evict others."""


@dataclass(frozen=True)
class Options:
    """What a run is made of."""

    seed: int = 0
    redis_url: str | None = None
    """A server of the user's; None starts one."""
    server: str | None = None
    """The binary of the server to start; None takes the one that `pagestream up` takes."""
    fsync: str = "everysec"
    workers: int = 2
    in_flight: int = 24
    heartbeat_ttl_s: float = 1.0
    patience_s: float = 60.0
    """How long a stream may stand still after a fault before it counts as stuck."""
    worker_command: Sequence[str] = WORKER
    """Python, a script or `-m` and a module, and their first words."""
    inside: Sequence[str] = ()
    """A program, with its first words, that alters a worker's process and runs it within itself."""
    max_crashes: int = 100
    """Many: a job may well be there when three are killed in ten seconds; it is no poison."""


@dataclass
class Worker:
    """A worker process and the network between it and Redis."""

    name: str
    process: Process
    proxy: Proxy
    is_up: bool = False
    is_paused: bool = False


class Stage:
    """A context manager: everything runs inside it, and nothing is left after it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.random = Random(options.seed)
        self.queue = f"chaos-{options.seed}-{secrets.token_hex(3)}"
        self.keys = Keys(self.queue)
        self.folder = Path(tempfile.mkdtemp(prefix="ps-chaos-"))
        self.server: OwnServer | None = None
        self.workers: list[Worker] = []
        self.unexpected_exits: list[str] = []
        """Workers that ended although nobody killed them, and their last words."""
        self._starts = 0
        self._starting: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        try:
            if self.options.redis_url is None:
                binary = self.options.server or find_server()
                self.server = OwnServer(binary, self.folder, fsync=self.options.fsync)
                self.server.start()
                self.url = f"unix://{self.server.socket}"
            else:
                self.url = self.options.redis_url
            self.redis: Any = connect_async(self.url, client_name="chaos")
            await self.server_answers()
            self.client_proxy = await self._proxy()
            self.client_url = self.proxied(self.client_proxy)
            # Where every write is on disk before it is answered, accepted must mean just that.
            self.client = AsyncClient(
                self.client_url,
                queue=self.queue,
                durability="strict" if self.options.fsync == "always" else "server",
            )
            self.load = Load(
                self.client,
                Answers(),
                Random(self.random.random()),
                in_flight=self.options.in_flight,
                name=f"job-{self.options.seed}",
            )
            for _ in range(self.options.workers):
                await self.start_worker()
            await self.until(lambda: self.up == len(self.workers), "workers to start")
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def _close(self) -> None:
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        for worker in self.workers:
            worker.process.kill()
            await worker.proxy.close()
        if hasattr(self, "client"):
            await self.client.aclose()
            await self.client_proxy.close()
        if hasattr(self, "redis"):
            with suppress(RedisError):
                await self._clean()
            await self.redis.aclose()
        if self.server is not None:
            self.server.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _clean(self) -> None:
        """Take every key of the queue off the server."""
        pattern = f"{self.keys.prefix}*"
        found = [key async for key in self.redis.scan_iter(match=pattern, count=1000)]
        for start in range(0, len(found), 500):
            await self.redis.unlink(*found[start : start + 500])
        await self.redis.srem(QUEUES, self.queue)

    # ---- the network

    async def _proxy(self) -> Proxy:
        proxy = Proxy(_connector(self.url), Random(self.random.random()))
        await proxy.start()
        return proxy

    def proxied(self, proxy: Proxy) -> str:
        """Return the server's URL through a proxy; TLS is carried nowhere, and goes direct."""
        parts = urlsplit(self.url)
        if parts.scheme == "rediss":
            return self.url
        user = parts.netloc.rpartition("@")[0]
        path = "/0" if parts.scheme == "unix" else parts.path
        at = f"{user}@" if user else ""
        return f"redis://{at}127.0.0.1:{proxy.port}{path}"

    # ---- the server

    async def server_answers(self) -> None:
        """Wait until the server has loaded its data and answers.

        Raises:
            QueueUnavailable: it did not.
        """
        deadline = time.monotonic() + START_S
        while True:
            try:
                await self.redis.ping()
                return
            except RedisError as error:
                if time.monotonic() > deadline or self.server is None:
                    raise QueueUnavailable(f"no Redis at the server's address: {error}") from error
            await asyncio.sleep(LOOK_S)

    async def shorten_log(self) -> None:
        """Have an own server rewrite its append-only file once that is long; not in a fault.

        Raises:
            QueueUnavailable: it does not come to an end, and the files cannot be copied.
        """
        if self.server is None or self.server.log_bytes < LOG_BYTES:
            return
        await self.redis.bgrewriteaof()
        deadline = time.monotonic() + START_S
        while True:
            state = await self.redis.info("persistence")
            if not (state["aof_rewrite_in_progress"] or state["aof_rewrite_scheduled"]):
                return
            if time.monotonic() > deadline:
                raise QueueUnavailable(
                    f"the server rewrites its file for more than {START_S:.0f} s"
                )
            await asyncio.sleep(LOOK_S)

    # ---- workers

    @property
    def up(self) -> int:
        """Workers that serve."""
        return sum(worker.is_up for worker in self.workers)

    async def start_worker(self, *, skew_s: int = 0) -> Worker:
        """Start a worker; it is up some seconds later."""
        self._starts += 1
        name = f"worker-{self._starts}"
        proxy = await self._proxy()
        command = [*self.options.worker_command]
        command[1:1] = self.options.inside
        if skew_s:
            command[1:1] = ["-m", "pagestream.worker.chaos.skewed", str(skew_s)]
        flags = {
            "model": "demo",
            "served-model-name": self.queue,
            "redis-url": self.proxied(proxy),
            "name": name,
            "heartbeat-ttl": str(self.options.heartbeat_ttl_s),
            "max-num-seqs": str(MAX_RUNNING),
            "num-blocks": "1200",
            "max-crashes": str(self.options.max_crashes),
        }
        words = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
        process = Process([*command, *words], self.folder / f"{name}.log")
        worker = Worker(name, process, proxy)
        self.workers.append(worker)
        task = asyncio.create_task(self._watch(worker))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        return worker

    async def _watch(self, worker: Worker) -> None:
        """See it come up; put another in its place should it end by itself."""
        while worker in self.workers:
            if worker.process.exit_status is not None:
                words = _tail(worker.process.log, 25)
                self.unexpected_exits.append(
                    f"{worker.name} ended by itself with {worker.process.exit_status}: {words}"
                )
                await self._replace(worker)
                return
            if not worker.is_up:
                with suppress(RedisError):
                    worker.is_up = bool(await self.redis.exists(self.keys.heartbeat(worker.name)))
            await asyncio.sleep(LOOK_S * (1 if not worker.is_up else 10))

    async def kill_worker(self, worker: Worker, *, skew_s: int = 0) -> None:
        """SIGKILL it, and start another in its place."""
        self.workers.remove(worker)
        worker.process.kill()
        await worker.proxy.close()
        await self.start_worker(skew_s=skew_s)

    async def _replace(self, worker: Worker) -> None:
        if worker in self.workers:
            self.workers.remove(worker)
            await worker.proxy.close()
            await self.start_worker()

    async def decoding_on(self, worker: Worker) -> list[LoadJob]:
        """Return the load's jobs that the worker holds and has published tokens of."""
        held: dict[bytes, bytes] = await self.redis.hgetall(self.keys.running(worker.name))
        jobs = [self.load.running.get(job_id.decode()) for job_id in held]
        return [job for job in jobs if job is not None and job.is_decoding]

    async def published(self, job: LoadJob) -> int:
        """Return how many tokens the job's reply holds now."""
        last: Any = await self.redis.xrevrange(self.keys.out(job.id), count=8)
        offsets = [int(entry_id.split(b"-")[1]) for entry_id, fields in last if b"ids" in fields]
        return max(offsets, default=0)

    async def until(self, enough: Any, what: str, timeout_s: float = START_S) -> None:
        """Wait until `enough()`.

        Raises:
            QueueUnavailable: it took too long; the message names `what`.
        """
        deadline = time.monotonic() + timeout_s
        while not enough():
            if time.monotonic() > deadline:
                raise QueueUnavailable(f"waited {timeout_s:.0f} s for {what}\n{self.logs()}")
            await asyncio.sleep(LOOK_S)

    def logs(self, lines: int = 15) -> str:
        """Return the ends of the workers' logs."""
        return "\n".join(
            f"== {worker.name}\n{_tail(worker.process.log, lines)}" for worker in self.workers
        )


def _connector(url: str) -> Connect:
    """Return what opens a plain connection to a server's address."""
    parts = urlsplit(url)

    async def to_socket() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(parts.path)

    async def to_port() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(parts.hostname or "localhost", parts.port or 6379)

    return to_socket if parts.scheme == "unix" else to_port


def _tail(log: Path, lines: int) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
