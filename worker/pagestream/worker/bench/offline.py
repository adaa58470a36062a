"""Plays requests on an engine of this process, and watches every step.

No Redis, no text, no second process: what the engine alone gives. Prompts are run to their exact
lengths: end tokens are ignored, and tokens are drawn greedily.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from ..config import EngineConfig
from ..messages import Add, Load, Ready, Sampling, Step
from ..process import EngineLike
from .batching import RULES, Moment, Rule
from .datasets import Sample, Workload, check_lengths, fit_to_vocabulary
from .metrics import Summary, Timeline, summarize
from .reservation import Held, Reservations
from .scheduling import play_schedule

WARM_UP_TOKENS = 8

Told = Callable[[int, int], None]
"""Called with (requests ended, output tokens so far)."""


class Clock(Protocol):
    """What time it is, and how to wait; tests have their own."""

    def now_s(self) -> float: ...  # noqa: D102
    def wait(self, seconds: float) -> None: ...  # noqa: D102


class RealClock:
    """This machine's."""

    def now_s(self) -> float:
        """Seconds, from anywhere."""
        return time.perf_counter()

    def wait(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine did with a workload, beside the requests' own times."""

    summary: Summary
    steps: int
    running_mean: float
    """Requests that ran in a step."""
    idle_seats: float | None
    """Static and dynamic batches: share of their seats, over the steps, that had ended."""
    kv_waste: float
    """Share of allocated token slots that held no token, over the steps."""
    preemptions: int
    prefix_hit_tokens: int
    kv: dict[str, Held] | None = None
    """With `--kv contiguous`: what each way to hold the requests would have wasted."""
    scheduler_us: float | None = None
    """Median host time of a step's scheduling, measured without a device."""


class Player:
    """An engine and how to run workloads on it, one after another."""

    def __init__(self, engine: EngineLike, clock: Clock | None = None) -> None:
        self.ready: Ready = engine.ready()
        self._engine = engine
        self._clock = clock or RealClock()
        self._load = Load()

    def play(
        self,
        workload: Sequence[Sample],
        arrivals_s: Sequence[float] | None = None,
        *,
        rule: Rule = RULES["continuous"],
        batch_size: int | None = None,
        reservations: bool = False,
        objectives_ms: dict[str, float] | None = None,
        told: Told = lambda ended, tokens: None,
    ) -> tuple[Played, list[Timeline]]:
        """Run a workload to its end.

        Args:
            workload: the requests.
            arrivals_s: when each arrives, ascending; None is all at once.
            rule: when they are handed to the engine.
            batch_size: of static and dynamic batches; None is what the engine runs at once.
            reservations: account for contiguous reservation too.
            objectives_ms: what goodput counts.
            told: hears of the progress.
        """
        run = _Run(self._engine, self._clock, workload, arrivals_s or [0.0] * len(workload))
        run.kv = Reservations(self.ready, self._load) if reservations else None
        is_batch = rule is not RULES["continuous"]
        size = batch_size or self.ready.max_running
        before = last = self._load
        steps = running_steps = seats = seat_steps = live_steps = 0
        while run.is_going:
            if count := rule(run.moment(size)):
                run.hand_over(self._that_fit(run.waiting_samples(count)) if is_batch else count)
                seats = run.running
            if not self._engine.has_work:
                run.wait_for_an_arrival()
                continue
            step = run.step()
            steps += 1
            ended = sum(one.finish is not None for one in step.outputs)
            running_steps += step.load.running + ended
            live_steps += run.running + ended
            seat_steps += seats
            last = step.load
            told(run.ended, run.tokens)
        self._load = last
        allocated = last.allocated_slot_steps - before.allocated_slot_steps
        used = last.used_slot_steps - before.used_slot_steps
        played = Played(
            summary=summarize(workload, run.timelines, objectives_ms),
            steps=steps,
            running_mean=round(running_steps / max(1, steps), 2),
            idle_seats=round(1 - live_steps / max(1, seat_steps), 4) if is_batch else None,
            kv_waste=round(1 - used / max(1, allocated), 5),
            preemptions=last.preemptions - before.preemptions,
            prefix_hit_tokens=last.prefix_hit_tokens - before.prefix_hit_tokens,
            kv=run.kv.summary() if run.kv else None,
        )
        return played, run.timelines

    def _that_fit(self, samples: Sequence[Sample]) -> int:
        """How many of a batch the cache holds to their ends: a batch is admitted whole."""
        room, block_tokens = self.ready.num_blocks - 1, self.ready.block_tokens
        for index, (ids, tokens) in enumerate(samples):
            room -= -(-(len(ids) + tokens) // block_tokens)
            if room < 0:
                return max(1, index)
        return len(samples)


class _Run:
    """One workload on its way: who has arrived, who runs, and what came when."""

    def __init__(
        self,
        engine: EngineLike,
        clock: Clock,
        workload: Sequence[Sample],
        arrivals_s: Sequence[float],
    ) -> None:
        self.timelines = [Timeline(sent_s=at) for at in arrivals_s]
        self.kv: Reservations | None = None
        self.running = self.ended = self.tokens = 0
        self._engine = engine
        self._clock = clock
        self._workload = workload
        self._arrivals_s = arrivals_s
        self._waiting: deque[int] = deque()
        self._arrived = 0
        self._began_s = clock.now_s()

    @property
    def is_going(self) -> bool:
        return self.ended < len(self._workload)

    def moment(self, batch_size: int) -> Moment:
        """Look who has arrived, and say how things stand."""
        now_s = self._now_s()
        while self._arrived < len(self._workload) and self._arrivals_s[self._arrived] <= now_s:
            self._waiting.append(self._arrived)
            self._arrived += 1
        more = self._arrived < len(self._workload)
        return Moment(len(self._waiting), self.running, more, batch_size)

    def waiting_samples(self, count: int) -> list[Sample]:
        return [self._workload[self._waiting[place]] for place in range(count)]

    def hand_over(self, count: int) -> None:
        now_s = self._now_s()
        for _ in range(count):
            index = self._waiting.popleft()
            sample, line = self._workload[index], self.timelines[index]
            line.queue_ms = (now_s - line.sent_s) * 1000
            sampling = Sampling(max_tokens=sample.output_tokens)
            add = Add(request_id=str(index), prompt_ids=sample.prompt_ids, sampling=sampling)
            self._engine.add(add)
            if self.kv is not None:
                self.kv.handed_over(add.request_id, sample)
        self.running += count

    def wait_for_an_arrival(self) -> None:
        assert self._arrived < len(self._workload), "the engine is idle and requests are missing"
        self._clock.wait(max(0.0, self._arrivals_s[self._arrived] - self._now_s()))

    def step(self) -> Step:
        step = self._engine.step()
        now_s = self._now_s()
        for output in step.outputs:
            line = self.timelines[int(output.request_id)]
            # Lengths and ids were checked before the run: an error is a mistake of this program.
            assert output.finish != "error", f"request {output.request_id}: {output.message}"
            line.arrivals_s.append(now_s)
            line.tokens.append(len(output.token_ids))
            self.tokens += len(output.token_ids)
            if output.finish is not None:
                line.ended_s = now_s
                self.ended += 1
                self.running -= 1
        if self.kv is not None:
            self.kv.stepped(step)
        return step

    def _now_s(self) -> float:
        return self._clock.now_s() - self._began_s


def prepare(player: Player, workload: Workload) -> None:
    """Check the requests against the model, and run them with short outputs to warm up.

    Raises:
        BadDataset: a request does not fit into the model's context.
    """
    check_lengths(workload, player.ready.max_model_tokens)
    short = [Sample(ids, min(tokens, WARM_UP_TOKENS)) for ids, tokens in workload]
    player.play(fit_to_vocabulary(short, player.ready.vocab_size, shift=1))


def with_scheduler_time(
    played: Played, workload: Workload, config: EngineConfig, ready: Ready
) -> Played:
    """Add what scheduling the workload costs the host, played again without a device."""
    schedule = play_schedule(
        workload,
        num_blocks=ready.num_blocks,
        max_running=ready.max_running,
        max_step_tokens=config.step_budget_tokens,
        max_mixed_tokens=config.mixed_budget_tokens,
        prefix_cache=config.prefix_cache,
    )
    return msgspec.structs.replace(played, scheduler_us=schedule.median_us)
