"""Sends the reads of `reads`, synchronously and on an event loop.

This module knows connections: no keys, no replies.
"""

from types import TracebackType
from typing import Any, Self, TypeVar

from redis.exceptions import RedisError

from ..calls import unavailable
from ..connection import connect, connect_async
from .reads import Reads, read_queue, read_queues, read_timeline
from .structs import QueueLive, Timeline

TIMEOUT_S = 5.0
RETRIES = 3
CLIENT_NAME = "pagestream-live"

T = TypeVar("T")


class Live:
    """One Redis server, looked at; a context manager, for any number of threads.

    Every method may raise `QueueUnavailable`: Redis cannot be reached, or refuses a command.
    """

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S, retries: int = RETRIES) -> None:
        """Prepare; the first call connects.

        Args:
            url: where Redis is.
            timeout_s: longest wait for one answer.
            retries: repeats of a call after a lost connection.

        Raises:
            InvalidRequest: the URL is not one that Redis clients take.
        """
        self._url = url
        self._redis: Any = connect(
            url, client_name=CLIENT_NAME, timeout_s=timeout_s, retries=retries
        )
        self._redis.response_callbacks.clear()

    def queues(self) -> list[str]:
        """Return the name of every queue that was ever served or submitted to."""
        return self._run(read_queues())

    def queue(self, name: str) -> QueueLive:
        """Return who waits in a queue and what its workers do.

        Raises:
            InvalidRequest: no queue can have the name.
        """
        return self._run(read_queue(name))

    def timeline(self, queue: str, job_id: str) -> Timeline:
        """Return where a job's time went, or goes.

        Raises:
            InvalidRequest: the queue or the job cannot have the name.
            JobNotFound: Redis has no such job.
        """
        return self._run(read_timeline(queue, job_id))

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, reads: Reads[T]) -> T:
        try:
            commands = next(reads)
            while True:
                commands = reads.send(self._send(commands) if commands else [])
        except StopIteration as done:
            return done.value
        except RedisError as error:
            raise unavailable(self._url, error) from error

    def _send(self, commands: Any) -> list[Any]:
        with self._redis.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return pipeline.execute(raise_on_error=False)


class AsyncLive:
    """`Live` for one event loop; an async context manager. See there for what is raised."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S, retries: int = RETRIES) -> None:
        """Prepare, as `Live` does."""
        self._url = url
        self._redis: Any = connect_async(
            url, client_name=CLIENT_NAME, timeout_s=timeout_s, retries=retries
        )
        self._redis.response_callbacks.clear()

    async def queues(self) -> list[str]:
        """Return the name of every queue that was ever served or submitted to."""
        return await self._run(read_queues())

    async def queue(self, name: str) -> QueueLive:
        """Return who waits in a queue and what its workers do."""
        return await self._run(read_queue(name))

    async def timeline(self, queue: str, job_id: str) -> Timeline:
        """Return where a job's time went, or goes."""
        return await self._run(read_timeline(queue, job_id))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _run(self, reads: Reads[T]) -> T:
        try:
            commands = next(reads)
            while True:
                commands = reads.send(await self._send(commands) if commands else [])
        except StopIteration as done:
            return done.value
        except RedisError as error:
            raise unavailable(self._url, error) from error

    async def _send(self, commands: Any) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute(raise_on_error=False)
