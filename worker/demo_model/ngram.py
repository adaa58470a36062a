"""A 5-gram model to measure the demo model against.

Interpolated Kneser-Ney smoothing with one discount an order (n1 / (n1 + 2 n2), or a half where no
n-gram is single), counted with sorted arrays: an n-gram of ids below 4096 is one 64-bit number.
Knows token ids only.
"""

import numpy as np

ORDER = 5
_BITS = 12

Tokens = np.ndarray  # [tokens] integers below 4096


class KneserNey:
    """Counts of a token sequence, and the probabilities that they give."""

    def __init__(self, tokens: Tokens, vocab_size: int) -> None:
        if vocab_size > 1 << _BITS:
            raise ValueError(f"vocab_size is {vocab_size}, at most {1 << _BITS} ids can be packed")
        self.vocab_size = vocab_size
        self.levels = [_Level(*np.unique(_grams(tokens, ORDER), return_counts=True))]
        while len(self.levels) < ORDER:
            # The lower orders count in how many contexts an n-gram was seen, not how often.
            order = ORDER - len(self.levels)
            shorter = self.levels[-1].grams & np.uint64((1 << order * _BITS) - 1)
            self.levels.append(_Level(*np.unique(shorter, return_counts=True)))

    def log_probabilities(self, tokens: Tokens) -> np.ndarray:
        """Give the natural log of the probability of each token after the first ``ORDER - 1``."""
        probability = np.full(len(tokens) - ORDER + 1, 1 / self.vocab_size)
        for order, level in enumerate(reversed(self.levels), start=1):
            probability = level.interpolate(_grams(tokens, order)[ORDER - order :], probability)
        return np.log(probability)


class _Level:
    """The n-grams of one order, and the totals of their contexts."""

    def __init__(self, grams: np.ndarray, counts: np.ndarray) -> None:
        self.grams, self.counts = grams, counts
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        self.discount = once / (once + 2 * twice) if once else 0.5
        self.contexts, first = np.unique(grams >> np.uint64(_BITS), return_index=True)
        self.totals = np.add.reduceat(counts, first)
        self.kinds = np.diff(np.append(first, len(grams)))

    def interpolate(self, grams: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Discount this order's estimate and give what is left to the lower order's."""
        contexts = grams >> np.uint64(_BITS)
        total = _look_up(self.contexts, self.totals, contexts)
        kinds = _look_up(self.contexts, self.kinds, contexts)
        count = _look_up(self.grams, self.counts, grams)
        known = np.maximum(total, 1)
        own = np.maximum(count - self.discount, 0) / known
        return np.where(total > 0, own + self.discount * kinds / known * lower, lower)


def _grams(tokens: Tokens, order: int) -> np.ndarray:
    wide = tokens.astype(np.uint64)
    packed = np.zeros(len(tokens) - order + 1, dtype=np.uint64)
    for offset in range(order):
        packed = (packed << np.uint64(_BITS)) | wide[offset : offset + len(packed)]
    return packed


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Give each wanted key's value, 0 where there is none; ``keys`` are sorted."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
