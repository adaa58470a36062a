"""Models: one config-driven decoder, what each family needs of it, and its weights.

Importing this package, or `models.hub`, loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from pagestream.worker.config import EngineConfig
    from pagestream.worker.models.decoder import Decoder


def load_model(
    config: EngineConfig, device: torch.device, progress: Callable[[int, int], None] | None = None
) -> Decoder:
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

    from pagestream.worker.models.decoder import Decoder
    from pagestream.worker.models.hub import resolve
    from pagestream.worker.models.rope import make_rope
    from pagestream.worker.models.spec import read_spec
    from pagestream.worker.models.weights import dummy_weights, load_weights

    if config.dtype != "auto":
        dtype = getattr(torch, config.dtype)
    else:
        dtype = torch.float32 if device.type == "cpu" else None
    directory = resolve(config.model, config.revision, weights=config.load_format == "auto")
    spec = read_spec(directory, dtype)
    model = Decoder(
        spec, make_rope(spec, config.max_model_tokens or spec.context_tokens, device), device
    )
    if config.load_format == "dummy":
        dummy_weights(model, progress)
    else:
        load_weights(model, directory, progress)
    return model
