from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulated_device import END_TOKEN, SimulatedDevice, continuation

from pagestream.worker.engine.blocks import BlockPool
from pagestream.worker.engine.request import Request
from pagestream.worker.engine.scheduler import Scheduler
from pagestream.worker.messages import Sampling

BLOCK_TOKENS = 4


def make(num_blocks=64, max_running=4, max_step_tokens=16, prefix_cache=True):
    pool = BlockPool(num_blocks, BLOCK_TOKENS)
    return Scheduler(
        pool,
        max_running=max_running,
        max_step_tokens=max_step_tokens,
        prefix_cache=prefix_cache,
    )


def request(name, prompt, max_tokens=8, **sampling):
    params = Sampling(max_tokens=max_tokens, stop_token_ids=(END_TOKEN,), **sampling)
    return Request(name, prompt, params)


def run(scheduler, device, depth=0):
    """Run to the end; tokens by request."""
    tokens: dict[str, list[int]] = {}
    in_flight = deque()
    for _ in range(10_000):
        if not scheduler.has_work and not in_flight:
            return tokens
        plan = scheduler.schedule()
        if len(plan):
            in_flight.append((plan, device.run(plan)))
        if len(in_flight) > depth or not len(plan):
            for output in scheduler.commit(*in_flight.popleft()):
                tokens.setdefault(output.request_id, []).extend(output.token_ids)
        scheduler.check()
    raise AssertionError("the scheduler made no progress")


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_ragged_requests_get_their_own_tokens(depth, prefix_cache):
    scheduler = make(prefix_cache=prefix_cache)
    prompts = {f"r{n}": [(n * i) % 10 for i in range(1, 3 + 5 * n)] for n in range(1, 10)}
    for name, prompt in prompts.items():
        scheduler.add(request(name, prompt, max_tokens=12))
    tokens = run(scheduler, SimulatedDevice(BLOCK_TOKENS), depth)
    assert tokens == {name: continuation(prompt, 12) for name, prompt in prompts.items()}
    assert scheduler.num_chunked_prefills > 0


def test_a_long_prompt_shares_the_budget_with_decodes():
    scheduler = make(max_step_tokens=8)
    device = SimulatedDevice(BLOCK_TOKENS)
    scheduler.add(request("short", [1, 2, 3], max_tokens=20))
    plan = scheduler.schedule()
    scheduler.commit(plan, device.run(plan))
    scheduler.add(request("long", [5] * 30, max_tokens=2))
    plan = scheduler.schedule()
    assert [work.num_tokens for work in plan] == [1, 7]
    assert [work.draws for work in plan] == [True, False]


def test_an_equal_prefix_is_computed_once():
    scheduler = make()
    device = SimulatedDevice(BLOCK_TOKENS)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5]
    scheduler.add(request("first", prompt))
    run(scheduler, device)
    scheduler.add(request("second", prompt))
    plan = scheduler.schedule()
    assert (plan.prefills[0].start, plan.prefills[0].num_tokens) == (8, 1)
    assert scheduler.num_prefix_hit_tokens == 8


def test_a_wholly_cached_prompt_still_computes_its_last_token():
    scheduler = make()
    device = SimulatedDevice(BLOCK_TOKENS)
    scheduler.add(request("first", [1, 2, 3, 4, 5, 6, 7, 8]))
    run(scheduler, device)
    scheduler.add(request("second", [1, 2, 3, 4, 5, 6, 7, 8]))
    assert scheduler.schedule().prefills[0].start == 4


def test_another_salt_shares_nothing():
    scheduler = make()
    device = SimulatedDevice(BLOCK_TOKENS)
    scheduler.add(request("first", [1] * 9))
    run(scheduler, device)
    salted = Request("second", [1] * 9, Sampling(max_tokens=2), cache_salt="tenant")
    scheduler.add(salted)
    assert scheduler.schedule().prefills[0].start == 0


@pytest.mark.parametrize("depth", [0, 1])
def test_preemption_recomputes_and_changes_no_token(depth):
    scheduler = make(num_blocks=14, max_running=4, max_step_tokens=32)
    prompts = {f"r{n}": [n] * 7 for n in range(4)}
    for name, prompt in prompts.items():
        scheduler.add(Request(name, prompt, Sampling(max_tokens=20)))
    tokens = run(scheduler, SimulatedDevice(BLOCK_TOKENS), depth)
    assert scheduler.num_preemptions > 0
    assert tokens == {name: continuation(prompt, 20, False) for name, prompt in prompts.items()}


def test_a_preempted_request_can_be_aborted():
    scheduler = make(num_blocks=9, max_running=2, max_step_tokens=32)
    device = SimulatedDevice(BLOCK_TOKENS)
    for name in "ab":
        scheduler.add(Request(name, [1] * 11, Sampling(max_tokens=16), cache_salt=name))
    while not scheduler.num_preemptions:
        plan = scheduler.schedule()
        scheduler.commit(plan, device.run(plan))
    assert scheduler.load(0).waiting == 1
    assert scheduler.abort("b")
    scheduler.check()
    assert scheduler.load(0).waiting == 0


def test_nothing_is_planned_beyond_a_known_end():
    scheduler = make()
    device = SimulatedDevice(BLOCK_TOKENS)
    scheduler.add(Request("r", [1, 2], Sampling(max_tokens=3)))
    plans = [scheduler.schedule() for _ in range(5)]
    assert [len(plan) for plan in plans] == [1, 1, 1, 0, 0]
    for plan in plans:
        scheduler.commit(plan, device.run(plan))
    assert not scheduler.has_work


def test_a_prompt_is_admitted_only_if_it_fits_whole():
    scheduler = make(num_blocks=11)
    scheduler.add(request("a", [1] * 20, max_tokens=4))
    scheduler.add(request("b", [2] * 24, max_tokens=4))
    plan = scheduler.schedule()
    assert [work.request.request_id for work in plan] == ["a"]


def test_no_more_run_than_there_are_rows():
    scheduler = make(max_running=2)
    for name in "abc":
        scheduler.add(request(name, [1, 2]))
    assert len(scheduler.schedule()) == 2


def test_resumed_tokens_count_and_are_not_drawn_again():
    prompt = [1, 2, 3, 4, 5]
    expected = continuation(prompt, 9)
    done = expected[:3]
    scheduler = make()
    scheduler.add(Request("r", prompt, Sampling(max_tokens=9, stop_token_ids=(END_TOKEN,)), done))
    tokens = run(scheduler, SimulatedDevice(BLOCK_TOKENS))
    assert done + tokens["r"] == expected


def test_min_tokens_holds_back_the_end():
    prompt = next(
        [a, b] for a in range(10) for b in range(10) if continuation([a, b], 8)[0] == END_TOKEN
    )
    scheduler = make()
    scheduler.add(request("r", prompt, max_tokens=3, min_tokens=3))
    assert len(run(scheduler, SimulatedDevice(BLOCK_TOKENS))["r"]) == 3


def test_load_counts_only_the_tail_of_the_last_block_as_waste():
    scheduler = make()
    device = SimulatedDevice(BLOCK_TOKENS)
    scheduler.add(request("r", [1] * 6))
    device.run(scheduler.schedule())
    load = scheduler.load(1)
    assert (load.used_slots, load.allocated_slots, load.running) == (6, 8, 1)


def test_the_longest_context_is_the_first_of_a_step():
    scheduler = make()
    for name, tokens in (("short", 2), ("long", 9), ("middle", 4)):
        scheduler.add(request(name, list(range(tokens))))
    scheduler.commit(scheduler.schedule(), [1, 1, 1])
    decodes = scheduler.schedule().decodes
    assert [work.request.request_id for work in decodes] == ["long", "middle", "short"]


def test_prompts_take_smaller_steps_while_a_request_decodes():
    pool = BlockPool(64, BLOCK_TOKENS)
    scheduler = Scheduler(pool, max_running=4, max_step_tokens=16, max_mixed_tokens=6)
    scheduler.add(request("first", [1] * 16))
    sizes = []
    for name in ("second", "third"):
        plan = scheduler.schedule()
        sizes.append(sum(work.num_tokens for work in plan))
        scheduler.commit(plan, [1] * len(plan))
        scheduler.add(request(name, [2] * 16))
    sizes.append(sum(work.num_tokens for work in scheduler.schedule()))
    assert sizes == [16, 6, 6]


class SchedulerMachine(RuleBasedStateMachine):
    """Random adds, steps, late commits and aborts, with invariants after each and exact tokens."""

    @initialize(
        depth=st.integers(0, 1),
        num_blocks=st.integers(9, 24),
        max_step_tokens=st.integers(5, 24),
        prefix_cache=st.booleans(),
    )
    def start(self, depth, num_blocks, max_step_tokens, prefix_cache):
        self.depth = depth
        self.scheduler = make(num_blocks, 5, max_step_tokens, prefix_cache)
        self.device = SimulatedDevice(BLOCK_TOKENS)
        self.in_flight = deque()
        self.expected = {}
        self.tokens = {}
        self.aborted = set()

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=20),
        max_tokens=st.integers(1, 12),
        salt=st.sampled_from(["", "other"]),
        done=st.integers(0, 3),
    )
    def add(self, prompt, max_tokens, salt, done):
        name = f"r{len(self.expected)}"
        expected = continuation(prompt, max_tokens)
        output = expected[: min(done, len(expected) - 1)]
        params = Sampling(max_tokens=max_tokens, stop_token_ids=(END_TOKEN,))
        self.scheduler.add(Request(name, prompt, params, output, salt))
        self.expected[name] = expected
        self.tokens[name] = list(output)

    @rule()
    def step(self):
        plan = self.scheduler.schedule()
        if len(plan):
            self.in_flight.append((plan, self.device.run(plan)))
        while len(self.in_flight) > self.depth or (self.in_flight and not len(plan)):
            self.commit()

    @precondition(lambda self: self.in_flight)
    @rule()
    def commit(self):
        for output in self.scheduler.commit(*self.in_flight.popleft()):
            assert output.request_id not in self.aborted
            self.tokens[output.request_id] += output.token_ids

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def abort(self, data):
        name = data.draw(st.sampled_from(sorted(self.expected)))
        if self.scheduler.abort(name):
            self.aborted.add(name)

    @invariant()
    def blocks_and_rows_add_up(self):
        if hasattr(self, "scheduler"):
            self.scheduler.check()

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        for _ in range(5_000):
            if not self.scheduler.has_work and not self.in_flight:
                break
            self.step()
            self.scheduler.check()
        assert not self.scheduler.has_work, "requests are left and none of them moves"
        for name, expected in self.expected.items():
            if name in self.aborted:
                assert self.tokens[name] == expected[: len(self.tokens[name])]
            else:
                assert self.tokens[name] == expected
        assert self.scheduler.load(0).allocated_slots == 0


SchedulerMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True
)
TestSchedulerMachine = SchedulerMachine.TestCase
