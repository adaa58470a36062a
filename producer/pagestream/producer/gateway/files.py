"""`/v1/files`: what batches are asked and what they answered. This module knows no lines.

Source: OpenAI's API reference, "Files".
"""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, UploadFile
from fastapi.responses import JSONResponse, Response, StreamingResponse

from ..batch.files import PIECE_BYTES, File
from .asking import Asking

router = APIRouter(prefix="/v1/files", tags=["OpenAI"])

BYTES_MAX = 200 * 1_000_000
"""As OpenAI has it for batches."""

Limit = Annotated[int, Query(ge=1, le=10_000)]


@router.post("")
async def create_file(
    ask: Asking, file: UploadFile, purpose: Annotated[Literal["batch"], Form()]
) -> Response:
    """Upload a file of requests for a batch."""
    made = await ask.queues.files.create(
        _parts(file),
        tenant=ask.tenant,
        filename=file.filename or "file.jsonl",
        purpose=purpose,
        bytes_max=BYTES_MAX,
    )
    return JSONResponse(file_object(made))


@router.get("")
async def list_files(ask: Asking, after: str | None = None, limit: Limit = 10_000) -> Response:
    """List the files there are, the newest first."""
    files, has_more = await ask.queues.files.page(ask.tenant, after=after, limit=limit)
    return JSONResponse(page_of([file_object(one) for one in files], has_more))


@router.get("/{file_id}")
async def retrieve_file(file_id: str, ask: Asking) -> Response:
    """Say what a file is."""
    return JSONResponse(file_object(await ask.queues.files.get(file_id, ask.tenant)))


@router.get("/{file_id}/content")
async def retrieve_content(file_id: str, ask: Asking) -> Response:
    """Return a file's bytes."""
    file = await ask.queues.files.get(file_id, ask.tenant)
    return StreamingResponse(
        ask.queues.files.content(file),
        media_type="application/octet-stream",
        headers={"Content-Length": str(file.bytes)},
    )


@router.delete("/{file_id}")
async def delete_file(file_id: str, ask: Asking) -> Response:
    """Delete a file; a batch that still reads it fails."""
    await ask.queues.files.delete(await ask.queues.files.get(file_id, ask.tenant))
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


def file_object(file: File) -> dict[str, Any]:
    """Return a file as OpenAI tells of it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_ms // 1000,
        "expires_at": file.expires_ms // 1000,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def page_of(items: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """Return a page of a list."""
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more,
    }


async def _parts(file: UploadFile) -> AsyncIterator[bytes]:
    while part := await file.read(PIECE_BYTES):
        yield part
