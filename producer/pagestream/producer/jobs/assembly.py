"""A jobs process, put together of its parts. This module knows which there are, and no more."""

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress

from ..batch.batches import BatchNotFound, BatchStore
from ..batch.due import Due
from ..batch.files import FileStore
from ..batch.runner import Runner
from ..calls import Calls
from ..connection import connect_async
from ..gateway.settings import GatewaySettings
from ..hooks.addresses import Allowed
from ..hooks.collector import Collector
from ..hooks.events import of_batch
from ..hooks.sender import Sender
from ..hooks.signing import read_secrets
from ..hooks.store import HookStore
from ..keys import Around
from ..schedules import ScheduleStore
from .answering import in_process
from .calling import Calling, calls_worker
from .monitor import Monitor, probes
from .pool import arq_pool
from .process import CONCURRENT, LOOK_S, JobsProcess, Work
from .prompts import Prompts
from .settings import JobsSettings
from .upkeep import Upkeep

log = logging.getLogger(__name__)

TIMEOUT_MS = 5_000


@asynccontextmanager
async def jobs_process(settings: JobsSettings) -> AsyncGenerator[JobsProcess]:
    """Connect everything a jobs process needs.

    Raises:
        InvalidRequest: the URL is not one that Redis clients take.
        BadSettings: a webhook's secret or network is none, or the port cannot be had.
    """
    redis = connect_async(settings.redis_url, client_name="pagestream-jobs", max_connections=64)
    calls = Calls(redis, settings.redis_url, TIMEOUT_MS)
    arq = arq_pool(settings.redis_url, queue_name=Around.ARQ)
    calls_arq = arq_pool(settings.redis_url)
    gateway = GatewaySettings(
        redis_url=settings.redis_url, queue_limit=settings.queue_limit, api_keys=None
    )
    due, batches = Due(calls), BatchStore(calls)
    hooks = HookStore(calls, due)
    monitor = Monitor(due, hooks)
    sender = Sender(
        hooks, _keys(settings), Allowed(settings.webhook_allow), count=monitor.count_webhook
    )
    schedules = ScheduleStore(calls)
    prompts = Prompts(settings.redis_url, schedules)
    try:
        async with in_process(gateway) as asked:
            calling = Calling(asked.queues)
            runner = Runner(
                FileStore(calls),
                batches,
                monitor.counted(asked),
                in_flight=settings.batch_in_flight,
            )

            async def run_batch(batch_id: str) -> None:
                await runner.run(batch_id)
                with suppress(BatchNotFound):
                    if (hook := of_batch(await batches.get(batch_id))) is not None:
                        await hooks.put(hook)

            work: Mapping[str, Work] = {
                "batch": run_batch,
                "hook": sender.send,
                "hooks": Collector(calls, hooks).collect,
                "prompt": prompts.submit,
                "hourly": Upkeep(calls).hourly,
            }
            process = JobsProcess(
                due,
                work,
                arq,
                always=["hooks:", "hourly:"],
                calls_worker=lambda: calls_worker(
                    calls_arq, calling, concurrent=CONCURRENT, poll_s=LOOK_S
                ),
            )
            async with probes(
                settings.health_port, monitor, silent_s=process.silent_s, ping=asked.queues.ping
            ):
                yield process
    finally:
        await sender.aclose()
        await prompts.aclose()
        await calls_arq.aclose()
        await arq.aclose()
        await redis.aclose()


def _keys(settings: JobsSettings) -> list[bytes]:
    secret = settings.webhook_secret
    if secret is None or not secret.get_secret_value():
        log.warning("no PAGESTREAM_WEBHOOK_SECRET is set: webhooks become dead letters")
        return []
    return read_secrets(secret.get_secret_value())
