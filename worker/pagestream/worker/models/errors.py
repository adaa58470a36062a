"""What can be wrong with a model, as typed errors that say how to put it right."""

from pagestream.producer.errors import PagestreamError


class ModelError(PagestreamError):
    """The model cannot be served as asked."""

    code = "model_error"


class ModelNotFound(ModelError):
    """No such directory, hub id or revision, or it cannot be reached from here."""

    code = "model_not_found"


class UnsupportedModel(ModelError):
    """The architecture, or something its configuration asks for, is not implemented."""

    code = "unsupported_model"


class BadCheckpoint(ModelError):
    """The weight files do not hold what the configuration promises."""

    code = "bad_checkpoint"
