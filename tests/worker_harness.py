"""Runs a worker with the stub engine against a real server, and says what its replies must be."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import redis
from stub_engine import StubOptions, build_stub, expected_ids

from pagestream.producer.keys import Keys
from pagestream.producer.lua import Script
from pagestream.producer.protocol import Entry, decode_entry
from pagestream.worker.messages import Sampling
from pagestream.worker.queue.inbox import Inbox
from pagestream.worker.queue.stop import StopFlag
from pagestream.worker.queue.tokenizer import Tokenizer
from pagestream.worker.service import serve
from pagestream.worker.settings import WorkerSettings

TIMEOUT_S = 30.0


@dataclass
class Worker:
    """A worker on a thread, its engine in a process of its own."""

    url: str
    keys: Keys
    model: Path
    options: StubOptions = field(default_factory=StubOptions)
    grace_s: float = 20.0
    flags: dict[str, Any] = field(default_factory=dict)
    """Other settings of the worker."""
    inbox: Inbox = field(default_factory=Inbox)
    status: int | None = None

    def start(self) -> "Worker":
        settings = WorkerSettings(
            model=str(self.model),
            served_model_name=self.keys.queue,
            redis_url=self.url,
            grace=self.grace_s,
            **self.flags,
        )
        self.stop = StopFlag()
        build = partial(build_stub, self.options)

        def run() -> None:
            self.status = serve(settings, self.stop, self.inbox, build)

        self.thread = threading.Thread(target=run, name="worker")
        self.thread.start()
        return self

    def ask_to_stop(self) -> None:
        self.stop.request()
        self.inbox.put(None)

    def wait(self) -> int | None:
        """Exit status."""
        self.thread.join(TIMEOUT_S)
        assert not self.thread.is_alive(), "the worker did not stop"
        return self.status

    def end(self) -> int | None:
        """Stop at once."""
        self.ask_to_stop()
        self.ask_to_stop()
        return self.wait()


@dataclass
class Reply:
    """A reply stream read to its end."""

    entries: list[Entry]

    @property
    def ids(self) -> list[int]:
        return [token_id for entry in self.entries for token_id in entry.ids]

    @property
    def text(self) -> str:
        return "".join(entry.text for entry in self.entries)

    @property
    def end(self) -> Entry:
        return self.entries[-1]

    def check(self) -> "Reply":
        """Each token index once and in order, one end, offsets as promised."""
        seen = 0
        for entry in self.entries:
            if entry.event == "tokens":
                assert entry.start == seen, f"{entry} does not follow token {seen}"
                seen += len(entry.ids)
                assert entry.offset == seen
        assert [e.event for e in self.entries].count("end") == 1
        assert self.end.event == "end"
        assert self.end.offset == seen + 1
        epochs = [entry.epoch for entry in self.entries]
        assert epochs == sorted(epochs)
        return self


class Client:
    """Submits and reads with the scripts and commands of the wire, nothing else."""

    def __init__(self, url: str, keys: Keys) -> None:
        self.redis = redis.Redis.from_url(url, protocol=2, socket_timeout=60)
        self.keys = keys
        self.submit_script = Script("submit")
        self.cancel_script = Script("cancel")

    def submit_bytes(self, job_id: str, payload: bytes, **options: Any) -> None:
        answer = self.submit_script(
            self.redis, self.keys.bell, job_id, payload, json.dumps(options)
        )
        assert answer[0] == b"accepted", answer

    def submit(self, job_id: str, **fields: Any) -> None:
        options = fields.pop("options", {})
        self.submit_bytes(job_id, msgspec.msgpack.encode({"v": 1, **fields}), **options)

    def cancel(self, job_id: str) -> bytes:
        return self.cancel_script(self.redis, self.keys.bell, job_id)

    def entries(self, job_id: str) -> list[Entry]:
        raw = self.redis.xrange(self.keys.out(job_id))
        return [decode_entry(entry_id, fields) for entry_id, fields in raw]

    def wait_for(
        self, job_id: str, enough: Callable[[list[Entry]], bool], timeout_s: float = TIMEOUT_S
    ) -> list[Entry]:
        """Read until `enough`; every wait is for the next entry."""
        deadline = time.monotonic() + timeout_s
        while not enough(entries := self.entries(job_id)):
            assert time.monotonic() < deadline, f"job {job_id} is stuck: {entries[-3:]}"
            last = entries[-1].id if entries else "0-0"
            self.redis.xread({self.keys.out(job_id): last}, block=500)
        return entries

    def wait_tokens(self, job_id: str, count: int) -> list[Entry]:
        return self.wait_for(job_id, lambda e: sum(len(x.ids) for x in e) >= count)

    def result(self, job_id: str) -> Reply:
        return Reply(self.wait_for(job_id, lambda e: bool(e) and e[-1].event == "end")).check()

    def state(self, job_id: str) -> str:
        return (self.redis.hget(self.keys.job(job_id), "state") or b"").decode()


def expected_reply(
    tokenizer: Tokenizer, prompt_ids: list[int], sampling: Sampling, stop: Sequence[str] = ()
) -> tuple[list[int], str]:
    """Ids and text of the stub engine's answer, found the slow way."""
    ids = expected_ids(prompt_ids, sampling)
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count])
        at = min((at for one in stop if (at := text.find(one)) >= 0), default=None)
        if at is not None:
            return ids[:count], text[:at]
    shown = ids[:-1] if ids[-1] in sampling.stop_token_ids else ids
    return ids, tokenizer.decode(shown)
