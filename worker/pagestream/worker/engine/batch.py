"""From a plan to tensors on the device.

What stays the same for a request lives in rows on the device: its block table, its last token, its
prompt length. A step sends only what is new, in one copy: which rows take part, where each starts,
the block that each decode writes to, and the ids of prompt pieces. Everything else (positions,
slots, lengths) is computed there.
The host never reads from the device here. Knows no model.
"""

from dataclasses import dataclass
from itertools import accumulate
from struct import pack_into
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pagestream.kernels import batch_layout

from ..models.inputs import ForwardInputs
from .blocks import PADDING_BLOCK
from .plan import Plan, Work
from .request import Request

NUM_STAGES = 2
"""Host buffers in turn: one may still be travelling to the device while the next is filled."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """The host's numbers of a step: sizes of its tensors and bounds for its kernels."""

    num_seqs: int
    num_tokens: int
    has_decodes: bool
    max_prefills: int
    max_kv_len: int

    @classmethod
    def of(cls, plan: Plan) -> "StepShape":
        """The shape of a step without padding."""
        longest = max((work.start + work.num_tokens for work in plan.prefills), default=0)
        if plan.decodes:
            longest = max(longest, plan.decodes[0].start + 1)
        return cls(
            num_seqs=len(plan),
            num_tokens=plan.num_tokens,
            has_decodes=bool(plan.decodes),
            max_prefills=len(plan.prefills),
            max_kv_len=longest,
        )


class Batch:
    """Rows of all requests on the device, and the step that is about to run.

    Row `max_running` is nobody's: padding sequences of a captured graph use it. They have no
    tokens; padding tokens belong to no sequence and write to the padding block.
    """

    def __init__(
        self,
        *,
        max_running: int,
        max_step_tokens: int,
        max_model_tokens: int,
        block_tokens: int,
        device: torch.device,
    ) -> None:
        num_rows = max_running + 1
        self._padding_row = max_running
        self._block_tokens = block_tokens
        self._device = device
        max_blocks = -(-max_model_tokens // block_tokens)
        self.num_rows = num_rows
        self.max_step_tokens = max_step_tokens
        self._block_table = torch.zeros(num_rows, max_blocks, dtype=torch.int32, device=device)
        self._last_token = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self._prompt_lens = torch.ones(num_rows, dtype=torch.int32, device=device)

        self._pinned = device.type == "cuda"
        # rows, starts, decode_blocks, cu_q, prefill_cu_q, ids
        sizes = (*[max_running] * 3, *[max_running + 1] * 2, max_step_tokens)
        self._ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
        hosts = [
            torch.zeros(self._ends[-1], dtype=torch.int32, pin_memory=self._pinned)
            for _ in range(NUM_STAGES)
        ]
        self._stages = [(host, self._sections(host.numpy())) for host in hosts]
        self._turn = 0
        self._counted = np.arange(max_running + 1, dtype=np.int32)
        self._sent = torch.zeros(self._ends[-1], dtype=torch.int32, device=device)

    def admit(self, requests: list[Request]) -> Tensor:
        """Set up the rows of requests that just got theirs: returned as `[requests]` int64.

        From then on a row's table grows by what its decodes bring.
        """
        rows: list[int] = []
        places: list[int] = []
        blocks: list[int] = []
        for request in requests:
            assert request.row is not None, f"{request.request_id} was admitted without a row"
            rows.append(request.row)
            first = request.row * self._block_table.shape[1]
            places += range(first, first + len(request.blocks))
            blocks += request.blocks
        lengths = [len(request.prompt_ids) for request in requests]
        index, prompt_lens = self._to_device([rows, lengths])
        self._prompt_lens.index_copy_(0, index, prompt_lens.int())
        at, values = self._to_device([places, blocks])
        self._block_table.view(-1).index_copy_(0, at, values.int())
        return index

    def stage(self, plan: Plan, shape: StepShape) -> None:
        """Send a plan's numbers to the device, for a step of `shape`, which may be larger."""
        works = [*plan.decodes, *plan.prefills]
        self._send(
            shape,
            rows=[work.row for work in works],
            starts=[work.start for work in works],
            # A decode's token is the newest that its request has blocks for.
            decode_blocks=[work.request.blocks[-1] for work in plan.decodes],
            prefill_lengths=[work.num_tokens for work in plan.prefills],
            ids=[token_id for work in plan.prefills for token_id in _ids(work)],
        )

    def stage_prefill_of_nobody(self, num_tokens: int) -> StepShape:
        """Send the largest prefill there can be, to warm up and to see how much memory it takes."""
        longest = self._block_table.shape[1] * self._block_tokens
        lengths = [longest] * (num_tokens // longest)
        if rest := num_tokens % longest:
            lengths.append(rest)
        lengths = lengths[: self._padding_row]
        seqs, tokens = len(lengths), sum(lengths)
        shape = StepShape(seqs, tokens, False, seqs, max(lengths))
        self._send(shape, [self._padding_row] * seqs, [0] * seqs, [], lengths, [0] * tokens)
        return shape

    def inputs(self, shape: StepShape) -> ForwardInputs:
        """The staged step as the model takes it: device work only, so a graph can capture it."""
        rows, starts, decode_blocks, cu_q, prefill_cu_q, ids = self._sections(self._sent)
        seqs = shape.num_seqs
        layout = batch_layout(
            rows[:seqs],
            starts[:seqs],
            cu_q[: seqs + 1],
            ids[: shape.num_tokens],
            decode_blocks[:seqs],
            self._last_token,
            self._block_table,
            self._block_tokens,
        )
        return ForwardInputs(
            input_ids=layout.input_ids,
            positions=layout.positions,
            slot_mapping=layout.slot_mapping,
            rows=rows[:seqs],
            cu_q=cu_q[: seqs + 1],
            kv_lens=layout.kv_lens,
            decode_lens=layout.decode_lens,
            prefill_cu_q=prefill_cu_q[: seqs + 1],
            block_table=self._block_table,
            prompt_lens=self._prompt_lens,
            has_decodes=shape.has_decodes,
            max_prefills=shape.max_prefills,
            max_kv_len=shape.max_kv_len,
        )

    def keep_drawn(self, rows: Tensor, token_ids: Tensor) -> None:
        """Remember the drawn ids as the next step's inputs, without the host."""
        self._last_token.index_copy_(0, rows.long(), token_ids)

    # ---- sending

    def _send(
        self,
        shape: StepShape,
        rows: list[int],
        starts: list[int],
        decode_blocks: list[int],
        prefill_lengths: list[int],
        ids: list[int],
    ) -> None:
        """Fill a host buffer and copy it over in one piece, behind the steps already launched.

        Decodes come first, and each has one token, whose id the device has.
        """
        host, (row, start, block, cu_q, prefill_cu_q, token) = self._stages[self._turn]
        self._turn = (self._turn + 1) % NUM_STAGES
        seqs, padded, num_decodes = len(rows), shape.num_seqs, len(decode_blocks)
        for section, numbers, padding in (
            (row, rows, self._padding_row),
            (start, starts, 0),
            (block, decode_blocks, PADDING_BLOCK),
        ):
            # numpy takes twice as long over a list.
            pack_into(f"{len(numbers)}i", section, 0, *numbers)
            section[len(numbers) : padded] = padding
        cu_q[:num_decodes] = self._counted[:num_decodes]
        cu_q[num_decodes : seqs + 1] = list(accumulate(prefill_lengths, initial=num_decodes))
        cu_q[seqs + 1 : padded + 1] = cu_q[seqs]
        np.maximum(cu_q, num_decodes, out=prefill_cu_q)
        token[num_decodes : num_decodes + len(ids)] = ids
        used = self._ends[-2] + num_decodes + len(ids)
        self._sent[:used].copy_(host[:used], non_blocking=True)

    def _to_device(self, numbers: list[list[int]]) -> Tensor:
        tensor = torch.tensor(numbers, dtype=torch.int64, pin_memory=self._pinned)
        return tensor.to(self._device, non_blocking=True)

    def _sections(self, buffer: Any) -> Any:
        """The parts of a buffer: rows, starts, decode_blocks, cu_q, prefill_cu_q, ids."""
        starts = [0, *self._ends[:-1]]
        return [buffer[start:end] for start, end in zip(starts, self._ends, strict=True)]


def _ids(work: Work) -> list[int]:
    return work.request.ids(work.start, work.start + work.num_tokens)
