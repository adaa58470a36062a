"""The inbox takes from its source and from everybody else, and waits for either."""

import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from pagestream.worker.queue.inbox import Inbox

TIMEOUT_S = 10.0


class Speaker:
    """A source that says whole messages of one byte."""

    def __init__(self) -> None:
        self.end, self.mouth = socket.socketpair()
        self.is_over = False

    @property
    def readable(self) -> socket.socket | None:
        return None if self.is_over else self.end

    def take(self) -> list[bytes]:
        said = self.end.recv(100)
        self.is_over = not said
        return [bytes([one]) for one in said]


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    made = Inbox()
    yield made
    made.close()


@pytest.fixture
def speaker(inbox: Inbox) -> Iterator[Speaker]:
    made = Speaker()
    inbox.listen_to(made)
    with made.end, made.mouth:
        yield made


def test_events_come_in_order_all_at_once(inbox: Inbox) -> None:
    inbox.put("a")
    inbox.put("b")
    assert inbox.take(0) == ["a", "b"]
    assert inbox.take(0) == []


def test_take_waits_for_the_first_event(inbox: Inbox) -> None:
    threading.Timer(0.05, inbox.put, ("a",)).start()
    assert inbox.take(TIMEOUT_S) == ["a"]


def test_take_waits_for_the_source(inbox: Inbox, speaker: Speaker) -> None:
    assert inbox.take(0) == []
    threading.Timer(0.05, speaker.mouth.send, (b"ab",)).start()
    assert inbox.take(TIMEOUT_S) == [b"a", b"b"]


def test_what_the_source_said_comes_first(inbox: Inbox, speaker: Speaker) -> None:
    speaker.mouth.send(b"a")
    inbox.put("its end")
    assert inbox.take(0) == [b"a", "its end"]


def test_a_source_that_is_over_wakes_nobody(inbox: Inbox, speaker: Speaker) -> None:
    speaker.mouth.close()
    assert inbox.take(TIMEOUT_S) == []  # its end
    threading.Timer(0.05, inbox.put, ("a",)).start()
    assert inbox.take(TIMEOUT_S) == ["a"]


def test_more_events_than_a_socket_holds_are_all_there(inbox: Inbox) -> None:
    for number in range(100_000):
        inbox.put(number)
    assert inbox.take(0) == list(range(100_000))


def test_whoever_puts_after_the_end_is_not_harmed() -> None:
    inbox = Inbox()
    inbox.close()
    inbox.put("late")


def test_a_signal_handler_may_put_while_the_same_thread_takes(inbox: Inbox) -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: inbox.put("alarm"))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        assert inbox.take(TIMEOUT_S) == ["alarm"]
    finally:
        signal.signal(signal.SIGALRM, before)
