"""Models: one config-driven decoder, what each family needs of it, and its weights.

Importing this package, or `models.hub`, loads no torch: the queue process reads models' files too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..config import BLOCK_TOKENS, EngineConfig

if TYPE_CHECKING:
    import torch

    from .decoder import Model
    from .spec import ModelSpec

__all__ = ["Model", "ModelSpec", "load_model"]


def load_model(
    config: EngineConfig,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> Model:
    """Find the model's files and return its decoder, with the weights on `device`.

    Args:
        config: `model`, `revision`, `dtype`, `load_format` and `max_model_tokens` are read.
        device: where the parameters go.
        progress: called with (bytes done, bytes in all) as the weights arrive.

    Raises:
        ModelNotFound: there is no such model here or on the hub.
        UnsupportedModel: its architecture, or a feature it needs, is not implemented.
        BadCheckpoint: its files are damaged or do not fit its configuration.
    """
    import torch

    from .decoder import Model
    from .hub import resolve
    from .rope import make_rope
    from .spec import read_spec
    from .weights import dummy_weights, load_weights

    dtype = torch.float32 if device.type == "cpu" else None
    if config.dtype != "auto":
        dtype = getattr(torch, config.dtype)
    directory = resolve(config.model, config.revision, weights=config.load_format == "auto")
    spec = read_spec(directory, dtype)
    # Whole blocks: a step that only warms up fills the last one to its end.
    max_blocks = -(-(config.max_model_tokens or spec.context_tokens) // BLOCK_TOKENS)
    model = Model(spec, make_rope(spec, max_blocks * BLOCK_TOKENS, device), device)
    if config.load_format == "dummy":
        dummy_weights(model, progress)
    else:
        load_weights(model, directory, progress)
    return model


def __getattr__(name: str) -> Any:
    """Load torch only when one of the classes is asked for."""
    if name == "Model":
        from .decoder import Model

        return Model
    if name == "ModelSpec":
        from .spec import ModelSpec

        return ModelSpec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
