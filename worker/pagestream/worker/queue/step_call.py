"""What the next step tells Redis: all that the held jobs have to say, and the room there is.

This module sends nothing to Redis: `lease` does.
"""

import time

import msgspec

from ..messages import Look
from .calls import Return, StepCall
from .credit import Credit
from .held import Held
from .lease import Lease
from .reply import Job
from .room import Room
from .snapshots import Snapshots
from .stop import StopFlag
from .supervisor import Supervisor


class CallComposer:
    """Makes one step's call after the other; what is in a call is not in the next."""

    def __init__(
        self,
        held: Held,
        room: Room,
        credit: Credit,
        engine: Supervisor,
        stop: StopFlag,
        lease: Lease,
        snapshots: Snapshots,
    ) -> None:
        self._held = held
        self._room = room
        self._credit = credit
        self._engine = engine
        self._stop = stop
        self._lease = lease
        self._snapshots = snapshots

    def next(self) -> StepCall:
        """Return everything there is to write, and how much may be claimed."""
        now_s = time.monotonic()
        beats = self._lease.beat_due_ms() == 0
        changed = self._held.take_changed()
        rows = [row for job in changed if (row := job.row()) is not None]
        leaving = {job.id: job for job in changed if job.reason or job.is_returning}
        offer = self._room.offer(
            [job for job in self._held if job.id not in leaving],
            is_open=self._engine.is_up and not self._stop.drain,
        )
        return StepCall(
            rows=rows,
            ends=[job.end(now_s) for job in leaving.values() if not job.is_returning],
            returns=[_return(job) for job in leaving.values() if job.is_returning],
            slots=offer.slots,
            tokens=offer.tokens,
            aged_slots=offer.aged_slots,
            prefills=[item for job in changed if (item := job.prefill()) is not None],
            victim=offer.victim,
            info=self._heartbeat_info() if beats else "{}",
            snapshot=self._snapshot() if beats and self._lease.knows_time else "",
        )

    def _heartbeat_info(self) -> str:
        load = self._credit.load
        counters = msgspec.structs.asdict(load) if load is not None else {}
        return msgspec.json.encode({"jobs": len(self._held), **counters}).decode()

    def _snapshot(self) -> str:
        """What it all looks like. The engine's part is as of the heartbeat before."""
        if self._snapshots.wants_view:
            self._engine.send(Look())
        return self._snapshots.take(self._held, self._lease.now_ms()).decode()


def _return(job: Job) -> Return:
    tokens_max = job.context_tokens if job.request else None
    return Return(job.id, job.epoch, tokens_max, job.is_cleared)
