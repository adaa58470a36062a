"""A worker: an engine process, the queue loop, and what lies between its start and its exit status.

    0  drained, or stopped before it took a job      70  the engine failed, or died too often
    69 Redis cannot be reached at the start          75  Redis stayed away, the name is taken, or
    78 the settings or the model cannot work             the worker stalled
                                                     (2  wrong flags)
This module knows no jobs and no steps.
"""

import gc
import logging
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from redis import Redis
from redis.exceptions import BusyLoadingError, RedisError, ResponseError

from pagestream.producer.connection import connect
from pagestream.producer.durability import check_fsync_always
from pagestream.producer.errors import PagestreamError, WorkerNameTaken, WorkerReplaced
from pagestream.producer.keys import Keys
from pagestream.producer.protocol import ModelInfo

from .building import build_real_engine
from .config import EngineConfig
from .health import probes
from .job_log import JobLog
from .messages import Fatal, Ready
from .models.hub import generation_defaults, resolve
from .monitor import Monitor
from .process import EXIT_CONFIG, Died, EngineLike, EngineProcess
from .queue.backoff import Patience, RedisGone
from .queue.inbox import Inbox
from .queue.intake import Intake, IntakeThread, model_info
from .queue.lease import Lease
from .queue.loop import EngineLost, QueueLoop
from .queue.stop import StopFlag
from .queue.tokenizer import Tokenizer
from .settings import WorkerSettings
from .stalls import check_timeouts, watchdog
from .tracing import JobTracer, exporting

logger = logging.getLogger(__name__)

OK = 0
REDIS_UNAVAILABLE = 69
ENGINE_FAILED = 70
TRY_AGAIN = 75
BAD_CONFIG = EXIT_CONFIG

LAST_WORD_S = 5.0
"""How long a worker that was told to stop at once waits for Redis."""


class _Exit(Exception):
    """Ends the start-up with a status and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def run_worker(
    settings: WorkerSettings,
    build: Callable[[EngineConfig], EngineLike] = build_real_engine,
) -> int:
    """Serve until a signal says stop, and return the exit status.

    The first SIGTERM or SIGINT stops claiming and lets running jobs finish within the grace; the
    second hands them back at once, with their progress.
    """
    stop = StopFlag()
    inbox = Inbox()
    with _signals(stop, inbox):
        return serve(settings, stop, inbox, build)


def serve(
    settings: WorkerSettings,
    stop: StopFlag,
    inbox: Inbox,
    build: Callable[[EngineConfig], EngineLike],
) -> int:
    """Serve until `stop` says so, and return the exit status; whoever sets it wakes the inbox."""
    engine = EngineProcess(partial(build, settings.engine_config()), inbox.put)
    inbox.listen_to(engine)
    monitor = Monitor(settings.redis_url, answer_s=settings.heartbeat_ttl)
    try:
        with probes(settings.health_port, monitor.health, monitor.pages), exporting():
            _serve(settings, stop, inbox, engine, monitor)
    except _Exit as ending:
        if ending.status != OK:
            logger.error("%s", ending)
        return ending.status
    except PagestreamError as error:
        logger.error("%s", error)
        return TRY_AGAIN if isinstance(error, WorkerNameTaken | WorkerReplaced) else BAD_CONFIG
    except RedisGone as error:
        logger.error("%s", error)
        return TRY_AGAIN
    except EngineLost as error:
        logger.error("%s; every job went back to the queue", error)
        return ENGINE_FAILED
    except Exception:
        logger.exception("the worker failed")
        return ENGINE_FAILED
    finally:
        inbox.close()
        engine.stop()
        monitor.close()
    return OK


def _serve(
    settings: WorkerSettings,
    stop: StopFlag,
    inbox: Inbox,
    engine: EngineProcess,
    monitor: Monitor,
) -> None:
    keys = Keys(settings.queue)
    worker = settings.name or f"{socket.gethostname()}-{secrets.token_hex(4)}"
    redis = connect(settings.redis_url, client_name=worker)
    try:
        redis.ping()
    except BusyLoadingError:
        # It is there, and reads its data; which may take minutes after a restart.
        Patience(lambda: LAST_WORD_S if stop.drain else settings.redis_patience).call(redis.ping)
    except RedisError as error:
        raise _Exit(
            REDIS_UNAVAILABLE, f"no Redis at {_without_password(settings.redis_url)}: {error}"
        ) from error
    if settings.durability == "strict":
        check_fsync_always(_append_settings(redis))
    check_timeouts(redis, settings.work_stall)
    directory = resolve(settings.model, settings.revision, weights=False)
    engine.start()
    tokenizer = Tokenizer.load(directory)
    defaults = generation_defaults(directory)
    ready = _wait_until_ready(inbox, stop)
    info = model_info(keys.queue, ready, tokenizer)

    def limit_s() -> float:
        return LAST_WORD_S if stop.now else settings.redis_patience

    patience = Patience(limit_s, monitor.health.answered, monitor.health.failed)
    ttl_ms = int(settings.heartbeat_ttl * 1000)
    lease = Lease(
        *(redis, keys, worker),
        heartbeat_ttl_ms=ttl_ms,
        heartbeat_ms=ttl_ms // 3,
        crash_cap=settings.max_crashes,
    )
    # What was imported stays. A collection that looks at all of it holds every stream up for 0.2 s,
    # and claims with them.
    gc.collect()
    gc.freeze()
    patience.call(lease.register, info)
    logger.info("%s", _banner(worker, info, ready))
    intake = IntakeThread(
        Intake(tokenizer, info, defaults),
        partial(Patience(limit_s).call, lease.replay),
        inbox.put,
    )
    loop = QueueLoop(
        *(lease, engine, intake, inbox, ready, stop, patience, monitor.meter),
        observers=[JobTracer(keys.queue, worker), *_job_logs(settings)],
        grace_s=settings.grace,
        step_stall_s=settings.step_stall,
    )
    try:
        monitor.serves(loop, keys.queue, worker)
        with watchdog(loop, engine, redis, keys, monitor, limit_s=settings.work_stall):
            loop.run()
    except EngineLost:
        _leave(lease)
        raise
    finally:
        intake.close()
    # Not after a bug: the jobs it may have met then count a crash when this worker is found dead.
    _leave(lease)
    logger.info("worker %s has stopped", worker)


def _job_logs(settings: WorkerSettings) -> list[JobLog]:
    wanted = settings.log_jobs or settings.log_prompts
    return [JobLog(prompts=settings.log_prompts)] if wanted else []


def _append_settings(redis: Redis) -> dict[str, str]:
    try:
        settings: Any = redis.config_get("append*")
        return settings
    except ResponseError as error:
        raise _Exit(BAD_CONFIG, f"--durability strict has to read CONFIG: {error}") from error


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _leave(lease: Lease) -> None:
    with suppress(RedisError):
        lease.leave()


def _wait_until_ready(inbox: Inbox, stop: StopFlag) -> Ready:
    """Wait for the engine to load; a request to stop ends the wait."""
    began_s = time.monotonic()
    message = ""
    while not stop.drain:
        for event in inbox.take(1.0):
            if isinstance(event, Ready):
                logger.info("the engine is ready after %.1f s", time.monotonic() - began_s)
                return event
            if isinstance(event, Fatal):
                message = event.message
            if isinstance(event, Died):
                status = BAD_CONFIG if event.exit_code == EXIT_CONFIG else ENGINE_FAILED
                raise _Exit(status, message or f"the engine process ended ({event.exit_code})")
    raise _Exit(OK, "stopped before the engine was ready")


def _banner(worker: str, info: ModelInfo, ready: Ready) -> str:
    full_length = info.kv_tokens / max(info.context_tokens, 1)
    return (
        f"worker {worker} serves {info.name!r} on {ready.device}: "
        f"weights {ready.weight_bytes / 1e9:.2f} GB, "
        f"KV cache {ready.kv_bytes / 1e9:.2f} GB = {info.kv_tokens:,} tokens, "
        f"context {info.context_tokens:,} tokens ({full_length:.1f} requests of full length fit, "
        f"{info.max_running} may run at once)"
    )


@contextmanager
def _signals(stop: StopFlag, inbox: Inbox) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into requests to stop."""

    def handle(signum: int, frame: object) -> None:
        stop.request()
        inbox.put(None)  # wakes the loop

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
