"""A step as plain data, between the scheduler that plans it and the runner that runs it.

Pure Python: knows no device and no blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

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
    grown: list[Request] = field(default_factory=list[Request])
    """Requests that got blocks in this step, the admitted ones among them."""

    def __iter__(self) -> Iterator[Work]:
        """The step's works in batch order: decodes first."""
        yield from self.decodes
        yield from self.prefills

    def __len__(self) -> int:
        return len(self.decodes) + len(self.prefills)
