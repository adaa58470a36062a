"""A device without a model: it keeps what a KV slot would hold, and draws from what it reads back.

The next token is a hash of the tokens read through the block table, so a block that was shared
wrongly, freed too early or overwritten shows up as a wrong token. It computes no attention.
"""

from hashlib import blake2b

from pagestream.worker.engine.plan import Plan, Work

VOCAB = 11
END_TOKEN = 10


def next_token(tokens: list[int]) -> int:
    """The token that follows `tokens`: the same for the same tokens, otherwise arbitrary."""
    return blake2b(bytes(tokens), digest_size=2).digest()[0] % VOCAB


def continuation(prompt: list[int], max_tokens: int, ends: bool = True) -> list[int]:
    """What a request for `prompt` must give, computed without any cache."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        tokens.append(next_token(tokens))
        if ends and tokens[-1] == END_TOKEN:
            break
    return tokens[len(prompt) :]


class SimulatedDevice:
    """Runs plans in order: writes each work's tokens to its slots, then reads the whole prefix."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._slots: dict[int, tuple[int, int]] = {}  # slot -> (position, token)
        self._last_token: dict[int, int] = {}
        self._tables: dict[int, list[int]] = {}  # row -> blocks

    def run(self, plan: Plan) -> list[int]:
        """One id a work in batch order (meaningless where the work draws none)."""
        for request in plan.admitted:
            self._tables[request.row] = request.blocks.copy()
        for work in plan.decodes:  # each brings the newest block, whether it is a new one or not
            self._tables[work.row][work.start // self._block_tokens :] = work.request.blocks[-1:]
        writes = [(self._tokens(work, False), work) for work in plan.prefills]
        writes = [(self._tokens(work, True), work) for work in plan.decodes] + writes
        ids: list[int] = []
        for tokens, work in writes:
            for position, token in enumerate(tokens, work.start):
                self._slots[self._slot(work.row, position)] = (position, token)
        for _tokens, work in writes:
            prefix = [
                self._slots[self._slot(work.row, position)]
                for position in range(work.start + work.num_tokens)
            ]
            assert [position for position, _ in prefix] == list(range(len(prefix)))
            ids.append(next_token([token for _, token in prefix]))
            self._last_token[work.row] = ids[-1]
        return ids

    def _tokens(self, work: Work, is_decode: bool) -> list[int]:
        if is_decode:
            return [self._last_token[work.row]]
        return work.request.ids(work.start, work.start + work.num_tokens)

    def _slot(self, row: int, position: int) -> int:
        index, offset = divmod(position, self._block_tokens)
        return self._tables[row][index] * self._block_tokens + offset
