"""Frames on a socket: a length, and that many bytes; and a way to send them without waiting.

This module knows no processes; what is in a frame is `messages`.
"""

import logging
import queue
import socket
import struct
import threading
from collections.abc import Iterator

import msgspec

from .messages import FromEngine, ToEngine

logger = logging.getLogger(__name__)

_LENGTH = struct.Struct(">I")
_READ_BYTES = 1 << 18


def _frame(body: bytes) -> bytes:
    return _LENGTH.pack(len(body)) + body


def frames(end: socket.socket) -> Iterator[bytes]:
    """Give whole frames until the end of the stream; a last partial frame is dropped."""
    buffer = bytearray()
    while True:
        try:
            data = end.recv(_READ_BYTES)
        except OSError:
            return
        if not data:
            return
        buffer += data
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(buffer, start)
            stop = start + _LENGTH.size + size
            if len(buffer) < stop:
                break
            yield bytes(memoryview(buffer)[start + _LENGTH.size : stop])
            start = stop
        del buffer[:start]


class Outbox:
    """A way to send: at once where the socket has room, behind what waits otherwise.

    A thread of its own would have to wait for the interpreter's lock, which the engine holds while
    it launches the next step: tokens would lie until then.
    """

    def __init__(self, end: socket.socket, *, limit_frames: int = 0) -> None:
        """`put` blocks while so many frames wait; 0: it never does."""
        self._end = end
        self._encoder = msgspec.msgpack.Encoder()
        self._waiting: queue.Queue[bytes | None] = queue.Queue(limit_frames)
        self._thread = threading.Thread(target=self._send_waiting, name="sender", daemon=True)
        self._thread.start()

    def put(self, message: FromEngine | ToEngine) -> None:
        """Send a message, or drop it if the other end is gone. For one thread."""
        frame = _frame(self._encoder.encode(message))
        sent = 0
        if not self._waiting.unfinished_tasks:
            try:
                sent = self._end.send(frame, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
            except OSError as error:
                logger.debug("nobody takes messages any more: %s", error)
                return
        if sent < len(frame):
            self._waiting.put(frame[sent:])

    def join(self) -> None:
        """Wait until everything has been sent."""
        self._waiting.join()

    def close(self) -> None:
        """End the thread, once the socket is shut down."""
        self._waiting.put(None)
        self._thread.join()

    def _send_waiting(self) -> None:
        while (rest := self._waiting.get()) is not None:
            try:
                self._end.sendall(rest)
            except OSError as error:
                logger.debug("nobody takes messages any more: %s", error)
            self._waiting.task_done()
