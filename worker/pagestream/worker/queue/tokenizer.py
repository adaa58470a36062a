"""The model's tokenizer and chat template: text and chats to ids, ids to text.

transformers loads them; ids of a prompt text carry the special tokens its configuration asks for
(BOS), a chat's are those its template writes. A model without a tokenizer takes and gives token ids
only. This module knows no requests, no Redis and no engine.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer as Backend

from pagestream.producer.errors import InvalidRequest

from .pieces import BytePieces, Pieces, WindowPieces, byte_table

logger = logging.getLogger(__name__)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "tekken.json",
)


class Tokenizer:
    """One model's tokenizer; safe to use from several threads."""

    def __init__(self, backend: Backend, pretrained: Any = None) -> None:
        """`pretrained` is transformers' tokenizer around `backend`; it has the chat template."""
        # Both are settings of the shared object: changed once, so that no call has to.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._pretrained = pretrained
        special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self.special_ids = frozenset(special)
        self._table = byte_table(backend)

    @classmethod
    def load(cls, directory: str | Path) -> "Tokenizer | None":
        """Load the tokenizer of a model directory; None when it has none.

        Raises:
            InvalidRequest: there are tokenizer files, but they cannot be loaded.
        """
        directory = Path(directory)
        if not any((directory / name).exists() for name in TOKENIZER_FILES):
            return None
        # Takes seconds and brings torch: imported once the engine process is on its way.
        from transformers import AutoTokenizer

        try:
            pretrained = cast(Any, AutoTokenizer).from_pretrained(str(directory))
            backend: Backend = pretrained.backend_tokenizer
        except Exception as error:
            raise InvalidRequest(
                f"the tokenizer in {directory} cannot be loaded: {error}"
            ) from error
        return cls(backend, pretrained)

    @property
    def has_chat_template(self) -> bool:
        """Whether chats can be rendered."""
        return bool(getattr(self._pretrained, "chat_template", None))

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a prompt, with the special tokens that the configuration adds.

        Raises:
            InvalidRequest: the text is not valid Unicode, or has no tokens.
        """
        return self._encode(text, add_special_tokens=True)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Render a chat with the model's template, ready for the answer, and return its ids.

        Raises:
            InvalidRequest: the model has no template, or the template refuses the messages.
        """
        if not self.has_chat_template:
            raise InvalidRequest(
                "this model has no chat template; send `prompt` or `prompt_ids`, not `messages`"
            )
        plain = [_plain_message(index, message) for index, message in enumerate(messages)]
        try:
            text = self._pretrained.apply_chat_template(
                plain, tokenize=False, add_generation_prompt=True
            )
        # A template is the model's own code: it may raise anything on a message it does not expect.
        except Exception as error:
            raise InvalidRequest(f"the chat template refuses the messages: {error}") from error
        return self._encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of all the ids at once."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def pieces(self, *, skip_special_tokens: bool = True) -> Pieces:
        """Return a new incremental decoder."""
        if self._table is not None:
            return BytePieces(self._plain_table if skip_special_tokens else self._table)
        return WindowPieces(self._backend, self.special_ids if skip_special_tokens else frozenset())

    @cached_property
    def _plain_table(self) -> Any:
        assert self._table is not None, "only byte tables are filtered"
        return self._table.without(self.special_ids)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"the prompt is not valid Unicode: {error}") from error
        ids = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        if not ids:
            raise InvalidRequest("the prompt has no tokens; give at least one")
        return ids


def _plain_message(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose content is one text: what templates of text models read."""
    if not isinstance(message.get("role"), str):
        raise InvalidRequest(f"messages[{index}] has no role")
    content: Any = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    texts: list[str] = []
    for part in cast(list[Any], content):
        fields = cast(dict[str, Any], part) if isinstance(part, dict) else {}
        kind, text = fields.get("type"), fields.get("text")
        if kind != "text" or not isinstance(text, str):
            raise InvalidRequest(
                f"messages[{index}] has a part of type {kind!r}; only text is read"
            )
        texts.append(text)
    return {**message, "content": "\n".join(texts)}
