"""Which queue a model is on, and which a job; one client for each queue in use.

A queue is a served model's name. Jobs are found by asking every queue there is, so an id is enough,
on any gateway. This module knows no HTTP.
"""

import asyncio
from collections.abc import Sequence

from ..batch.batches import BatchStore
from ..batch.due import Due
from ..batch.files import FileStore
from ..calls import Calls
from ..client import AsyncClient
from ..connection import connect_async
from ..errors import InvalidRequest, JobNotFound, UnknownModel
from ..job import AsyncJob, JobStatus
from ..keys import QUEUES, Keys, check_name
from ..protocol import ModelInfo, Payload, decode_payload

_TIMEOUT_MS = 5_000


class Queues:
    """Every queue of one Redis; belongs to one event loop."""

    def __init__(self, redis_url: str, *, queue_limit: int) -> None:
        self._url = redis_url
        self._queue_limit = queue_limit
        self._redis = connect_async(redis_url, client_name="pagestream-gateway")
        self._calls = Calls(self._redis, redis_url, _TIMEOUT_MS)
        self._clients: dict[str, AsyncClient] = {}
        self.files = FileStore(self._calls)
        self.batches = BatchStore(self._calls)
        self.due = Due(self._calls)

    async def ping(self) -> None:
        """Raises: QueueUnavailable: Redis does not answer."""
        await self._calls.command("PING")

    async def names(self) -> list[str]:
        """Return every queue a worker has ever served."""
        names: Sequence[bytes] = await self._calls.command("SMEMBERS", QUEUES)
        return sorted(name.decode() for name in names)

    async def of_model(self, model: str) -> AsyncClient:
        """Return the client of a model's queue.

        A queue without a live worker takes jobs too: they wait for one.

        Raises:
            UnknownModel: no worker has ever served the model here.
        """
        try:
            check_name("queue", model)
            is_known = await self._calls.command("SISMEMBER", QUEUES, model)
        except InvalidRequest:
            is_known = False
        if not is_known:
            names = ", ".join(await self.names()) or "none yet"
            raise UnknownModel(f"the model {model!r} does not exist; served here: {names}")
        return self._client(model)

    async def find(self, job_id: str, tenant: str) -> tuple[AsyncJob, JobStatus, str]:
        """Return a tenant's job, its record, and its model.

        Raises:
            JobNotFound: there is none of this id, or it is another tenant's, or its retention has
                passed.
        """
        missing = JobNotFound(f"there is no {job_id!r} here, or it has been kept long enough")
        try:
            check_name("job id", job_id)
        except InvalidRequest:
            raise missing from None
        names = await self.names()
        found = await asyncio.gather(
            *(self._calls.command("EXISTS", Keys(name).job(job_id)) for name in names)
        )
        for name, is_there in zip(names, found, strict=True):
            if is_there:
                job = self._client(name).job(job_id)
                status = await job.status()
                if status.tenant == tenant:
                    return job, status, name
        raise missing

    async def payload(self, queue: str, job_id: str) -> Payload:
        """Return what a job was asked.

        Raises:
            JobNotFound: its record is gone.
        """
        data: bytes | None = await self._calls.command("HGET", Keys(queue).job(job_id), "payload")
        if data is None:
            raise JobNotFound(f"there is no {job_id!r} here any more")
        return decode_payload(data)

    async def models(self) -> list[tuple[str, ModelInfo]]:
        """Return (queue, what it serves) of every queue with a live worker."""
        names = await self.names()
        served = await asyncio.gather(*(self._client(name).models() for name in names))
        return [(name, infos[0]) for name, infos in zip(names, served, strict=True) if infos]

    async def aclose(self) -> None:
        """Close every connection."""
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))
        await self._redis.aclose()

    def _client(self, queue: str) -> AsyncClient:
        if queue not in self._clients:
            self._clients[queue] = AsyncClient(
                self._url, queue=queue, queue_limit=self._queue_limit
            )
        return self._clients[queue]
