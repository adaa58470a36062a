"""`/v1/batches`: files of requests, answered when there is time. The jobs process runs them.

This module knows requests and what a batch looks like; not how one is run.

Source: OpenAI's API reference, "Batch".
"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from ..batch.batches import Batch
from ..batch.files import made_id, new_id
from ..batch.runner import start
from ..errors import InvalidRequest
from .asking import Asking
from .files import page_of

router = APIRouter(prefix="/v1/batches", tags=["OpenAI"])

Limit = Annotated[int, Query(ge=1, le=100)]
Name = Annotated[str, Field(max_length=64)]
Value = Annotated[str, Field(max_length=512)]


class BatchBody(BaseModel):
    """`POST /v1/batches`."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: str = Field(min_length=1, max_length=128)
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: dict[Name, Value] | None = Field(None, max_length=16)
    webhook: str | None = Field(
        None, max_length=2048, description="A URL to tell of the end. Or `X-Webhook`."
    )


@router.post("")
async def create_batch(body: BatchBody, ask: Asking) -> Response:
    """Have a file's requests answered within a day, behind all other work."""
    key = ask.idempotency_key
    batch = await start(
        ask.queues.files,
        ask.queues.batches,
        ask.queues.due,
        made_id("batch_", ask.tenant, key) if key else new_id("batch_"),
        tenant=ask.tenant,
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        completion_window=body.completion_window,
        metadata=body.metadata,
        webhook=body.webhook or ask.webhook,
        queue_limit=ask.key.queue_limit,
    )
    return JSONResponse(batch_object(batch))


@router.get("")
async def list_batches(ask: Asking, after: str | None = None, limit: Limit = 20) -> Response:
    """List the batches there are, the newest first."""
    batches, has_more = await ask.queues.batches.page(ask.tenant, after=after, limit=limit)
    return JSONResponse(page_of([batch_object(one) for one in batches], has_more))


@router.get("/{batch_id}")
async def retrieve_batch(batch_id: str, ask: Asking) -> Response:
    """Say how far a batch is."""
    return JSONResponse(batch_object(await ask.queues.batches.get(batch_id, ask.tenant)))


@router.post("/{batch_id}/cancel")
async def cancel_batch(batch_id: str, ask: Asking) -> Response:
    """Cancel a batch: what is answered by now becomes its files."""
    batch = await ask.queues.batches.get(batch_id, ask.tenant)
    if batch.ended:
        raise InvalidRequest(f"the batch {batch_id} is {batch.status}: nothing is left to cancel")
    await ask.queues.batches.move(batch_id, ["validating", "in_progress"], "cancelling")
    return JSONResponse(batch_object(await ask.queues.batches.get(batch_id, ask.tenant)))


def batch_object(batch: Batch) -> dict[str, Any]:
    """Return a batch as OpenAI tells of it."""
    about = batch.about
    problems = [
        {"code": one.code, "message": one.message, "line": one.line, "param": one.param}
        for one in batch.problems
    ]
    return {
        "id": about.id,
        "object": "batch",
        "endpoint": about.endpoint,
        "errors": {"object": "list", "data": problems} if problems else None,
        "input_file_id": about.input_file_id,
        "completion_window": about.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": about.created_ms // 1000,
        "expires_at": about.expires_ms // 1000,
        **{f"{name}_at": _at(batch, name) for name in _TOLD},
        "request_counts": {
            "total": batch.total,
            "completed": batch.completed,
            "failed": batch.failed,
        },
        "metadata": about.metadata,
    }


_TOLD = (
    *("in_progress", "finalizing", "completed", "failed", "expired"),
    *("cancelling", "cancelled"),
)


def _at(batch: Batch, status: str) -> int | None:
    reached_ms = batch.reached_ms.get(status)
    return None if reached_ms is None else reached_ms // 1000
