"""Drives a model as the engine would, without the engine: flat batches over a paged cache.

Blocks are handed out shuffled and never in order, and unused cache slots hold large numbers, so
that reading a wrong or unwritten slot shows in the logits.
"""

import random

import torch
from torch import Tensor

from pagestream.worker.models.decoder import Model
from pagestream.worker.models.inputs import ForwardInputs, LayerCache

BLOCK_TOKENS = 16
_POISON = 100.0


class PagedRun:
    """Sequences in rows of a block table; `step` runs pieces of prompts and decodes together."""

    def __init__(self, model: Model, rows: int, max_tokens: int, seed: int = 0) -> None:
        spec, self.model = model.spec, model
        max_blocks = -(-max_tokens // BLOCK_TOKENS)
        free = list(range(1, rows * max_blocks + 1))  # block 0 belongs to nobody
        random.Random(seed).shuffle(free)
        shape = (len(free) + 1, BLOCK_TOKENS, spec.num_kv_heads, spec.head_dim)
        self.cache = [
            LayerCache(
                torch.full(shape, _POISON, dtype=spec.dtype),
                torch.full(shape, _POISON, dtype=spec.dtype),
            )
            for _ in range(spec.num_layers)
        ]
        self.block_table = torch.tensor(free, dtype=torch.int32).view(rows, max_blocks)
        self.prompt_lens = torch.zeros(rows, dtype=torch.int32)
        self.lengths = [0] * rows

    def start(self, row: int, prompt_tokens: int) -> None:
        """Declare the length of a row's whole prompt, before its first piece."""
        self.prompt_lens[row] = prompt_tokens

    def inputs(self, decodes: dict[int, int], prefills: dict[int, list[int]]) -> ForwardInputs:
        """The step's batch: one token for each row of `decodes`, several for each of `prefills`."""
        pieces = {row: [token] for row, token in decodes.items()} | prefills
        positions, slots, cu_q = [], [], [0]
        for row, ids in pieces.items():
            span = range(self.lengths[row], self.lengths[row] + len(ids))
            positions += span
            blocks = self.block_table[row].tolist()
            slots += [blocks[p // BLOCK_TOKENS] * BLOCK_TOKENS + p % BLOCK_TOKENS for p in span]
            cu_q.append(cu_q[-1] + len(ids))
            self.lengths[row] += len(ids)
        kv_lens = [self.lengths[row] for row in pieces]
        decode_lens = [self.lengths[row] * (row in decodes) for row in pieces]
        return ForwardInputs(
            input_ids=torch.tensor([i for ids in pieces.values() for i in ids], dtype=torch.int32),
            positions=torch.tensor(positions, dtype=torch.int32),
            slot_mapping=torch.tensor(slots, dtype=torch.int64),
            rows=torch.tensor(list(pieces), dtype=torch.int32),
            cu_q=torch.tensor(cu_q, dtype=torch.int32),
            kv_lens=torch.tensor(kv_lens, dtype=torch.int32),
            decode_lens=torch.tensor(decode_lens, dtype=torch.int32),
            prefill_cu_q=torch.tensor(cu_q, dtype=torch.int32).clamp(min=len(decodes)),
            block_table=self.block_table,
            prompt_lens=self.prompt_lens,
            has_decodes=bool(decodes),
            max_prefills=len(prefills),
            max_kv_len=max(kv_lens),
        )

    def step(
        self, decodes: dict[int, int] | None = None, prefills: dict[int, list[int]] | None = None
    ) -> dict[int, Tensor]:
        """Run one step; return the logits of every token, [tokens of the row, vocab], by row."""
        inputs = self.inputs(decodes or {}, prefills or {})
        with torch.inference_mode():
            logits = self.model.logits(self.model.forward(inputs, self.cache)).float()
        bounds = inputs.cu_q.tolist()
        return {
            row: logits[start:end]
            for row, start, end in zip(inputs.rows.tolist(), bounds, bounds[1:], strict=False)
        }

    def prefill(self, prompts: dict[int, list[int]]) -> dict[int, Tensor]:
        """Start these rows and run their whole prompts in one step."""
        for row, ids in prompts.items():
            self.start(row, len(ids))
        return self.step(prefills=prompts)
