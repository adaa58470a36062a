"""`/v1/models`: what live workers serve.

Source: OpenAI's API reference, "Models"; `max_model_len` as vLLM has it.
"""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from ..errors import UnknownModel
from ..protocol import ModelInfo
from .asking import Asking

router = APIRouter(prefix="/v1/models", tags=["OpenAI"])


@router.get("")
async def list_models(ask: Asking) -> Response:
    """List the models that live workers serve."""
    served = await ask.queues.models()
    data = [_model(name, info) for name, info in served]
    return JSONResponse({"object": "list", "data": data})


@router.get("/{model:path}")
async def retrieve_model(model: str, ask: Asking) -> Response:
    """Describe one of them."""
    served = dict(await ask.queues.models())
    if model not in served:
        names = ", ".join(served) or "none"
        raise UnknownModel(f"no live worker serves {model!r}; served now: {names}")
    return JSONResponse(_model(model, served[model]))


def _model(name: str, info: ModelInfo) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,  # a queue has no beginning
        "owned_by": "pagestream",
        "root": info.name,
        "parent": None,
        "vocab_size": info.vocab_size,
        "max_model_len": info.context_tokens,
        "has_chat_template": info.has_chat_template,
    }
