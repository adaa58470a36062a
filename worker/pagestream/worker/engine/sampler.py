"""How each running request draws its tokens: a table of parameters on the device.

A row is written once, when its request is admitted; a step only reads it. Draws are keyed by
(seed, position), so a request draws the same tokens in any batch, and after a resume.
Knows no scheduler.
"""

import torch
from torch import Tensor

from pagestream.kernels import SamplingTable, sample

from ..messages import Sampling

MAX_SUPPRESSED_IDS = 128
"""End tokens and stop ids of one request that `min_tokens` can hold back."""


class Sampler:
    """The sampling parameters of every row."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        def table(dtype: torch.dtype, fill: float = 0) -> Tensor:
            return torch.full((num_rows,), fill, dtype=dtype, device=device)

        self._table = SamplingTable(
            temperature=table(torch.float32),
            top_p=table(torch.float32, 1),
            min_p=table(torch.float32),
            top_k=table(torch.int32),
            seed=table(torch.int64),
            min_position=table(torch.int32),
            num_suppressed=table(torch.int32),
            suppressed_ids=torch.zeros(
                num_rows, MAX_SUPPRESSED_IDS, dtype=torch.int32, device=device
            ),
        )

    def admit(self, rows: Tensor, requests: list[tuple[Sampling, int]]) -> None:
        """Write the parameters of newly admitted requests.

        Args:
            rows: `[requests]` int64, on the device.
            requests: each one's sampling parameters and prompt length in tokens.
        """
        table, device = self._table, rows.device
        floats = [[s.temperature, s.top_p, s.min_p] for s, _ in requests]
        ints = [
            [s.top_k, s.seed, prompt_tokens + s.min_tokens, len(s.stop_token_ids)]
            for s, prompt_tokens in requests
        ]
        real = torch.tensor(floats, dtype=torch.float32).to(device, non_blocking=True)
        whole = torch.tensor(ints, dtype=torch.int64).to(device, non_blocking=True)
        columns = (table.temperature, table.top_p, table.min_p)
        for column, values in zip(columns, real.unbind(1), strict=True):
            column.index_copy_(0, rows, values)
        columns = (table.top_k, table.seed, table.min_position, table.num_suppressed)
        for column, values in zip(columns, whole.unbind(1), strict=True):
            column.index_copy_(0, rows, values.to(column.dtype))
        if any(s.min_tokens and s.stop_token_ids for s, _ in requests):
            padded = [
                [*s.stop_token_ids, *[0] * (MAX_SUPPRESSED_IDS - len(s.stop_token_ids))]
                for s, _ in requests
            ]
            ids = torch.tensor(padded, dtype=torch.int32).to(device, non_blocking=True)
            table.suppressed_ids.index_copy_(0, rows, ids)

    def draw(self, logits: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """One id a sequence, `[seqs]` int32.

        Args:
            logits: `[seqs, vocab]`.
            rows: `[seqs]` int32.
            positions: `[seqs]` int32, the index that the drawn token will have in its sequence.
        """
        return sample(logits, rows, positions, self._table)
