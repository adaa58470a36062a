"""What a reply must be, and how far one is from it: pure functions of entries and a known answer.

This module knows no connection, no processes and no faults.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pagestream.producer.protocol import Entry, FinishReason

from .answers import Answer

REPLACEMENT = "\ufffd"


@dataclass
class Tally:
    """Counts over some replies; all but the first two and `terminals` should be zero."""

    jobs: int = 0
    tokens: int = 0
    lost: int = 0
    """Token indices that never came, those of jobs that never ended included."""
    repeated: int = 0
    """Token indices that came again, or out of order."""
    wrong: int = 0
    """Tokens that differ from the answer; a text or an end that does counts one."""
    terminals: int = 0
    """Terminal records: as many as jobs."""

    def add(self, other: "Tally") -> None:
        """Count another tally in."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def clean(self) -> bool:
        """Whether every job has its whole answer, once, and one end."""
        return not (self.lost or self.repeated or self.wrong) and self.terminals == self.jobs


def check(answer: Answer, entries: Iterable[Entry], *, early: FinishReason | None = None) -> Tally:
    """Compare a reply, read from its beginning, with the answer.

    Args:
        answer: what it must be.
        entries: the reply's entries in order.
        early: it may end early for this reason, but nothing may be wrong until then.
    """
    tally = Tally(jobs=1)
    text, ends = "", list[Entry]()
    upto = 0
    for entry in entries:
        if entry.event == "end":
            ends.append(entry)
            text += entry.text
        elif entry.event == "tokens":
            text += entry.text
            upto = _count(tally, answer, entry, upto)
    tally.terminals = len(ends)
    stopped_early = early is not None and bool(ends) and ends[-1].reason == early
    if stopped_early:
        tally.wrong += not answer.text.startswith(text.rstrip(REPLACEMENT))
    else:
        tally.lost += max(0, len(answer.ids) - upto)
        tally.lost += not ends and upto >= len(answer.ids)
        tally.wrong += upto >= len(answer.ids) and text != answer.text
        tally.wrong += bool(ends) and ends[-1].reason != answer.reason
    return tally


def _count(tally: Tally, answer: Answer, entry: Entry, upto: int) -> int:
    """Count an entry's tokens and return the next index to come."""
    tally.tokens += len(entry.ids)
    tally.lost += max(0, entry.start - upto)
    for index, token in enumerate(entry.ids, entry.start):
        if index < upto:
            tally.repeated += 1
        elif index >= len(answer.ids) or token != answer.ids[index]:
            tally.wrong += 1
    return max(upto, entry.start + len(entry.ids))
