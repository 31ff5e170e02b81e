"""The one error of the checkpoint loaders. It knows nothing of jobs or HTTP; whoever loads a model maps it."""


class ModelFormatError(ValueError):
    """The files at a path are not a whole, consistent checkpoint of the format asked for; the message says why."""
