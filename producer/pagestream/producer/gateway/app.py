"""The gateway's application: what is started with it, and its routers.

This module knows no request.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.requests import Request
from fastapi.responses import Response

from ..admin import Admin
from ..live import AsyncLive
from . import (
    batches,
    chat,
    completions,
    dashboard,
    files,
    health,
    metrics,
    models,
    responses,
    streams,
)
from .api_keys import ApiKeys
from .failures import add_handlers
from .queues import Queues
from .settings import GatewaySettings
from .waiting import CLIENT_CLOSED_REQUEST, HungUp


def create_app(settings: GatewaySettings) -> FastAPI:
    """Return the application; it connects to Redis when it is first asked.

    Raises:
        InvalidRequest: the API keys cannot be read, or the Redis URL is none.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        app.state.queues = Queues(settings.redis_url, queue_limit=settings.queue_limit)
        app.state.live = AsyncLive(settings.redis_url)
        app.state.admin = Admin(settings.redis_url)
        try:
            yield
        finally:
            await app.state.queues.aclose()
            await app.state.live.aclose()
            app.state.admin.close()
            app.state.metrics.close()

    app = FastAPI(title="pagestream", summary="OpenAI's API over a queue", lifespan=lifespan)
    app.state.settings = settings
    app.state.api_keys = ApiKeys.read(settings.api_keys)
    app.state.metrics = metrics.GatewayMetrics(settings.redis_url)
    app.add_middleware(metrics.CountRequests, metrics=app.state.metrics)
    add_handlers(app)
    app.add_exception_handler(HungUp, _hung_up)
    for area in (
        *(chat, completions, responses, models, streams, files, batches),
        *(health, metrics, dashboard),
    ):
        app.include_router(area.router)
    return app


async def _hung_up(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
