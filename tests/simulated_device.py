"""A device without a model: it keeps what a KV slot would hold, and draws from what it reads back.

The next token is a hash of the tokens read through the block table, so a block that was shared wrongly,
freed too early or overwritten shows up as a wrong token. It checks slots; it computes no attention.
"""

from hashlib import blake2b

from pagestream.worker.engine.scheduler import Plan

VOCAB = 11
END_TOKEN = 10


def next_token(tokens: list[int]) -> int:
    """The token that follows `tokens`: the same for the same tokens, otherwise arbitrary."""
    return blake2b(bytes(tokens), digest_size=2).digest()[0] % VOCAB


def continuation(prompt: list[int], max_tokens: int) -> list[int]:
    """What a request for `prompt` must give, computed without any cache."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        tokens.append(next_token(tokens))
        if tokens[-1] == END_TOKEN:
            break
    return tokens[len(prompt) :]


class SimulatedDevice:
    """Runs plans in order: writes each work's tokens into its slots, then reads the whole prefix."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._slots: dict[int, tuple[int, int]] = {}  # slot -> (position, token)
        self._last_token: dict[int, int] = {}

    def run(self, plan: Plan) -> list[int]:
        """One id a work in batch order (meaningless where the work draws none)."""
        writes = [(self._tokens(work, index), work) for index, work in enumerate(plan)]
        ids: list[int] = []
        for tokens, work in writes:
            for position, token in enumerate(tokens, work.start):
                self._slots[self._slot(work.request.blocks, position)] = (position, token)
        for _tokens, work in writes:
            prefix = [
                self._slots[self._slot(work.request.blocks, position)]
                for position in range(work.start + work.num_tokens)
            ]
            assert [position for position, _ in prefix] == list(range(len(prefix)))
            ids.append(next_token([token for _, token in prefix]))
            self._last_token[work.row] = ids[-1]
        return ids

    def _tokens(self, work, index) -> list[int]:
        if work.request.is_decoding and work.num_tokens == 1 and work.start >= work.request.prefill_tokens:
            return [self._last_token[work.row]]
        return work.request.ids(work.start, work.start + work.num_tokens)

    def _slot(self, blocks: list[int], position: int) -> int:
        return blocks[position // self._block_tokens] * self._block_tokens + position % self._block_tokens
