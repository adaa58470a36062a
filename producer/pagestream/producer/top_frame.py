"""One frame of `pagestream top`: a terminal picture of queues and workers.

Pure functions from what `Live` read to what rich prints; this module reads nothing and keeps
nothing.
"""

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .live import QueueLive, WorkerLive
from .snapshot import KvCache, SlowJob, WorkerSnapshot

CELLS = {
    "u": ("■", "green"),
    "s": ("■", "cyan"),
    "c": ("▪", "blue"),
    ".": ("·", "bright_black"),
}
"""How a block of the KV cache looks: used, shared, cached, free."""
NAMES = {"u": "one request's", "s": "shared by several", "c": "cached prefix", ".": "free"}
SPARKS = "▁▂▃▄▅▆▇█"
BAR_CELLS = 10
WIDE = 100
"""Columns from which on there is room for everything; below, the least important is left out."""
MAP_LINES = 4
SLOWEST = 10


def frame(
    queues: Sequence[QueueLive],
    history: Mapping[str, Sequence[float]],
    *,
    width: int,
    trouble: str = "",
) -> RenderableType:
    """Return the picture of these queues.

    Args:
        queues: what was read.
        history: worker -> its decode rates so far, oldest first, for the little curve.
        width: columns of the terminal.
        trouble: why nothing newer could be read.
    """
    parts: list[RenderableType] = []
    if trouble:
        parts.append(Text(trouble, style="bold red"))
    if not queues and not trouble:
        parts.append(Text("no queue yet: start a worker, or submit a job", style="yellow"))
    if queues:
        parts.append(Panel(_queues(queues), title="queues", title_align="left"))
    workers = [worker for queue in queues for worker in queue.workers]
    if workers:
        parts.append(Panel(_workers(queues, history, width), title="workers", title_align="left"))
    maps = [
        _map(worker.name, worker.snapshot.kv, width - 4)
        for worker in workers
        if worker.snapshot is not None and worker.snapshot.kv.block_map
    ]
    if maps:
        parts.append(Panel(Group(*maps, _legend()), title="KV blocks", title_align="left"))
    slow = [
        (worker.name, job)
        for worker in workers
        if worker.snapshot
        for job in worker.snapshot.slowest
    ]
    if slow:
        slow.sort(key=lambda one: -one[1].age_ms)
        parts.append(Panel(_slowest(slow[:SLOWEST]), title="slowest requests", title_align="left"))
    return Group(*parts)


def _table(*columns: str, numbers: Iterable[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for column in columns:
        justify = "right" if column in numbers else "left"
        table.add_column(column, justify=justify, no_wrap=True)
    return table


def _queues(queues: Sequence[QueueLive]) -> Table:
    numbers = ("waiting", "running", "oldest", "tenants", "suspects", "dead")
    table = _table("queue", "lane", *numbers, numbers=numbers)
    for queue in queues:
        for index, lane in enumerate(queue.lanes):
            first = index == 0
            table.add_row(
                Text(queue.name if first else "", style="bold"),
                lane.lane,
                _count(lane.waiting, "yellow"),
                _count(lane.running, "green"),
                Text(duration(lane.oldest_ms)) if lane.waiting else Text("–", style="dim"),
                str(len(queue.tenants)) if first else "",
                _count(queue.suspects, "red") if first else "",
                _count(queue.dead_letters, "red") if first else "",
            )
    return table


def _workers(
    queues: Sequence[QueueLive], history: Mapping[str, Sequence[float]], width: int
) -> Table:
    numbers = ("prefill/s", "decode/s", "hits", "preempted")
    shown = len(numbers) + 4 + 1 if width >= WIDE else 6
    table = _table(*("worker", "state", "batch", "KV", *numbers, "")[:shown], numbers=numbers)
    for queue in queues:
        for worker in queue.workers:
            name = Text(worker.name, style="bold")
            state = _state(worker)
            one = worker.snapshot
            if one is None:
                table.add_row(name, state)
                continue
            cells: list[RenderableType] = [
                name,
                state,
                _bar(one.occupancy, f"{one.running}/{one.slots}"),
                _bar(one.kv.usage, f"{one.kv.usage:.0%}"),
                f"{one.prefill_tokens_per_s:,.0f}",
                f"{one.decode_tokens_per_s:,.0f}",
                f"{one.prefix_hit_rate:.0%}",
                f"{one.preemptions:,}",
                spark(history.get(worker.name, ())),
            ]
            table.add_row(*cells[:shown])
    return table


def _state(worker: WorkerLive) -> Text:
    if not worker.is_alive:
        return Text("dead", style="bold red")
    snapshot: WorkerSnapshot | None = worker.snapshot
    if snapshot is None:
        return Text("starting", style="yellow")
    if snapshot.refuses:
        return Text(snapshot.refuses.removeprefix("it is "), style="yellow")
    return Text(f"up {duration(snapshot.uptime_s * 1000)}", style="green")


def _bar(share: float, label: str) -> Text:
    filled = round(min(max(share, 0.0), 1.0) * BAR_CELLS)
    color = "red" if share > 0.95 else "yellow" if share > 0.8 else "green"
    bar = Text("█" * filled, style=color)
    return bar.append("░" * (BAR_CELLS - filled), style="bright_black").append(f" {label}")


def _map(name: str, kv: KvCache, width: int) -> Text:
    """The cache of one worker; more blocks than cells are shown by what most of them are."""
    cells = kv.block_map
    room = max(width, 1) * MAP_LINES
    span = -(-len(cells) // room)
    shown = [_most(cells[start : start + span]) for start in range(0, len(cells), span)]
    blocks = span * kv.blocks_per_cell
    text = Text(f"{name}  ", style="bold").append(
        f"{kv.used_blocks:,} used, {kv.cached_blocks:,} cached of {kv.total_blocks:,} blocks of "
        f"{kv.block_tokens} tokens" + (f"; a cell is {blocks} blocks" if blocks > 1 else "") + "\n",
        style="not bold",
    )
    for letter in shown:
        text.append(*CELLS.get(letter, ("?", "red")))
    return text


def _most(letters: str) -> str:
    """The letter that stands for several: the commonest, but a block in use is never hidden."""
    busy = [letter for letter in letters if letter in "us"]
    return max(busy or letters, key=letters.count)


def _legend() -> Text:
    text = Text()
    for letter, name in NAMES.items():
        mark, style = CELLS[letter]
        text.append(mark, style=style).append(f" {name}   ", style="dim")
    return text


def _slowest(jobs: Sequence[tuple[str, SlowJob]]) -> Table:
    numbers = ("age", "prompt", "output")
    table = _table("job", "state", *numbers, "lane", "tenant", "worker", numbers=numbers)
    for worker, job in jobs:
        table.add_row(
            job.id,
            job.state,
            duration(job.age_ms),
            f"{job.prompt_tokens:,}",
            f"{job.output_tokens:,}",
            job.lane,
            job.tenant,
            worker,
        )
    return table


def _count(number: int, style: str) -> Text:
    return Text(f"{number:,}", style=style if number else "dim")


def spark(values: Sequence[float]) -> Text:
    """Return a little curve of values, the highest at full height."""
    most = max(values, default=0.0)
    if most <= 0:
        return Text("")
    levels = [round(value / most * (len(SPARKS) - 1)) for value in values]
    return Text("".join(SPARKS[level] for level in levels), style="green")


def duration(ms: float) -> str:
    """Return a time as people say it: `850 ms`, `12.3 s`, `4m10s`, `3h05m`."""
    if ms < 1_000:
        return f"{ms:.0f} ms"
    seconds = ms / 1_000
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{seconds:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours < 48 else f"{hours // 24}d{hours % 24:02d}h"
