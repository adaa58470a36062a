"""The engine process: frames both ways, and every way it can end."""

import os
import signal
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from our_processes import cpu_ticks
from stub_engine import StubOptions, build_stub, expected_ids

from pagestream.worker.frames import Incoming, Outbox
from pagestream.worker.messages import Abort, Add, Fatal, Ready, Sampling, Step
from pagestream.worker.process import EXIT_CONFIG, EXIT_FATAL, Died, EngineProcess
from pagestream.worker.queue.inbox import Inbox

TIMEOUT_S = 20.0


class Parent:
    """An engine process and what it said."""

    def __init__(self, options: StubOptions, **more: Any) -> None:
        self.inbox = Inbox()
        self.engine = EngineProcess(partial(build_stub, options), self.inbox.put, **more)
        self.inbox.listen_to(self.engine)
        self.engine.start()
        self.events: deque[object] = deque()

    def next(self) -> object:
        deadline = time.monotonic() + TIMEOUT_S
        while not self.events:  # the end, or half a message, wakes the inbox as well
            assert time.monotonic() < deadline, "the engine says nothing"
            self.events.extend(self.inbox.take(TIMEOUT_S))
        return self.events.popleft()

    def close(self) -> None:
        self.engine.stop()
        self.inbox.close()

    def until_died(self) -> tuple[list[object], Died]:
        seen: list[object] = []
        while not isinstance(event := self.next(), Died):
            seen.append(event)
        return seen, event

    def tokens(self, count: int) -> dict[str, list[int]]:
        """Ids of each request until `count` requests have finished."""
        ids: dict[str, list[int]] = {}
        while count:
            step = self.next()
            assert isinstance(step, Step)
            for output in step.outputs:
                ids.setdefault(output.request_id, []).extend(output.token_ids)
                count -= output.finish is not None
        return ids


@pytest.fixture
def parents() -> Iterator[list[Parent]]:
    made: list[Parent] = []
    yield made
    for parent in made:
        parent.close()


def start(parents: list[Parent], options: StubOptions | None = None, **more: Any) -> Parent:
    parents.append(Parent(options or StubOptions(), **more))
    return parents[-1]


def add(name: str, tokens: int = 5, **more: object) -> Add:
    return Add(
        request_id=name, prompt_ids=[1, 2, len(name)], sampling=Sampling(max_tokens=tokens), **more
    )


def test_an_engine_without_memory_names_the_request(parents: list[Parent]) -> None:
    parent = start(parents, StubOptions(hungry_token=1))
    parent.engine.send(add("big"))
    seen, died = parent.until_died()
    fatal = seen[-1]
    assert isinstance(fatal, Fatal)
    assert "no memory" in fatal.message
    assert died == Died(EXIT_FATAL, fatal.message, "big")


def test_requests_run_beside_each_other(parents: list[Parent]) -> None:
    parent = start(parents)
    assert isinstance(parent.next(), Ready)
    wanted = {name: add(name, tokens=30) for name in ("a", "bb", "ccc")}
    for message in wanted.values():
        parent.engine.send(message)
    assert parent.tokens(3) == {
        name: expected_ids(message.prompt_ids, message.sampling) for name, message in wanted.items()
    }


def test_abort_and_resume(parents: list[Parent]) -> None:
    parent = start(parents, StubOptions(step_s=0.002))
    parent.next()
    parent.engine.send(add("a", tokens=500))
    whole = expected_ids([1, 2, 1], Sampling(max_tokens=20))
    parent.engine.send(add("b", tokens=20, output_ids=whole[:15]))
    assert parent.tokens(1)["b"] == expected_ids([1, 2, 1], Sampling(max_tokens=20))[15:]
    parent.engine.send(Abort(["a", "unknown"]))
    parent.engine.send(add("c", tokens=2))
    ids = parent.tokens(1)
    assert len(ids["c"]) == 2
    assert len(ids.get("a", [])) < 400


def test_a_request_that_add_refuses_harms_no_other(parents: list[Parent]) -> None:
    parent = start(parents, StubOptions(poison_token=9))
    parent.next()
    parent.engine.send(Add(request_id="bad", prompt_ids=[9], sampling=Sampling()))
    parent.engine.send(add("good"))
    step = parent.next()
    assert isinstance(step, Step)
    assert step.outputs[0].finish == "error"
    assert step.outputs[0].message == "poison"
    assert len(parent.tokens(1)["good"]) == 5


def test_crash_gives_whole_frames_then_died(parents: list[Parent], tmp_path: Path) -> None:
    (tmp_path / "crash").write_text("1")
    parent = start(parents, StubOptions(crash_file=tmp_path / "crash", crash_at_step=7))
    parent.next()
    parent.engine.send(add("a", tokens=50))
    seen, died = parent.until_died()
    assert died.exit_code == 9
    # Some of the last frames may have died with it; what came is whole and in order.
    ids = [i for step in seen if isinstance(step, Step) for o in step.outputs for i in o.token_ids]
    assert ids == expected_ids([1, 2, 1], Sampling(max_tokens=50))[: len(ids)]
    assert len(ids) <= 6
    parent.engine.stop()
    parent.engine.start()
    assert isinstance(parent.next(), Ready)


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        (StubOptions(fail="bug here"), EXIT_FATAL, "RuntimeError: bug here"),
        (StubOptions(refuse="no such model"), EXIT_CONFIG, "no such model"),
    ],
    ids=["bug", "config"],
)
def test_an_engine_that_cannot_start_says_why(
    parents: list[Parent], options: StubOptions, status: int, text: str
) -> None:
    seen, died = start(parents, options).until_died()
    assert [type(event) for event in seen] == [Fatal]
    assert died.exit_code == status
    assert text in died.message
    assert ("Traceback" in died.message) == (status == EXIT_FATAL)


def test_killed_child(parents: list[Parent]) -> None:
    parent = start(parents)
    parent.next()
    parent.engine.kill()
    assert parent.until_died()[1].exit_code == -signal.SIGKILL
    parent.engine.send(add("a"))  # no error: `Died` said it


def test_a_stalled_child_ends_at_once(parents: list[Parent], tmp_path: Path) -> None:
    stall = tmp_path / "stall"
    stall.touch()
    parent = start(parents, StubOptions(stall_file=stall))
    parent.next()
    parent.engine.send(add("a"))
    began = time.monotonic()
    parent.engine.stop()
    assert time.monotonic() - began < 4
    assert parent.engine.pid is None


def test_the_child_ends_with_its_socket(parents: list[Parent]) -> None:
    """Whatever became of the parent: idle, and in the middle of a request."""
    for tokens in (0, 10**6):
        parent = start(parents, StubOptions(max_model_tokens=10**7))
        parent.next()
        if tokens:
            parent.engine.send(add("a", tokens=tokens))
            parent.next()
        assert parent.engine.readable
        parent.engine.readable.shutdown(socket.SHUT_WR)
        assert parent.until_died()[1] == Died(0, "")


def test_the_child_ignores_the_signals_of_its_group(parents: list[Parent]) -> None:
    parent = start(parents)
    parent.next()
    assert parent.engine.pid
    os.kill(parent.engine.pid, signal.SIGINT)
    os.kill(parent.engine.pid, signal.SIGTERM)
    parent.engine.send(add("a"))
    assert len(parent.tokens(1)["a"]) == 5


def test_an_engine_that_does_not_read_holds_nobody_up(parents: list[Parent]) -> None:
    """Stopped, as one in a call that keeps the interpreter's lock: its socket fills."""
    parent = start(parents)
    parent.next()
    assert parent.engine.pid
    os.kill(parent.engine.pid, signal.SIGSTOP)
    sending = threading.Thread(
        target=lambda: [
            parent.engine.send(add("x" * (index + 1), output_ids=[1] * 100_000, tokens=100_005))
            for index in range(20)
        ],
        daemon=True,
    )
    sending.start()
    sending.join(TIMEOUT_S)
    assert not sending.is_alive(), "send waits for the engine"
    os.kill(parent.engine.pid, signal.SIGCONT)
    assert list(parent.tokens(20)) == ["x" * (index + 1) for index in range(20)]
    os.kill(parent.engine.pid, signal.SIGSTOP)
    for index in range(20):
        parent.engine.send(add("y" * (index + 1), output_ids=[1] * 100_000))
    parent.engine.kill()
    assert parent.until_died()[1].exit_code == -signal.SIGKILL
    parent.engine.stop()
    assert "sender" not in [thread.name for thread in threading.enumerate()]


def test_a_parent_that_does_not_read_stops_the_engine(parents: list[Parent]) -> None:
    # Steps of 64 requests and 64 tokens each are large frames: socket and outbox fill at once.
    options = StubOptions(max_model_tokens=10**6, run_ahead_tokens=64)
    parent = start(parents, options, outbox_bytes=2**20)
    parent.next()
    for index in range(64):
        parent.engine.send(add("x" * (index + 1), tokens=64 * 2000))
    before = -1
    steps = 0
    # It runs ahead of us by a bound: its CPU time stops growing.
    deadline = time.monotonic() + TIMEOUT_S
    while steps < 3 and time.monotonic() < deadline:
        ticks = cpu_ticks(parent.engine.pid)
        steps = steps + 1 if ticks == before else 0
        before = ticks
        time.sleep(0.1)
    assert steps == 3, "the engine never stopped"
    for _ in range(200):
        assert isinstance(parent.next(), Step)


def test_messages_are_cut_anywhere_and_a_partial_last_one_is_dropped() -> None:
    ours, theirs = socket.socketpair()
    sent = [b"", b"a" * 5, b"b" * 700_000, b"c"]
    bodies = [msgspec.msgpack.encode(one) for one in sent]
    stream = b"".join(struct.pack(">I", len(body)) + body for body in bodies) + b"\0\0\0\x09half"

    def write() -> None:
        with theirs:
            for start in range(0, len(stream), 997):
                theirs.sendall(stream[start : start + 997])

    writer = threading.Thread(target=write)
    writer.start()
    with ours:
        incoming = Incoming(ours, bytes)
        taken: list[bytes] = []
        while not incoming.has_ended:
            taken += incoming.take(wait=True)
        assert taken == sent
        assert incoming.take(wait=True) == incoming.take(wait=False) == []
    writer.join()


def test_nothing_is_waited_for_unless_asked() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        incoming = Incoming(ours, bytes)
        assert incoming.take(wait=False) == []
        theirs.sendall(b"\0\0\0\x03\xc4")
        assert incoming.take(wait=False) == []
        theirs.sendall(b"\x01a")
        assert incoming.take(wait=False) == [b"a"]
        assert not incoming.has_ended


def test_what_waits_to_be_sent_is_bounded_in_bytes_and_in_age() -> None:
    for bounds in ({"max_bytes": 1.0}, {"max_age_s": 0.0}):
        ours, theirs = socket.socketpair()
        outbox = Outbox(ours, **bounds)
        large = Fatal("x" * 2**22)
        outbox.put(large)  # what the socket does not take waits
        late = threading.Thread(target=outbox.put, args=(large,), daemon=True)
        late.start()
        late.join(0.1)
        assert late.is_alive()
        incoming = Incoming(theirs, Fatal)
        taken: list[object] = []
        while len(taken) < 2:
            taken += incoming.take(wait=True)
        late.join(TIMEOUT_S)
        assert not late.is_alive()
        assert taken == [large, large]
        outbox.close()
        ours.close()
        theirs.close()


def test_messages_survive_the_encoding() -> None:
    message = add("a", output_ids=[1, 2])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Add) == message
