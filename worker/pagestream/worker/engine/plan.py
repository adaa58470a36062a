"""A step as plain data, between the scheduler that plans it and the runner that runs it.

Pure Python: knows no device and no blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

import msgspec
from msgspec.structs import replace

from .request import Request


class Work(msgspec.Struct, frozen=True, gc=False):
    """One request's share of a step: its tokens from `start` on. Nothing refers back to it."""

    request: Request
    row: int
    start: int
    num_tokens: int
    draws: bool
    """True when the share reaches the request's last token, so that the next one is drawn."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One step."""

    decodes: list[Work] = field(default_factory=list[Work])
    """One token each, whose id the device drew itself; longest contexts first."""
    prefills: list[Work] = field(default_factory=list[Work])
    """Prompts or pieces of prompts, whose ids are known on the host."""
    admitted: list[Request] = field(default_factory=list[Request])
    """Requests that got a row in this step: the device knows nothing of them yet."""

    def __iter__(self) -> Iterator[Work]:
        """The step's works in batch order: decodes first."""
        return chain(self.decodes, self.prefills)

    def __len__(self) -> int:
        return len(self.decodes) + len(self.prefills)

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return len(self.decodes) + sum(work.num_tokens for work in self.prefills)

    def cut(self, num_tokens: int) -> "tuple[Plan, Plan]":
        """Two plans that do the same one after the other, the first with so many tokens at most.

        In batch order: a prefill may share blocks that one before it fills. One that is cut has a
        work in both.
        """
        if self.num_tokens <= num_tokens:
            return self, Plan()
        first = Plan(self.decodes[:num_tokens], admitted=self.admitted)
        rest = Plan(self.decodes[num_tokens:])
        room_tokens = num_tokens - len(first.decodes)
        for work in self.prefills:
            here_tokens = min(work.num_tokens, room_tokens)
            room_tokens -= here_tokens
            if here_tokens == work.num_tokens:
                first.prefills.append(work)
                continue
            if here_tokens:
                first.prefills.append(replace(work, num_tokens=here_tokens, draws=False))
            rest.prefills.append(
                replace(
                    work,
                    start=work.start + here_tokens,
                    num_tokens=work.num_tokens - here_tokens,
                )
            )
        return first, rest
