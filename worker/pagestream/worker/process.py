"""The engine in a process of its own, on a socketpair.

The parent never waits for the engine and the engine never waits for the parent, up to a bound: what
the socket does not take at once goes through a small thread. What the engine has to say is bounded,
so a parent that stops reading stops it; what the parent has, by the requests there are. Each reads
its socket on the thread that acts on it: a thread between would cost every message a change of
thread. The child ends when the socket does, whatever ended the parent. This module knows no Redis
and no torch; the frames are those of `messages`.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import NamedTuple, Protocol

from pagestream.producer.errors import PagestreamError

from .errors import OutOfMemory
from .frames import Incoming, Outbox
from .messages import Abort, Add, Fatal, FromEngine, Load, Output, Ready, Step, ToEngine, View

logger = logging.getLogger(__name__)

OUTBOX_BYTES = 64 * 2**20
OUTBOX_AGE_S = 60.0
"""What the engine may have to say to a parent that does not read; then it stops."""

EXIT_FATAL = 70
"""Exit status of an engine process that failed: its `Fatal` holds the traceback."""

EXIT_CONFIG = 78
"""Exit status of one that was asked for what cannot work: its `Fatal` says what, in a sentence."""

_PR_SET_PDEATHSIG = 1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EngineLike(Protocol):
    """What the child runs."""

    def ready(self) -> Ready:
        """What was loaded and allocated."""
        ...

    def add(self, request: Add, /) -> None:
        """Take a request; what is wrong with it comes as an output with `finish="error"`."""
        ...

    def abort(self, request_ids: list[str], /) -> None:
        """Forget requests; unknown ids are ignored."""
        ...

    def step(self) -> Step:
        """Run one step; outputs may be empty."""
        ...

    def view(self) -> View:
        """What the scheduler holds now."""
        ...

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        ...


class Died(NamedTuple):
    """The engine process has ended; every whole frame it sent came before this."""

    exit_code: int
    message: str
    """The text of its `Fatal`, if it could send one."""
    request_id: str = ""
    """The request for which it had no memory, if that is why."""


class EngineProcess:
    """The parent's end; for one thread, but `kill` may be called from any."""

    def __init__(
        self,
        build: Callable[[], EngineLike],
        post: Callable[[Died], None],
        *,
        outbox_bytes: int = OUTBOX_BYTES,
    ) -> None:
        """Prepare; `start` comes next.

        Args:
            build: called in the child, so it must be picklable.
            post: told of the end, from a thread of this object, once `take` has given all there is.
            outbox_bytes: what the engine may have to say to a parent that does not read.
        """
        self._build = build
        self._post = post
        self._outbox_bytes = outbox_bytes
        self._socket: socket.socket | None = None
        self._incoming: Incoming | None = None
        self._outbox: Outbox | None = None
        self._process: BaseProcess | None = None
        self._waiter: threading.Thread | None = None
        self._fatal = Fatal("")

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._process.pid if self._process else None

    @property
    def readable(self) -> socket.socket | None:
        """What to wait for: `take` has something to give once it can be read."""
        return None if self._waiter is not None else self._socket

    def start(self) -> None:
        """Spawn the child; it will say `Ready`, or `Fatal` and end."""
        assert self._socket is None, "stop() the engine process before starting another"
        ours, theirs = socket.socketpair()
        process = multiprocessing.get_context("spawn").Process(
            target=_child,
            args=(theirs, self._build, os.getpid(), self._outbox_bytes),
            name="engine",
            daemon=True,
        )
        # The child inherits the mask and unblocks it once it ignores them: a Ctrl-C is the
        # parent's.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._socket, self._process = ours, process
        self._outbox, self._incoming = Outbox(ours), Incoming(ours, FromEngine)
        self._fatal = Fatal("")

    def send(self, message: ToEngine) -> None:
        """Send a message, without waiting for an engine that does not read.

        A dead engine is not an error here: `Died` has been or will be posted.
        """
        assert self._outbox is not None, "start() the engine process first"
        self._outbox.put(message)

    def take(self) -> list[FromEngine]:
        """Return what the engine has said; never waits."""
        if self.readable is None:
            return []
        assert self._incoming is not None, "it is made with the socket"
        assert self._process is not None, "it is started with the socket"
        events: list[FromEngine] = self._incoming.take(wait=False)
        for event in events:
            if isinstance(event, Fatal):
                self._fatal = event
        if self._incoming.has_ended:
            # A process may take long to end, or never, when its driver does not return.
            self._waiter = threading.Thread(
                target=self._await_end, args=(self._process,), name="engine-waiter", daemon=True
            )
            self._waiter.start()
        return events

    def kill(self) -> None:
        """SIGKILL: for an engine that does not answer."""
        if self._process is not None:
            self._process.kill()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the child, which has nothing to put in order.

        One that the system cannot end (its driver does not return) is left behind after
        `timeout_s`.
        """
        if self._socket is None or self._process is None:
            return
        assert self._outbox is not None, "it is made with the socket"
        with suppress(OSError):  # the other end may be gone already
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the outbox; close() alone would not
        self._outbox.close()
        self._process.kill()
        self._process.join(timeout_s)
        if self._waiter is not None:
            self._waiter.join(timeout_s)
        self._socket.close()
        if self._process.exitcode is not None:
            self._process.close()
        self._socket = self._incoming = self._outbox = self._process = self._waiter = None

    def _await_end(self, process: BaseProcess) -> None:
        process.join()
        self._post(Died(process.exitcode or 0, self._fatal.message, self._fatal.request_id))


# The child's side.


def _child(
    end: socket.socket, build: Callable[[], EngineLike], parent_pid: int, outbox_bytes: int
) -> None:
    """Main function of the engine process."""
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    _die_with_parent(parent_pid)
    outbox = Outbox(end, max_bytes=outbox_bytes, max_age_s=OUTBOX_AGE_S)
    try:
        _serve(build(), Incoming(end, ToEngine), outbox)
        status = 0
    except OutOfMemory as error:
        _print_traceback()
        outbox.put(Fatal(str(error), error.request_id))
        status = EXIT_FATAL
    except PagestreamError as error:
        outbox.put(Fatal(str(error)))
        status = EXIT_CONFIG
    except BaseException:
        outbox.put(Fatal(_print_traceback()))
        status = EXIT_FATAL
    outbox.join()
    # Not sys.exit: device libraries may hang in their own clean-up.
    os._exit(status)


def _print_traceback() -> str:
    text = traceback.format_exc()
    print(text, file=sys.stderr, flush=True)  # noqa: T201 (the log of a process that is ending)
    return text


def _serve(engine: EngineLike, incoming: Incoming, outbox: Outbox) -> None:
    """Take messages and run steps until the parent is gone, or has closed its end."""
    ready = engine.ready()
    outbox.put(ready)
    load = Load(free_blocks=ready.num_blocks)
    while not incoming.has_ended:
        for message in incoming.take(wait=not engine.has_work):
            if isinstance(message, Add):
                try:
                    engine.add(message)
                except Exception as error:
                    # A request the engine cannot take harms no other.
                    logger.exception("request %s was refused", message.request_id)
                    refused = Output(message.request_id, [], "error", 0, str(error))
                    outbox.put(Step([refused], load))
            elif isinstance(message, Abort):
                engine.abort(message.request_ids)
            else:
                outbox.put(engine.view())
        if engine.has_work:
            step = engine.step()
            load = step.load
            outbox.put(step)


def _die_with_parent(parent_pid: int) -> None:
    """Ask Linux for SIGKILL when the parent ends: a busy child does not see its socket end."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(0)  # it ended before we asked
