"""The inbox is bounded for the engine and open to everyone else."""

import signal
import threading
import time

from pagestream.worker.queue.inbox import Inbox

TIMEOUT_S = 10.0


def blocked_put(inbox: Inbox, size_bytes: int = 10) -> threading.Thread:
    """A thread that puts a frame; returns once it is blocked or done."""
    thread = threading.Thread(target=inbox.put_frame, args=("late", size_bytes))
    thread.start()
    thread.join(0.1)
    return thread


def test_events_come_in_order_all_at_once() -> None:
    inbox = Inbox()
    inbox.put_frame("a", 5)
    inbox.put("b")
    inbox.put_frame("c", 5)
    assert inbox.take(0) == ["a", "b", "c"]
    assert inbox.take(0) == []


def test_take_waits_for_the_first_event() -> None:
    inbox = Inbox()
    threading.Timer(0.05, inbox.put, ("a",)).start()
    assert inbox.take(TIMEOUT_S) == ["a"]


def test_frames_wait_for_room_in_bytes() -> None:
    inbox = Inbox(max_bytes=20)
    inbox.put_frame("a", 15)
    inbox.put_frame("b", 15)
    late = blocked_put(inbox)
    assert late.is_alive()
    inbox.put("signal")  # others never wait
    assert inbox.take(0) == ["a", "b", "signal"]
    late.join(TIMEOUT_S)
    assert inbox.take(TIMEOUT_S) == ["late"]


def test_frames_wait_when_nobody_takes_for_too_long() -> None:
    inbox = Inbox(max_age_s=0.05)
    inbox.put_frame("a", 1)
    time.sleep(0.06)
    late = blocked_put(inbox)
    assert late.is_alive()
    assert inbox.take(0) == ["a"]
    late.join(TIMEOUT_S)
    assert not late.is_alive()


def test_close_lets_blocked_frames_go() -> None:
    inbox = Inbox(max_bytes=1)
    inbox.put_frame("a", 1)
    late = blocked_put(inbox)
    inbox.close()
    late.join(TIMEOUT_S)
    assert not late.is_alive()


def test_a_signal_handler_may_put_while_the_same_thread_takes() -> None:
    inbox = Inbox()
    before = signal.signal(signal.SIGALRM, lambda *_: inbox.put("alarm"))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        assert inbox.take(TIMEOUT_S) == ["alarm"]
    finally:
        signal.signal(signal.SIGALRM, before)
