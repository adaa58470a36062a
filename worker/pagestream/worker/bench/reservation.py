"""What the KV cache would have wasted, had each request reserved one contiguous piece of it.

Three ways to hold the same running requests, step by step:

    paged     blocks as tokens come: what the engine did
    own       prompt + the tokens it will generate, reserved at admission: needs to know the length
    context   the longest a request may get, reserved at admission: what a server without that
              knowledge has to do

Knows no device: what the engine says after each step is enough.
"""

from itertools import islice

import msgspec

from ..messages import Load, Ready, Step
from .datasets import Sample


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """One way to hold the requests, on average over a run."""

    waste: float
    """Share of the held token slots that held no token."""
    tokens_a_request: float
    """Token slots that a running request held."""
    fit_at_once: int
    """Requests that the cache holds at once when each takes `tokens_a_request`."""


class Reservations:
    """Follows a run and adds up what each way would have held.

    Relies on the engine admitting in the order of handing over, and preempting the newest: the
    running requests are then always the first so many that have not ended.
    """

    def __init__(self, ready: Ready, before: Load) -> None:
        self._capacity_tokens = (ready.num_blocks - 1) * ready.block_tokens
        self._context_tokens = ready.max_model_tokens
        self._before = before
        self._own_tokens: dict[str, int] = {}
        """Of each request that has not ended, in the order of handing over."""
        self._held = {"own": 0, "context": 0}
        self._request_steps = 0
        self._last = before

    def handed_over(self, request_id: str, sample: Sample) -> None:
        """Follow a request from here."""
        self._own_tokens[request_id] = len(sample.prompt_ids) + sample.output_tokens

    def stepped(self, step: Step) -> None:
        """Count a step: who ran in it, and what they would have held."""
        ended = [
            self._own_tokens.pop(output.request_id)
            for output in step.outputs
            if output.finish is not None
        ]
        still = islice(self._own_tokens.values(), step.load.running)
        running = len(ended) + step.load.running
        self._held["own"] += sum(ended) + sum(still)
        self._held["context"] += running * self._context_tokens
        self._request_steps += running
        self._last = step.load

    def summary(self) -> dict[str, Held]:
        """The three ways, by name."""
        used = self._last.used_slot_steps - self._before.used_slot_steps
        paged = self._last.allocated_slot_steps - self._before.allocated_slot_steps
        held = {"paged": paged, **self._held}
        return {name: self._held_as(slots, used) for name, slots in held.items()}

    def _held_as(self, slot_steps: int, used_slot_steps: int) -> Held:
        a_request = slot_steps / max(1, self._request_steps)
        return Held(
            waste=round(1 - used_slot_steps / max(1, slot_steps), 4),
            tokens_a_request=round(a_request, 1),
            fit_at_once=int(self._capacity_tokens / max(1.0, a_request)),
        )
