"""One request as the engine sees it: tokens, progress and KV blocks.

Knows no text, no Redis and no device; the scheduler is the only one that changes it.
"""

from enum import Enum

from ..messages import Sampling
from .prefix_cache import BlockHash, hash_block, root_hash


class State(Enum):
    """Where a request is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Request:
    """A request's tokens and how far they are computed.

    Invariant: `num_computed_tokens <= num_tokens`, and a step closes the gap. `num_tokens` counts
    the tokens in flight too: drawn on the device by a launched step, not yet known here.
    """

    __slots__ = (
        "_root",
        "block_hashes",
        "blocks",
        "cached_tokens",
        "max_tokens",
        "num_computed_tokens",
        "num_named_blocks",
        "num_tokens",
        "output_ids",
        "prefill_tokens",
        "prompt_ids",
        "request_id",
        "row",
        "sampling",
        "state",
    )

    def __init__(
        self,
        request_id: str,
        prompt_ids: list[int],
        sampling: Sampling,
        output_ids: list[int] | None = None,
        cache_salt: str = "",
    ) -> None:
        assert prompt_ids, f"request {request_id} has an empty prompt: intake refuses those"
        self.request_id = request_id
        self.prompt_ids = prompt_ids
        self.sampling = sampling
        self.output_ids: list[int] = list(output_ids or ())
        self.num_tokens = len(prompt_ids) + len(self.output_ids)
        """Tokens of the request, those in flight included."""
        self.max_tokens = len(prompt_ids) + sampling.max_tokens
        """Tokens it ends with at the latest."""
        self.state = State.WAITING
        self.row: int | None = None
        """Row in the device tables while running."""
        self.blocks: list[int] = []
        """KV blocks in order of position."""
        self.block_hashes: list[BlockHash] = []
        """Hash of each full block whose tokens are known."""
        self.num_named_blocks = 0
        """Blocks of the present table that the prefix cache was told of."""
        self.num_computed_tokens = 0
        self.prefill_tokens = 0
        """Tokens to prefill since the last admission; beyond them the request decodes."""
        self.cached_tokens = 0
        """Prompt tokens found in the prefix cache at the last admission."""
        self._root = root_hash(cache_salt)

    @property
    def num_known_tokens(self) -> int:
        """Tokens whose ids are known on the host."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def is_decoding(self) -> bool:
        """True once everything known at admission is computed: one token a step from here."""
        return self.num_computed_tokens >= self.prefill_tokens

    def ids(self, start: int, stop: int) -> list[int]:
        """Known token ids from position `start` to `stop`."""
        prompt_tokens = len(self.prompt_ids)
        if stop <= prompt_tokens:
            return self.prompt_ids[start:stop]
        if start >= prompt_tokens:
            return self.output_ids[start - prompt_tokens : stop - prompt_tokens]
        return self.prompt_ids[start:] + self.output_ids[: stop - prompt_tokens]

    def extend_hashes(self, block_tokens: int) -> None:
        """Hash every full block of known tokens that has no hash yet."""
        full_blocks = self.num_known_tokens // block_tokens
        while (index := len(self.block_hashes)) < full_blocks:
            parent = self.block_hashes[-1] if self.block_hashes else self._root
            start = index * block_tokens
            self.block_hashes.append(hash_block(parent, self.ids(start, start + block_tokens)))
