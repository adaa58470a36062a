"""What can go wrong before a worker takes its first job."""

from pagestream.producer.errors import PagestreamError


class ConfigError(PagestreamError):
    """The settings cannot work together, or not with this model or machine."""

    code = "config"


class ModelError(PagestreamError):
    """The model cannot be found, read or run."""

    code = "model"
