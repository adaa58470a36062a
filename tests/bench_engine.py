"""An engine without a model, and a clock that its steps move."""

from pagestream.worker.messages import Add, Load, Output, Ready, Step

BLOCK_TOKENS = 16


class FakeClock:
    def __init__(self):
        self.s = 100.0

    def now_s(self):
        return self.s

    def wait(self, seconds):
        self.s += seconds


class FakeEngine:
    """One token a step for each running request; a step takes `step_s`, or what `cost` says."""

    def __init__(
        self, clock, *, max_running=4, num_blocks=1000, step_s=1.0, cost=None, admitted_a_step=99
    ):
        self.handed_over = []
        """(time, request id) of every request."""
        self.running_a_step = []
        self._clock = clock
        self._cost = cost or (lambda new, running: step_s)
        self._max_running = max_running
        self._admitted_a_step = admitted_a_step
        self._num_blocks = num_blocks
        self._left = {}
        self._prompts = {}
        self._running = []
        self._waiting = []
        self._steps = self._used = self._allocated = 0

    def ready(self):
        return Ready(
            max_model_tokens=2048, max_running=self._max_running, num_blocks=self._num_blocks,
            block_tokens=BLOCK_TOKENS, vocab_size=10_001, device="none", weight_bytes=0, kv_bytes=0,
        )  # fmt: skip

    def add(self, add: Add):
        assert add.request_id not in self._left
        self.handed_over.append((self._clock.now_s() - 100, int(add.request_id)))
        self._left[add.request_id] = add.sampling.max_tokens
        self._prompts[add.request_id] = len(add.prompt_ids)
        self._waiting.append((add.request_id, add.sampling.max_tokens))

    def abort(self, request_ids):
        raise AssertionError("nobody aborts")

    @property
    def has_work(self):
        return bool(self._running or self._waiting)

    def step(self):
        new = 0
        while (
            self._waiting and new < self._admitted_a_step and len(self._running) < self._max_running
        ):
            self._running.append(self._waiting.pop(0))
            new += 1
        self._clock.s += self._cost(new, len(self._running))
        self._steps += 1
        self.running_a_step.append(len(self._running))
        outputs = []
        for request_id, total in self._running:
            held = self._prompts[request_id] + total - self._left[request_id]
            self._used += held
            self._allocated += -(-held // BLOCK_TOKENS) * BLOCK_TOKENS
            self._left[request_id] -= 1
            finish = None if self._left[request_id] else "length"
            outputs.append(Output(request_id, [7], finish))
        ended = {output.request_id for output in outputs if output.finish}
        self._running = [one for one in self._running if one[0] not in ended]
        for request_id in ended:
            del self._left[request_id]
        return Step(
            outputs,
            Load(
                running=len(self._running), waiting=len(self._waiting), step=self._steps,
                used_slot_steps=self._used, allocated_slot_steps=self._allocated,
            ),
        )  # fmt: skip
