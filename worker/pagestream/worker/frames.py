"""Frames on a socket: a length, and that many bytes; both ends of it, for whole messages.

This module knows no processes; what is in a frame is `messages`.
"""

import logging
import socket
import struct
import threading
import time
from collections import deque
from typing import Any

import msgspec

from .messages import FromEngine, ToEngine

logger = logging.getLogger(__name__)

_LENGTH = struct.Struct(">I")
_READ_BYTES = 1 << 18


class Incoming:
    """The messages that arrive on a socket. For one thread."""

    def __init__(self, end: socket.socket, kind: Any) -> None:
        """`kind` is what the messages are: `ToEngine` or `FromEngine`."""
        self._end = end
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._rest = b""
        """The beginning of a frame that is not whole yet."""
        self.has_ended = False
        """The other end is gone; a last partial frame is dropped."""

    def take(self, *, wait: bool) -> list[Any]:
        """Return every whole message that is there; wait for one, or for the end, if `wait`."""
        taken: list[Any] = []
        while not self.has_ended:
            must_wait = wait and not taken
            try:
                data = self._end.recv(_READ_BYTES, 0 if must_wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self.has_ended = not data
            taken += self._messages(self._rest + data)
            if len(data) < _READ_BYTES and (taken or not wait):
                break
        return taken

    def _messages(self, data: bytes) -> list[Any]:
        """Return what the whole frames in `data` say, and keep what is behind them."""
        messages: list[Any] = []
        start = 0
        while len(data) - start >= _LENGTH.size:
            begin = start + _LENGTH.size
            stop = begin + _LENGTH.unpack_from(data, start)[0]
            if len(data) < stop:
                break
            messages.append(self._decode(data[begin:stop]))
            start = stop
        self._rest = data[start:]
        return messages


class Outbox:
    """A way to send: at once where the socket has room, behind what waits otherwise.

    A thread of its own would have to wait for the interpreter's lock, which the engine holds while
    it launches the next step: tokens would lie until then. What waits may be bounded, in bytes and
    in age.
    """

    def __init__(
        self,
        end: socket.socket,
        *,
        max_bytes: float = float("inf"),
        max_age_s: float = float("inf"),
    ) -> None:
        """`put` blocks while those that wait are too many or too old."""
        self._end = end
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._encoder = msgspec.msgpack.Encoder()
        self._changed = threading.Condition()
        self._waiting: deque[tuple[float, bytes]] = deque()
        """When each began to wait, and what is left of it; the first is being sent."""
        self._bytes = 0
        self._is_closed = False
        self._thread = threading.Thread(target=self._send_waiting, name="sender", daemon=True)
        self._thread.start()

    def put(self, message: FromEngine | ToEngine) -> None:
        """Send a message, or drop it if the other end is gone. For one thread."""
        body = self._encoder.encode(message)
        frame = _LENGTH.pack(len(body)) + body
        sent = 0
        if not self._waiting:
            try:
                sent = self._end.send(frame, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
            except OSError as error:
                logger.debug("nobody takes messages any more: %s", error)
                return
        if sent < len(frame):
            with self._changed:
                self._changed.wait_for(lambda: not self._is_full())
                self._waiting.append((time.monotonic(), frame[sent:]))
                self._bytes += len(frame) - sent
                self._changed.notify_all()

    def join(self) -> None:
        """Wait until everything has been sent."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting)

    def close(self) -> None:
        """End the thread, once the socket is shut down."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def _is_full(self) -> bool:
        if not self._waiting:
            return False
        age_s = time.monotonic() - self._waiting[0][0]
        return self._bytes >= self._max_bytes or age_s > self._max_age_s

    def _send_waiting(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if not self._waiting:
                    return
                _, rest = self._waiting[0]
            try:
                self._end.sendall(rest)
            except OSError as error:
                logger.debug("nobody takes messages any more: %s", error)
            with self._changed:
                self._waiting.popleft()
                self._bytes -= len(rest)
                self._changed.notify_all()
