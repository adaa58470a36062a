"""Who runs in the next step, how many tokens each, and in which blocks.

One rule, no phases: each step closes the gap between a request's `num_computed_tokens` and its
`num_tokens`, under one token budget. Chunked prefill, a prefix hit, preemption and a resume are all
that rule.

    schedule() ─► Plan ─► (the device computes) ─► commit(plan, token_ids) ─► outputs

Plans may overlap: the next one is made before the last one's tokens are known. Their ids are then
in flight; how many there are is known, so only an end token can make a planned token useless. The
device runs steps in order, so whoever gets a freed block writes it after any earlier step did.
Pure Python: knows no device, no text and no Redis.
"""

from collections import deque
from collections.abc import Sequence
from operator import attrgetter
from typing import Literal

from ..messages import Load, Output, Sampling, View
from .blocks import BlockPool
from .plan import Plan, Work
from .request import Request, State
from .view import view_of

_BY_START = attrgetter("start")


class Scheduler:
    """Owns the requests and their blocks. A request is waiting, running, or forgotten."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_running: int,
        max_step_tokens: int,
        max_mixed_tokens: int | None = None,
        prefix_cache: bool = True,
    ) -> None:
        self._pool = pool
        self._max_running = max_running
        self._max_step_tokens = max_step_tokens
        self._max_mixed_tokens = max_mixed_tokens or max_step_tokens
        self._prefix_cache = prefix_cache
        self._requests: dict[str, Request] = {}
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []  # oldest first; the newest is preempted first
        self._free_rows = list(range(max_running - 1, -1, -1))
        self.num_preemptions = 0
        self.num_prefix_hit_tokens = 0
        self.num_prefix_query_tokens = 0
        self.num_prefill_tokens = 0
        self.num_chunked_prefills = 0
        self._unfilled_slots = 0  # of the running requests' blocks: what they do not hold yet
        self._used_slot_steps = 0
        self._allocated_slot_steps = 0

    # ---- requests in and out

    def add(self, request: Request) -> None:
        """Queue a request behind those that wait; it must fit into the pool when it is alone."""
        assert self._pool.blocks_for(request.max_tokens) <= self._pool.num_usable, (
            f"{request.request_id} may reach {request.max_tokens} tokens, more than the cache holds"
        )
        assert request.request_id not in self._requests, f"{request.request_id} is here already"
        self._requests[request.request_id] = request
        self._waiting.append(request)

    def abort(self, request_id: str) -> bool:
        """Forget a request and free its blocks; False if it is not here (it may have finished)."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        if request.state is State.RUNNING:
            self._running.remove(request)
        else:
            self._waiting.remove(request)
        self._forget(request)
        return True

    @property
    def has_work(self) -> bool:
        """True while any request waits or runs."""
        return bool(self._requests)

    # ---- a step

    def schedule(self) -> Plan:
        """Plan a step: running requests first, oldest first; then whoever waits and fits whole."""
        plan = Plan()
        preemptions = self.num_preemptions
        decodes = any(request.is_decoding for request in self._running)
        most_tokens = self._max_mixed_tokens if decodes else self._max_step_tokens
        budget_tokens = self._plan_running(plan, most_tokens)
        if self.num_preemptions == preemptions:
            self._admit(plan, budget_tokens)
        # Attention begins with the first: a long context begun last would end after all the others.
        plan.decodes.sort(key=_BY_START, reverse=True)
        used, allocated = self._slots()
        self._used_slot_steps += used
        self._allocated_slot_steps += allocated
        return plan

    def commit(self, plan: Plan, token_ids: Sequence[int]) -> list[Output]:
        """Take the ids that a step drew, one a work in batch order; finish who reached an end.

        Works whose request was aborted, or finished while the step ran, are skipped.
        """
        outputs: list[Output] = []
        rows_freed = False
        finished = State.FINISHED  # looked up once: an enum's members are slow to reach
        for work, token_id in zip(plan, token_ids, strict=True):
            request = work.request
            if not work.draws or request.state is finished:
                continue
            request.output_ids.append(token_id)
            num_drawn = len(request.output_ids)
            sampling = request.sampling
            finish = None
            if num_drawn >= sampling.max_tokens or token_id in sampling.stop_token_ids:
                finish = self._finish_reason(sampling, num_drawn, token_id)
            outputs.append(Output(request.request_id, [token_id], finish, request.cached_tokens))
            if finish:
                rows_freed |= request.state is State.RUNNING
                if request.state is State.WAITING:
                    self._waiting.remove(request)
                self._forget(request)
        if rows_freed:
            self._running = [r for r in self._running if r.state is State.RUNNING]
        return outputs

    def load(self, step: int, times_out_of_memory: int = 0) -> Load:
        """How full the engine is; the arguments are the runner's to know."""
        used, allocated = self._slots()
        return Load(
            running=len(self._running),
            waiting=len(self._waiting),
            free_blocks=self._pool.num_available,
            used_slots=used,
            allocated_slots=allocated,
            used_slot_steps=self._used_slot_steps,
            allocated_slot_steps=self._allocated_slot_steps,
            preemptions=self.num_preemptions,
            prefix_hit_tokens=self.num_prefix_hit_tokens,
            step=step,
            prefix_query_tokens=self.num_prefix_query_tokens,
            prefill_tokens=self.num_prefill_tokens,
            out_of_memory=times_out_of_memory,
        )

    def view(self, step: int) -> View:
        """What is here, for people to look at."""
        return view_of([*self._running, *self._waiting], self._pool, step)

    def _slots(self) -> tuple[int, int]:
        """(used, allocated) token slots: they differ by what the last blocks have still free."""
        allocated = self._pool.num_in_use * self._pool.block_tokens
        return allocated - self._unfilled_slots, allocated

    # ---- planning

    def _plan_running(self, plan: Plan, budget_tokens: int) -> int:
        # Most of a step's host time is here, so decodes are planned in line. The list may lose its
        # end: the newest is preempted, at or behind the one that asks, never planned already.
        block_tokens, decodes = self._pool.block_tokens, plan.decodes
        for request in self._running:
            if not budget_tokens:
                break
            start = request.num_computed_tokens
            if start < request.prefill_tokens:
                budget_tokens -= self._plan_prefill(plan, request, budget_tokens)
                continue
            end = start + 1
            if end >= request.max_tokens:
                continue  # its last token is in flight
            if end > len(request.blocks) * block_tokens and not self._grow(request):
                break
            row = request.row
            assert row is not None, f"{request.request_id} runs without a row"
            decodes.append(Work(request, row, start, 1, True))
            request.num_computed_tokens = end
            request.num_tokens = end + 1  # the one that this step draws
            if end >= (request.num_named_blocks + 1) * block_tokens:
                self._name_full_blocks(request)
            budget_tokens -= 1
        self._unfilled_slots -= len(decodes)
        return budget_tokens

    def _admit(self, plan: Plan, budget_tokens: int) -> None:
        while self._waiting and self._free_rows and budget_tokens > 0:
            request = self._waiting[0]
            cached = self._match(request)
            needed = self._pool.blocks_for(request.num_tokens) - len(cached)
            taken = needed + self._pool.num_idle_among(cached)
            # Every running request may want a block soon: admitting into those would only preempt.
            if taken + len(self._running) > self._pool.num_available:
                break
            self._waiting.popleft()
            self._start(request, cached, needed)
            plan.admitted.append(request)
            budget_tokens -= self._plan_prefill(plan, request, budget_tokens)

    def _plan_prefill(self, plan: Plan, request: Request, budget_tokens: int) -> int:
        """Give the request tokens of the step, and count them as computed; returns how many.

        Its blocks count so too: whoever is planned behind it may share those that this step fills,
        for every layer writes its keys and values before any sequence attends to them.
        """
        assert request.row is not None, f"{request.request_id} runs without a row"
        start = request.num_computed_tokens
        num_tokens = min(request.num_tokens - start, budget_tokens)
        request.num_computed_tokens = start + num_tokens
        draws = request.num_computed_tokens == request.num_tokens
        request.num_tokens += draws
        plan.prefills.append(Work(request, request.row, start, num_tokens, draws))
        self.num_chunked_prefills += not draws
        self.num_prefill_tokens += num_tokens
        self._unfilled_slots -= num_tokens
        self._name_full_blocks(request)
        return num_tokens

    # ---- blocks

    def _match(self, request: Request) -> list[int]:
        """Cached blocks of the request's prefix; at least one token is left to compute."""
        if not self._prefix_cache:
            return []
        block_tokens = self._pool.block_tokens
        request.extend_hashes(block_tokens)
        most_blocks = (request.num_tokens - 1) // block_tokens
        return self._pool.cache.match(request.block_hashes[:most_blocks])

    def _start(self, request: Request, cached: list[int], needed: int) -> None:
        # One step is in flight at most, so a preempted request's last token is known by now.
        assert request.num_known_tokens == request.num_tokens, (
            f"{request.request_id} restarts with a token unknown"
        )
        self._pool.share(cached)
        request.blocks = cached + self._pool.allocate(needed)
        request.num_named_blocks = len(cached)
        request.num_computed_tokens = len(cached) * self._pool.block_tokens
        request.cached_tokens = request.num_computed_tokens
        request.prefill_tokens = request.num_tokens
        self._unfilled_slots += needed * self._pool.block_tokens
        request.row = self._free_rows.pop()
        request.state = State.RUNNING
        self._running.append(request)
        self.num_prefix_hit_tokens += request.cached_tokens
        self.num_prefix_query_tokens += request.num_tokens if self._prefix_cache else 0

    def _grow(self, request: Request) -> bool:
        """Give a decode its next block; False if it had to be preempted itself."""
        while not self._pool.num_available:
            victim = self._running.pop()
            self._preempt(victim)
            if victim is request:
                return False
        request.blocks += self._pool.allocate(1)
        self._unfilled_slots += self._pool.block_tokens
        return True

    def _preempt(self, request: Request) -> None:
        """Take a request's blocks and put it at the head of the line; it is recomputed later."""
        self._release(request)
        request.num_computed_tokens = 0
        request.state = State.WAITING
        self._waiting.appendleft(request)
        self.num_preemptions += 1

    def _forget(self, request: Request) -> None:
        request.state = State.FINISHED
        del self._requests[request.request_id]
        self._release(request)

    def _release(self, request: Request) -> None:
        self._name_full_blocks(request)
        self._unfilled_slots -= self._unfilled(request)
        self._pool.release(request.blocks)
        request.blocks = []
        if request.row is not None:
            self._free_rows.append(request.row)
            request.row = None

    def _unfilled(self, request: Request) -> int:
        """Token slots of the request's blocks that hold nothing yet."""
        return len(request.blocks) * self._pool.block_tokens - request.num_computed_tokens

    def _name_full_blocks(self, request: Request) -> None:
        """Tell the prefix cache of blocks whose tokens are all computed and known."""
        if not self._prefix_cache:
            return
        block_tokens = self._pool.block_tokens
        computed = min(request.num_computed_tokens, request.num_known_tokens) // block_tokens
        if computed == request.num_named_blocks:
            return
        request.extend_hashes(block_tokens)
        for index in range(request.num_named_blocks, computed):
            self._pool.cache.add(request.block_hashes[index], request.blocks[index])
        request.num_named_blocks = computed

    @staticmethod
    def _finish_reason(
        sampling: Sampling, num_drawn: int, token_id: int
    ) -> Literal["stop", "length"] | None:
        if token_id in sampling.stop_token_ids and num_drawn >= sampling.min_tokens:
            return "stop"
        return "length" if num_drawn >= sampling.max_tokens else None

    def check(self) -> None:
        """Assert the invariants; for tests and for an idle engine."""
        self._pool.check()
        held = [block for request in self._running for block in request.blocks]
        assert len(set(held)) == self._pool.num_in_use, "a block in use belongs to no request"
        unfilled = sum(self._unfilled(request) for request in self._running)
        assert self._unfilled_slots == unfilled, f"{self._unfilled_slots} slots, not {unfilled}"
        assert len(self._running) + len(self._waiting) == len(self._requests), "a request is lost"
        rows = [request.row for request in self._running if request.row is not None]
        assert sorted([*self._free_rows, *rows]) == list(range(self._max_running)), "rows leak"
        for request in self._waiting:
            assert not request.blocks, f"{request.request_id} holds blocks while it waits"
            assert request.row is None, f"{request.request_id} holds a row while it waits"
