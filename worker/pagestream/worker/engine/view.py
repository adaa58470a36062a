"""What the scheduler holds, as a picture that can be sent.

Pure Python: knows no device, no text and no Redis.
"""

from collections.abc import Iterable

from ..messages import RequestView, View
from .blocks import BlockPool
from .request import Request, State

MOST_CELLS = 1024
"""Cells of a block map: all that a terminal or a page can show."""


def view_of(requests: Iterable[Request], pool: BlockPool, step: int) -> View:
    """Return the view of these requests and their blocks after `step` steps."""
    block_map, span = pool.picture(MOST_CELLS)
    return View(
        step=step,
        requests=[_request_view(request) for request in requests],
        idle_blocks=pool.cache.num_idle,
        block_map=block_map,
        blocks_per_cell=span,
    )


def _request_view(request: Request) -> RequestView:
    if request.state is State.WAITING:
        state = "waiting"
    else:
        state = "decode" if request.is_decoding else "prefill"
    return RequestView(
        request.request_id,
        state,
        request.num_tokens,
        request.num_computed_tokens,
        len(request.blocks),
        request.cached_tokens,
    )
