"""Fixed batches: how long a batch of equal requests takes, and one decode step of it.

Each batch runs twice a repeat, to a short and to a long output; the difference of the two times,
over the difference of the lengths, is a decode step with everybody running: start, prefill and the
uneven end of a batch are in both, and cancel out.
"""

import statistics
from collections.abc import Callable, Sequence

import msgspec

from ..errors import ConfigError
from .datasets import check_lengths, fit_to_vocabulary, random_lengths
from .metrics import Spread
from .offline import Player


class BatchLatency(msgspec.Struct, frozen=True, kw_only=True):
    """One batch size; each spread is over the repeats."""

    batch_size: int
    first_tokens_ms: Spread
    """From the start until every request had its first token."""
    short_ms: Spread
    """The whole batch, to the short length."""
    long_ms: Spread
    decode_step_ms: float
    """Median over the repeats of (long - short) / (difference of the lengths)."""
    decode_steps_ms: list[float]
    """Of each repeat."""
    decode_tokens_per_s: float
    """`batch_size` tokens a step."""
    context_tokens: int
    """Tokens of a request half-way through the steps that `decode_step_ms` is of."""


def measure_batches(
    player: Player,
    batch_sizes: Sequence[int],
    *,
    context_tokens: int,
    output_lens: tuple[int, int],
    repeats: int,
    warmups: int,
    seed: int = 0,
    told: Callable[[int], None] = lambda batch_size: None,
) -> list[BatchLatency]:
    """Measure each batch size after warming up at that very size; prompts are new in every run.

    `told` hears of each finished pair of runs.

    Raises:
        ConfigError: a batch is larger than what runs at once, or a length cannot work.
    """
    short, long = output_lens
    if not 0 < short < long:
        raise ConfigError(f"--output-lens {short} {long}: the second must be the longer one")
    results: list[BatchLatency] = []
    for batch_size in batch_sizes:
        _check_batch(player, batch_size, context_tokens + long)
        pairs: list[tuple[float, float, float]] = []
        for repeat in range(-warmups, repeats):
            seed += 1
            _, short_ms = _run(player, batch_size, context_tokens, short, 2 * seed)
            first_ms, long_ms = _run(player, batch_size, context_tokens, long, 2 * seed + 1)
            if repeat >= 0:
                pairs.append((first_ms, short_ms, long_ms))
            told(batch_size)
        steps_ms = [(long_ms - short_ms) / (long - short) for _, short_ms, long_ms in pairs]
        step_ms = statistics.median(steps_ms)
        firsts, shorts, longs = (list(column) for column in zip(*pairs, strict=True))
        results.append(
            BatchLatency(
                batch_size=batch_size,
                first_tokens_ms=Spread.over(firsts),
                short_ms=Spread.over(shorts),
                long_ms=Spread.over(longs),
                decode_step_ms=round(step_ms, 4),
                decode_steps_ms=[round(one, 4) for one in steps_ms],
                decode_tokens_per_s=round(batch_size / step_ms * 1000, 1),
                context_tokens=context_tokens + (short + long) // 2,
            )
        )
    return results


def _run(
    player: Player, batch_size: int, context_tokens: int, output_tokens: int, seed: int
) -> tuple[float, float]:
    """(ms until everybody has a token, ms until the end) of one batch."""
    batch = random_lengths(batch_size, context_tokens, output_tokens, 0, seed)
    batch = fit_to_vocabulary(batch, player.ready.vocab_size)
    check_lengths(batch, player.ready.max_model_tokens)
    played, lines = player.play(batch)
    if played.preemptions:
        raise ConfigError(
            f"a batch of {batch_size} x {context_tokens + output_tokens} tokens does not fit into "
            f"the KV cache of {player.ready.num_blocks} blocks; use a smaller one, or --num-blocks"
        )
    first_tokens_ms = max(line.ttft_ms for line in lines)
    if min(line.e2el_ms for line in lines) < first_tokens_ms:
        raise ConfigError(
            f"in a batch of {batch_size} the first request ended before the last one had begun: "
            f"use --output-lens longer than {output_tokens}, or more --max-num-batched-tokens"
        )
    return first_tokens_ms, played.summary.duration_s * 1000


def _check_batch(player: Player, batch_size: int, tokens: int) -> None:
    ready = player.ready
    if batch_size < 1:
        raise ConfigError(f"--batch-sizes {batch_size}: a batch has at least 1 request")
    if batch_size > ready.max_running:
        raise ConfigError(
            f"a batch of {batch_size} does not run at once: --max-num-seqs is {ready.max_running}"
        )
    needed = batch_size * -(-tokens // ready.block_tokens)
    if needed > ready.num_blocks - 1:
        raise ConfigError(
            f"a batch of {batch_size} x {tokens} tokens needs {needed} KV blocks, and there are "
            f"{ready.num_blocks - 1}; use a smaller batch, or --num-blocks"
        )
