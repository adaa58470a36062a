"""What each token id adds to a text, one id at a time.

Nearly all models' tokenizers join bytes: byte-level ones (GPT-2, Llama 3, Qwen) and SentencePiece
ones with byte fallback (Llama 2, Mistral, Gemma). For those an id is a fixed string of bytes, and
an incremental UTF-8 decoder is exact and O(1) a token. Any other decoder is asked about a short
window of ids, before and after the new one. This module knows no requests, no stop strings and no
Redis.
"""

import codecs
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tokenizers import Tokenizer as Backend

REPLACEMENT = "\ufffd"
"""Stands for bytes that are not UTF-8."""

WINDOW_TOKENS = 16
"""A text that still ends in an incomplete character after so many ids is taken as it is."""


class Pieces(Protocol):
    """Turns one request's ids into pieces of text; never half a character."""

    def push(self, token_id: int) -> str:
        """Take the next id and return the text that is now certain."""
        ...

    def flush(self) -> str:
        """Return what an incomplete character at the end decodes to; nothing may follow."""
        ...


class NoPieces:
    """For a model without a tokenizer: ids have no text."""

    def push(self, token_id: int) -> str:
        """Take the next id; it has no text."""
        return ""

    def flush(self) -> str:
        """Return nothing."""
        return ""


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError), "registered for decoding only"
    return REPLACEMENT * (error.end - error.start), error.end


# Byte fallback writes one replacement character a byte, byte-level decoders one a broken sequence.
codecs.register_error("pagestream.each_byte", _replace_each_byte)
_UTF8 = codecs.getincrementaldecoder("utf-8")


class ByteTable:
    """The bytes of every id of a tokenizer whose decoder joins bytes."""

    def __init__(self, pieces: Mapping[int, bytes], *, errors: str, strip_spaces: int) -> None:
        self._pieces = pieces
        self.errors = errors
        """How broken UTF-8 is shown: `replace`, or one character a byte."""
        self.strip_spaces = strip_spaces
        """Spaces dropped from the beginning of a text."""

    def without(self, ids: frozenset[int]) -> "ByteTable":
        """Return the table in which these ids add nothing."""
        pieces = {key: value for key, value in self._pieces.items() if key not in ids}
        return ByteTable(pieces, errors=self.errors, strip_spaces=self.strip_spaces)

    def __getitem__(self, token_id: int) -> bytes:
        # Models pad their vocabulary: an id the tokenizer does not have adds nothing.
        return self._pieces.get(token_id, b"")


class BytePieces:
    """Exact pieces from a `ByteTable`.

    Differs from decoding all at once in one case: when a run of byte-fallback tokens is valid at
    first and then broken, the characters already given stay, where the decoder would replace the
    whole run.
    """

    def __init__(self, table: ByteTable) -> None:
        self._table = table
        self._decoder = _UTF8(table.errors)
        self._strip_spaces = table.strip_spaces

    def push(self, token_id: int) -> str:
        """Take the next id and return the text that is now certain."""
        piece = self._decoder.decode(self._table[token_id])
        return self._stripped(piece) if self._strip_spaces and piece else piece

    def flush(self) -> str:
        """Return what an incomplete character at the end decodes to; nothing may follow."""
        return self._stripped(self._decoder.decode(b"", final=True))

    def _stripped(self, piece: str) -> str:
        while self._strip_spaces and piece:
            if piece[0] != " ":
                self._strip_spaces = 0
            else:
                self._strip_spaces -= 1
                piece = piece[1:]
        return piece


class WindowPieces:
    """Pieces from any decoder: the text of a window of ids with the new one, less the text without.

    As exact as the decoder is local: one that rewrites text it has already given cannot be
    streamed.
    """

    def __init__(self, backend: Backend, silent_ids: frozenset[int]) -> None:
        self._backend = backend
        self._silent_ids = silent_ids
        self._window: list[int] = []
        self._given_ids = 0  # of the window

    def push(self, token_id: int) -> str:
        """Take the next id and return the text that is now certain."""
        if token_id in self._silent_ids:
            return ""
        self._window.append(token_id)
        piece = self._new_text()
        if piece.endswith(REPLACEMENT) and len(self._window) - self._given_ids < WINDOW_TOKENS:
            return ""
        # The last ids stay as context: decoders treat the first of a text differently.
        del self._window[: max(0, len(self._window) - WINDOW_TOKENS)]
        self._given_ids = len(self._window)
        return piece

    def flush(self) -> str:
        """Return what an incomplete character at the end decodes to; nothing may follow."""
        piece = self._new_text()
        self._given_ids = len(self._window)
        return piece

    def _new_text(self) -> str:
        given = self._backend.decode(self._window[: self._given_ids], skip_special_tokens=False)
        text = self._backend.decode(self._window, skip_special_tokens=False)
        return text[len(given) :]


def byte_table(backend: Backend) -> ByteTable | None:
    """Return the bytes of every id, or None if the tokenizer's decoder does more than join them."""
    decoder: dict[str, Any] = json.loads(backend.to_str())["decoder"] or {}
    tokens = {
        token_id: token for token, token_id in backend.get_vocab(with_added_tokens=True).items()
    }
    if decoder.get("type") == "ByteLevel":
        pieces = {token_id: _byte_level(token) for token_id, token in tokens.items()}
        return ByteTable(pieces, errors="replace", strip_spaces=0)
    strip_spaces = _byte_fallback_spaces(decoder.get("decoders", []))
    if strip_spaces is None:
        return None
    pieces = {token_id: _byte_fallback(token) for token_id, token in tokens.items()}
    return ByteTable(pieces, errors="pagestream.each_byte", strip_spaces=strip_spaces)


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }


_BYTE_OF = _byte_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF[char] for char in token)
    except KeyError:
        return token.encode()


def _byte_fallback(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def _byte_fallback_spaces(decoders: Sequence[Mapping[str, Any]]) -> int | None:
    """Spaces stripped at the start by SentencePiece's byte-fallback decoders; None for others."""
    kinds = [decoder["type"] for decoder in decoders]
    if kinds[:3] != ["Replace", "ByteFallback", "Fuse"] or kinds[3:] not in ([], ["Strip"]):
        return None
    if decoders[0]["pattern"] != {"String": "\u2581"} or decoders[0]["content"] != " ":
        return None
    if kinds[3:] == []:
        return 0
    strip = decoders[3]
    return strip["start"] if strip["content"] == " " and strip["stop"] == 0 else None
