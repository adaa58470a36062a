"""A TCP proxy that does to connections what networks do: cuts, delays, silence, lost answers.

This module knows bytes only: nothing of Redis' protocol, nothing of jobs.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]

READ_BYTES = 1 << 16


class Proxy:
    """Listens on a free loopback port; every connection to it is one to the server.

    Faults act on the connections that are open and on those to come, until `heal`; a cut or a lost
    answer happens once a connection.
    """

    def __init__(self, connect: Connect, random: Random) -> None:
        self.port = 0
        self.lost_answers = 0
        """Answers that the server gave and nobody received."""
        self.cuts = 0
        self._connect = connect
        self._random = random
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._delay_s = 0.0
        self._healthy = asyncio.Event()
        self._healthy.set()

    async def start(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and end every connection."""
        if self._server is not None:
            self._server.close()
        self.heal()
        for link in list(self._links):
            link.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- faults

    def cut(self, bytes_max: int = 4096) -> int:
        """Cut every open connection after a random number of bytes; return how many there are."""
        for link in self._links:
            link.bytes_left = self._random.randint(0, bytes_max)
            if link.bytes_left == 0:
                link.abort()
        return len(self._links)

    def drop_answers(self) -> int:
        """Let the next request of each open connection through and lose its answer."""
        for link in self._links:
            link.loses_answer = True
        return len(self._links)

    def delay(self, seconds: float) -> None:
        """Hold everything up by 0 to twice `seconds`."""
        self._delay_s = seconds

    def silence(self) -> None:
        """Carry nothing, keep every connection open and accept new ones: a partition."""
        self._healthy.clear()

    def forget_links(self) -> int:
        """Carry nothing on the open connections ever again, and tell nobody: half-open peers."""
        for link in self._links:
            link.is_half_open = True
        return len(self._links)

    def heal(self) -> None:
        """Be a good network; what was held up arrives now."""
        self._delay_s = 0.0
        self._healthy.set()

    # ---- bytes

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a connection is served in a task"
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await self._healthy.wait()
            upstream, downstream = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, downstream)
        self._links.add(link)
        try:
            await asyncio.gather(
                self._pump(link, reader, downstream, is_answer=False),
                self._pump(link, upstream, writer, is_answer=True),
            )
        finally:
            link.abort()
            self._links.discard(link)

    async def _pump(
        self,
        link: "_Link",
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        *,
        is_answer: bool,
    ) -> None:
        with suppress(OSError):
            while data := await source.read(READ_BYTES):
                if self._delay_s:
                    await asyncio.sleep(self._random.uniform(0, 2 * self._delay_s))
                await self._healthy.wait()
                if link.is_half_open:
                    continue
                if is_answer and link.loses_answer:
                    self.lost_answers += 1
                    break
                if link.bytes_left is not None:
                    data, link.bytes_left = (
                        data[: link.bytes_left],
                        max(0, link.bytes_left - len(data)),
                    )
                sink.write(data)
                await sink.drain()
                if link.bytes_left == 0:
                    self.cuts += 1
                    break
        link.close()


class _Link:
    """The two ends of one connection."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.bytes_left: int | None = None
        """Carried until the cut, if there is to be one."""
        self.loses_answer = False
        self.is_half_open = False
        self._ends = (client, server)

    def close(self) -> None:
        """End it after what has been written."""
        for end in self._ends:
            end.close()

    def abort(self) -> None:
        """End it now."""
        for end in self._ends:
            end.transport.abort()
