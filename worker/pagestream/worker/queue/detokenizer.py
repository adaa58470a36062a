"""Text from ids, as it may be published: whole characters, nothing a stop string may take back.

The state is a pure function of the ids pushed so far, however they were grouped, so a worker that
takes over a job rebuilds it by pushing the ids already published. This module knows no Redis, no
engine and no clock.
"""

from collections.abc import Iterable, Sequence

from .pieces import Pieces


class Detokenizer:
    """The published text of one request.

    The texts of all `push` calls and of `flush` joined are the text of the ids, up to the first
    stop string. A stop string counts from the token `min_tokens` on.
    """

    def __init__(
        self,
        pieces: Pieces,
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        min_tokens: int = 0,
        silent_ids: frozenset[int] = frozenset(),
    ) -> None:
        """`silent_ids` add no text: the ids that end the request."""
        self._pieces = pieces
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._silent_ids = silent_ids
        self._first_chars = frozenset(text[0] for text in stop)
        self._longest_stop_chars = max(map(len, stop), default=0)
        self._held = ""  # may be the beginning of a stop string
        self.tokens = 0
        """Ids taken so far; those after a matched stop string are not."""
        self.stopped: str | None = None
        """The stop string that was found."""

    def push(self, ids: Iterable[int]) -> str:
        """Take the next ids and return the text that may now be published."""
        texts: list[str] = []
        for token_id in ids:
            if self.stopped is not None:
                break
            self.tokens += 1
            if token_id in self._silent_ids:
                continue
            piece = self._pieces.push(token_id)
            if piece:
                searched = self._stop and self.tokens >= self._min_tokens
                texts.append(self._search(piece) if searched else piece)
        return "".join(texts)

    def flush(self) -> str:
        """Return the rest: what was held back, and an incomplete character's replacement."""
        if self.stopped is not None:
            return ""
        piece = self._pieces.flush()
        text = self._search(piece) if self._stop and self.tokens >= self._min_tokens else piece
        text, self._held = text + self._held, ""
        return text

    def _search(self, piece: str) -> str:
        """Return what is certain of the held text and `piece`; hold the rest, or stop."""
        text = self._held + piece
        found = [(at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            at, self.stopped = min(found, key=lambda match: (match[0], len(match[1])))
            self._held = ""
            return text[: at + len(self.stopped)] if self._include_stop else text[:at]
        held_at = self._possible_stop(text)
        self._held = text[held_at:]
        return text[:held_at]

    def _possible_stop(self, text: str) -> int:
        """Where the longest end of `text` that may become a stop string begins, or its length."""
        for at in range(max(0, len(text) - self._longest_stop_chars + 1), len(text)):
            if text[at] in self._first_chars:
                end = text[at:]
                if any(stop.startswith(end) for stop in self._stop):
                    return at
        return len(text)
