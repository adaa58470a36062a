"""Which KV block holds which prefix, so that equal prefixes are computed once.

A full block is named by a hash chain: (its parent's hash, its own tokens), rooted in the request's
salt, so equal hashes mean equal tokens from position 0 on. Blocks nobody uses stay, least recently
used first to go. Equal blocks computed twice are not merged: a block table only ever grows.
Knows no requests and no device.

Source: automatic prefix caching by hash chains, as vLLM documents it ("Automatic Prefix Caching");
SHA-256-class hashes because a collision would show one tenant's text to another.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b

BlockHash = bytes


def root_hash(salt: str) -> BlockHash:
    """The parent of a first block: requests share prefixes only under the same salt."""
    return blake2b(salt.encode(), digest_size=32).digest()


def hash_block(parent: BlockHash, token_ids: list[int]) -> BlockHash:
    """The name of a full block that follows `parent` and holds `token_ids`."""
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=32).digest()


class PrefixCache:
    """Names of full blocks. A named block is either in use, or idle and waiting for eviction."""

    def __init__(self) -> None:
        self._block_of: dict[BlockHash, int] = {}
        self._hash_of: dict[int, BlockHash] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    def match(self, hashes: Iterable[BlockHash]) -> list[int]:
        """Blocks of the longest known run of `hashes`, from the first on."""
        blocks: list[int] = []
        for block_hash in hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def add(self, block_hash: BlockHash, block: int) -> None:
        """Name a full block in use, unless another block already holds the same tokens."""
        if block_hash not in self._block_of:
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash

    def rest(self, block: int) -> bool:
        """Keep a block that lost its last user; False if it has no name and can be freed."""
        if block not in self._hash_of:
            return False
        self._idle[block] = None
        return True

    def wake(self, block: int) -> None:
        """Take an idle block into use again."""
        del self._idle[block]

    def is_idle(self, block: int) -> bool:
        """True for a named block that nobody uses."""
        return block in self._idle

    @property
    def num_idle(self) -> int:
        """Blocks that can be evicted."""
        return len(self._idle)

    def evict(self) -> int:
        """Forget the idle block that rested longest and return it."""
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._hash_of.pop(block)]
        return block
