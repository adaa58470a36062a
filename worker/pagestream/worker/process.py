"""The engine in a process of its own, on a socketpair.

The parent never waits for the engine and the engine never waits for the parent, up to a bound: what
the socket does not take at once goes through a small thread. The engine's outbox is bounded, so a
parent that stops reading stops it; the parent's holds no more than the requests it has. The child
ends when the socket does, whatever ended the parent. This module knows no Redis and no torch; the
frames are those of `messages`.
"""

import ctypes
import logging
import multiprocessing
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import NamedTuple, Protocol

import msgspec

from pagestream.producer.errors import PagestreamError

from .errors import OutOfMemory
from .frames import Outbox, frames
from .messages import Abort, Add, Fatal, FromEngine, Load, Look, Output, Ready, Step, ToEngine, View

logger = logging.getLogger(__name__)

OUTBOX_STEPS = 64
"""Steps the engine may be ahead of a parent that does not read."""

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
    """The parent's end. Frames and `Died` go to `post`, from a thread of this object.

    `post(event, size_bytes)` may block: the engine's socket is then not read.
    """

    def __init__(
        self, build: Callable[[], EngineLike], post: Callable[[FromEngine | Died, int], None]
    ) -> None:
        """`build` is called in the child, so it must be picklable."""
        self._build = build
        self._post = post
        self._socket: socket.socket | None = None
        self._outbox: Outbox | None = None
        self._process: BaseProcess | None = None
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Spawn the child; `Ready`, or `Fatal` and `Died`, will be posted."""
        assert self._socket is None, "stop() the engine process before starting another"
        ours, theirs = socket.socketpair()
        process = multiprocessing.get_context("spawn").Process(
            target=_child, args=(theirs, self._build, os.getpid()), name="engine", daemon=True
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
        self._outbox = Outbox(ours)
        self._reader = threading.Thread(
            target=self._read, args=(ours, process), name="engine-reader", daemon=True
        )
        self._reader.start()

    def send(self, message: ToEngine) -> None:
        """Send a message, without waiting for an engine that does not read. For one thread.

        A dead engine is not an error here: `Died` has been or will be posted.
        """
        assert self._outbox is not None, "start() the engine process first"
        self._outbox.put(message)

    def kill(self) -> None:
        """SIGKILL: for an engine that does not answer."""
        if self._process is not None:
            self._process.kill()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Close the socket, which ends the child; kill it after `timeout_s`.

        A child that the system cannot end (its driver does not return) is left behind.
        """
        if self._socket is None or self._process is None or self._reader is None:
            return
        assert self._outbox is not None, "it is made with the socket"
        # Wakes our threads and ends the child's; close() alone would do neither.
        self._shutdown(self._socket)
        self._outbox.close()
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join(timeout_s)
        if self._reader is not threading.current_thread():
            self._reader.join(timeout_s)
        self._socket.close()
        if self._process.exitcode is not None:
            self._process.close()
        self._socket = self._outbox = self._process = self._reader = None

    @staticmethod
    def _shutdown(end: socket.socket) -> None:
        with suppress(OSError):  # the other end may be gone already
            end.shutdown(socket.SHUT_RDWR)

    def _read(self, end: socket.socket, process: BaseProcess) -> None:
        decoder = msgspec.msgpack.Decoder(FromEngine)
        fatal = Fatal("")
        for body in frames(end):
            event = decoder.decode(body)
            if isinstance(event, Fatal):
                fatal = event
            self._post(event, len(body))
        process.join()
        self._post(Died(process.exitcode or 0, fatal.message, fatal.request_id), 0)


# The child's side.


def _child(end: socket.socket, build: Callable[[], EngineLike], parent_pid: int) -> None:
    """Main function of the engine process."""
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    _die_with_parent(parent_pid)
    incoming: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
    outbox = Outbox(end, limit_frames=OUTBOX_STEPS)
    threading.Thread(target=_receive, args=(end, incoming), name="receiver", daemon=True).start()
    try:
        _serve(build(), incoming, outbox)
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


def _serve(engine: EngineLike, incoming: queue.SimpleQueue[ToEngine], outbox: Outbox) -> None:
    """Take messages and run steps until told to drain and nothing runs."""
    ready = engine.ready()
    outbox.put(ready)
    load = Load(free_blocks=ready.num_blocks)
    draining = False
    while not (draining and not engine.has_work):
        for message in _waiting(incoming, block=not engine.has_work):
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
            elif isinstance(message, Look):
                outbox.put(engine.view())
            else:
                draining = True
        if engine.has_work:
            step = engine.step()
            load = step.load
            outbox.put(step)


def _waiting(incoming: queue.SimpleQueue[ToEngine], *, block: bool) -> Iterator[ToEngine]:
    """Every message that waits; the first is waited for if `block`."""
    try:
        yield incoming.get(block)
        while True:
            yield incoming.get_nowait()
    except queue.Empty:
        return


def _receive(end: socket.socket, incoming: queue.SimpleQueue[ToEngine]) -> None:
    decoder = msgspec.msgpack.Decoder(ToEngine)
    for body in frames(end):
        incoming.put(decoder.decode(body))
    os._exit(0)  # the parent is gone, or has closed its end


def _die_with_parent(parent_pid: int) -> None:
    """Ask Linux for SIGKILL when the parent ends: a busy child does not see its socket end."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(0)  # it ended before we asked
