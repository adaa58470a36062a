"""`/health` and `/ready`: whether the gateway lives, and whether it can reach the queues."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

router = APIRouter(tags=["probes"])


@router.get("/health")
async def health() -> Response:
    """Return 200: the process answers."""
    return JSONResponse({"ok": True})


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Return 200 if Redis answers, else 503."""
    await request.app.state.queues.ping()
    return JSONResponse({"ok": True})
