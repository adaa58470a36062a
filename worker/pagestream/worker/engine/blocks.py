"""The pool of KV blocks: who uses which, and which are free.

    block 0        the padding rows of a device batch write here; it is never given out
    free           in `_free`, content meaningless
    idle           nobody uses it, but the prefix cache knows what it holds
    in use         counted: one for each request that has it in its block table

Knows no requests and no device.
"""

from .prefix_cache import PrefixCache

PADDING_BLOCK = 0


class BlockPool:
    """Every block but the padding block is free, idle, or counted by its users."""

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        assert num_blocks > 1, f"{num_blocks} blocks leave none beside the padding block"
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.cache = PrefixCache()
        self._free = list(range(num_blocks - 1, PADDING_BLOCK, -1))
        self._users = [0] * num_blocks

    @property
    def num_usable(self) -> int:
        """Blocks that requests can have in all."""
        return self.num_blocks - 1

    @property
    def num_available(self) -> int:
        """Blocks that can be allocated now: free and idle."""
        return len(self._free) + self.cache.num_idle

    @property
    def num_in_use(self) -> int:
        """Blocks that some request has."""
        return self.num_usable - self.num_available

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_tokens)

    def allocate(self, num_blocks: int) -> list[int]:
        """Give out blocks with one user each; free ones first, then the longest idle.

        The caller has checked `num_available`.
        """
        assert num_blocks <= self.num_available, (
            f"{num_blocks} blocks asked for, {self.num_available} available"
        )
        blocks: list[int] = []
        for _ in range(num_blocks):
            block = self._free.pop() if self._free else self.cache.evict()
            self._users[block] = 1
            blocks.append(block)
        return blocks

    def share(self, blocks: list[int]) -> None:
        """Count one more user of blocks that the prefix cache named."""
        for block in blocks:
            if self._users[block] == 0:
                self.cache.wake(block)
            self._users[block] += 1

    def num_idle_among(self, blocks: list[int]) -> int:
        """How many of `blocks` would stop being available if they were shared."""
        return sum(self._users[block] == 0 for block in blocks)

    def release(self, blocks: list[int]) -> None:
        """Count one user less; blocks without users become idle or free.

        Last blocks first: a prefix is shared more often the shorter it is, so its tail is evicted
        before its head.
        """
        for block in reversed(blocks):
            self._users[block] -= 1
            assert self._users[block] >= 0, f"block {block} released more often than taken"
            if self._users[block] == 0 and not self.cache.rest(block):
                self._free.append(block)

    def picture(self, most_cells: int) -> tuple[str, int]:
        """A picture of the pool: one letter a cell, and how many blocks a cell stands for.

        `u` used once, `s` shared, `c` idle, `.` free. A cell shows its first block: looking at all
        of a large pool would take the milliseconds of a step.
        """
        span = -(-self.num_usable // most_cells)
        blocks = range(PADDING_BLOCK + 1, self.num_blocks, span)
        return "".join(map(self._letter, blocks)), span

    def _letter(self, block: int) -> str:
        users = self._users[block]
        if users:
            return "u" if users == 1 else "s"
        return "c" if self.cache.is_idle(block) else "."

    def check(self) -> None:
        """Assert the invariant; for tests and for an idle engine."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is in the free list twice"
        assert PADDING_BLOCK not in free, "the padding block is in the free list"
        for block in range(1, self.num_blocks):
            places = (block in free) + self.cache.is_idle(block) + (self._users[block] > 0)
            assert places == 1, f"block {block} is in {places} places; exactly one holds"
