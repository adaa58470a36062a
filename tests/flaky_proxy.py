"""A proxy between a client and the server's unix socket that loses answers when told to.

proxy.lose_answers = 1   the next request reaches the server, its answer never comes back: the
                         connection is cut instead
proxy.fall_silent()      the connections there are become half-open: nothing passes, nothing ends
"""

import contextlib
import socket
import threading
from pathlib import Path


class FlakyProxy:
    """Listens on a free loopback port; `url` is where."""

    def __init__(self, server_socket: Path) -> None:
        self.lose_answers = 0
        self.lost = 0
        self._silent: set[socket.socket] = set()
        self._server_socket = str(server_socket)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._listener]
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def fall_silent(self) -> None:
        self._silent = set(self._sockets)

    def close(self) -> None:
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server_socket)
                self._sockets += [client, server]
                for source, sink, loses in ((client, server, False), (server, client, True)):
                    thread = threading.Thread(target=self._pump, args=(source, sink, loses))
                    self._threads.append(thread)
                    thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, loses: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if source in self._silent:
                    continue
                if loses and self.lose_answers:
                    self.lose_answers -= 1
                    self.lost += 1
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
