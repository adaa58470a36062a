"""What can be wrong with a model, as typed errors that say how to put it right."""

from ..errors import ModelError


class ModelNotFound(ModelError):
    """No such directory, hub id or revision, or it cannot be reached from here."""

    code = "model_not_found"


class UnsupportedModel(ModelError):
    """The architecture, or something its configuration asks for, is not implemented."""

    code = "unsupported_model"


class BadCheckpoint(ModelError):
    """The model's files do not hold what they should."""

    code = "bad_checkpoint"
