"""The engine process: frames both ways, and every way it can end."""

import os
import queue
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
from our_processes import cpu_ticks
from stub_engine import StubOptions, build_stub, expected_ids

from pagestream.worker.frames import frames
from pagestream.worker.messages import Abort, Add, Drain, Fatal, Ready, Sampling, Step
from pagestream.worker.process import EXIT_CONFIG, EXIT_FATAL, Died, EngineProcess

TIMEOUT_S = 20.0


class Parent:
    """An engine process and what it posted."""

    def __init__(self, options: StubOptions) -> None:
        self.events: queue.Queue[object] = queue.Queue()
        self.gate = threading.Event()
        self.gate.set()
        self.engine = EngineProcess(partial(build_stub, options), self._post)
        self.engine.start()

    def _post(self, event: object, size_bytes: int) -> None:
        self.gate.wait(TIMEOUT_S)
        self.events.put(event)

    def next(self) -> object:
        return self.events.get(timeout=TIMEOUT_S)

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
        parent.gate.set()
        parent.engine.stop()


def start(parents: list[Parent], options: StubOptions | None = None) -> Parent:
    parents.append(Parent(options or StubOptions()))
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


def test_requests_run_and_the_child_drains(parents: list[Parent]) -> None:
    parent = start(parents)
    assert isinstance(parent.next(), Ready)
    wanted = {name: add(name, tokens=30) for name in ("a", "bb", "ccc")}
    for message in wanted.values():
        parent.engine.send(message)
    assert parent.tokens(3) == {
        name: expected_ids(message.prompt_ids, message.sampling) for name, message in wanted.items()
    }
    parent.engine.send(add("d", tokens=50))
    parent.engine.send(Drain())
    seen, died = parent.until_died()
    assert died == Died(0, "")
    assert sum(len(o.token_ids) for s in seen if isinstance(s, Step) for o in s.outputs) == 50


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


def test_the_child_ends_with_its_socket_even_when_stalled(
    parents: list[Parent], tmp_path: Path
) -> None:
    stall = tmp_path / "stall"
    stall.touch()
    parent = start(parents, StubOptions(stall_file=stall))
    parent.next()
    parent.engine.send(add("a"))
    began = time.monotonic()
    parent.engine.stop()
    assert time.monotonic() - began < 4
    assert parent.until_died()[1].exit_code == 0
    assert parent.engine.pid is None


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
    parent = start(parents, StubOptions(max_model_tokens=10**6, run_ahead_tokens=64))
    parent.next()
    parent.gate.clear()
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
    parent.gate.set()
    for _ in range(200):
        assert isinstance(parent.next(), Step)


def test_frames_are_cut_anywhere_and_a_partial_last_one_is_dropped() -> None:
    ours, theirs = socket.socketpair()
    bodies = [b"", b"a" * 5, b"b" * 70_000, b"c"]
    stream = b"".join(struct.pack(">I", len(body)) + body for body in bodies) + b"\0\0\0\x09half"

    def write() -> None:
        with theirs:
            for start in range(0, len(stream), 997):
                theirs.sendall(stream[start : start + 997])

    writer = threading.Thread(target=write)
    writer.start()
    with ours:
        assert list(frames(ours)) == bodies
    writer.join()


def test_messages_survive_the_encoding() -> None:
    message = add("a", output_ids=[1, 2])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Add) == message
