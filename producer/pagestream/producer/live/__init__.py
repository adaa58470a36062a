"""What goes on in a queue now: who waits and how long, what workers do, where a job's time went.

    with Live("redis://localhost:6379/0") as live:
        for name in live.queues():
            queue = live.queue(name)                 # lanes, tenants, workers with their snapshots
        timeline = live.timeline("demo", job_id)     # from its acceptance to its last token

`AsyncLive` is the same on an event loop. Both only read, a few pipelined commands a call, so that
`pagestream top`, a dashboard and an exporter of metrics see the same numbers; prompts and texts are
no part of them.
"""

from .reader import AsyncLive, Live
from .structs import JobClaim, LaneLive, QueueLive, TenantLive, Timeline, WorkerLive

__all__ = [
    "AsyncLive",
    "JobClaim",
    "LaneLive",
    "Live",
    "QueueLive",
    "TenantLive",
    "Timeline",
    "WorkerLive",
]
