"""Makes the snapshot that goes to Redis with a heartbeat, from what the loop and the engine know.

It remembers the last one's counters, for rates. This module knows no Redis and no Prometheus.
"""

import heapq
import time
from collections.abc import Callable, Collection

import msgspec

from pagestream.producer.snapshot import KvCache, SlowJob, SlowState, WorkerSnapshot

from ..messages import RequestView, View
from .credit import Credit
from .meter import Meter
from .reply import Job

SLOWEST = 10
"""Jobs that a snapshot names."""


class Snapshots:
    """One worker's snapshots, one after the other."""

    def __init__(self, credit: Credit, meter: Meter, refuses: Callable[[], str]) -> None:
        """`refuses()` says why no job is taken now, or nothing."""
        self._credit = credit
        self._meter = meter
        self._refuses = refuses
        self.view: View | None = None
        """What the engine last showed of its scheduler; None before that, and after it died."""
        self._before = (meter.started_s, 0, 0, 0)

    @property
    def wants_view(self) -> bool:
        """Whether the engine has done something since it was last looked at."""
        return self.view is None or self.view.step != self._meter.load.step

    def take(self, jobs: Collection[Job], now_ms: float) -> bytes:
        """Return the snapshot of now as JSON; `now_ms` is Redis's time."""
        now_s, meter, ready = time.monotonic(), self._meter, self._credit.ready
        counters = (now_s, meter.prefill_tokens, meter.generation_tokens, meter.steps)
        elapsed_s, *counts = (new - old for new, old in zip(counters, self._before, strict=True))
        self._before = counters
        prefill, decode, steps = (round(count / max(elapsed_s, 1e-3), 1) for count in counts)
        running = meter.load.running if jobs else 0
        snapshot = WorkerSnapshot(
            at_ms=int(now_ms),
            uptime_s=round(now_s - meter.started_s, 1),
            device=ready.device,
            running=running,
            waiting=max(0, len(jobs) - running),
            slots=ready.max_running,
            kv=self._kv(bool(jobs)),
            prefill_tokens_per_s=prefill,
            decode_tokens_per_s=decode,
            steps_per_s=steps,
            prompt_tokens=meter.prompt_tokens,
            output_tokens=meter.generation_tokens,
            preemptions=meter.preemptions,
            prefix_query_tokens=meter.prefix_query_tokens,
            prefix_hit_tokens=meter.prefix_hit_tokens,
            finished=dict(meter.finished),
            refuses=self._refuses(),
            slowest=self._slowest(jobs, now_s),
        )
        return msgspec.json.encode(snapshot)

    def debug(self, jobs: Collection[Job]) -> bytes:
        """Return all that is known of these jobs, but for their texts, as JSON; from any thread.

        The engine's part is as of the last heartbeat.
        """
        now_s, view = time.monotonic(), self.view
        seen = {one.request_id: one for one in view.requests} if view else {}
        return msgspec.json.encode(
            {
                "refuses": self._refuses(),
                "uptime_s": round(now_s - self._meter.started_s, 1),
                "ready": self._credit.ready,
                "load": msgspec.structs.asdict(self._meter.load),
                "view": {
                    "step": view.step,
                    "idle_blocks": view.idle_blocks,
                    "blocks_per_cell": view.blocks_per_cell,
                    "block_map": view.block_map,
                }
                if view
                else None,
                "jobs": [self._debug_job(job, seen.get(job.request_id), now_s) for job in jobs],
            }
        )

    @staticmethod
    def _debug_job(job: Job, seen: RequestView | None, now_s: float) -> dict[str, object]:
        return {
            "id": job.id,
            "epoch": job.epoch,
            "lane": job.lane,
            "tenant": job.tenant,
            "age_ms": round((now_s - job.accepted_s) * 1000, 1),
            "crashes": job.crashes,
            "deadline_ms": job.deadline_ms,
            "prompt_tokens": job.prompt_tokens if job.request else None,
            "output_tokens": len(job.ids),
            "published_tokens": job.published,
            "sent_to_engine": job.is_sent,
            "returning": job.is_returning,
            "reason": job.reason,
            "engine": msgspec.structs.asdict(seen) if seen else None,
        }

    def _kv(self, has_jobs: bool) -> KvCache:
        total = self._credit.ready.num_blocks - 1  # block 0 is nobody's
        used = total - self._meter.load.free_blocks if has_jobs and self._meter.load.step else 0
        view = self.view
        return KvCache(
            total_blocks=total,
            used_blocks=used,
            cached_blocks=view.idle_blocks if view else 0,
            block_tokens=self._credit.block_tokens,
            block_map=view.block_map if view else "",
            blocks_per_cell=view.blocks_per_cell if view else 1,
        )

    def _slowest(self, jobs: Collection[Job], now_s: float) -> list[SlowJob]:
        seen = self.view.requests if self.view else []
        states: dict[str, SlowState] = {one.request_id: one.state for one in seen}
        oldest = heapq.nsmallest(SLOWEST, jobs, key=lambda job: job.accepted_s)
        return [
            SlowJob(
                id=job.id,
                lane=job.lane,
                tenant=job.tenant,
                state=states.get(job.request_id, "waiting") if job.is_sent else "preparing",
                age_ms=round((now_s - job.accepted_s) * 1000, 1),
                prompt_tokens=job.prompt_tokens if job.request else 0,
                output_tokens=len(job.ids),
            )
            for job in oldest
        ]
