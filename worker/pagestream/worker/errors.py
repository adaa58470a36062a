"""What can go wrong in a worker that is nobody's request: its settings, its model, its GPU."""

from pagestream.producer.errors import PagestreamError


class ConfigError(PagestreamError):
    """The settings cannot work together, or not with this model or machine."""

    code = "config"


class ModelError(PagestreamError):
    """The model cannot be found, read or run."""

    code = "model"


class OutOfMemory(PagestreamError):
    """The GPU has not even memory for one token of a request."""

    code = "out_of_memory"

    def __init__(self, request_id: str) -> None:
        super().__init__(
            "the GPU has no memory left to compute a token of this request: end what else uses "
            "the GPU, or leave it more with a lower --gpu-memory-utilization"
        )
        self.request_id = request_id
