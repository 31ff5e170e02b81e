"""The check of the efforts that a model's entry names, when the model is loaded."""

from collections.abc import Callable

from shared.errors import InvalidRequest
from shared.messages import Depth
from worker.engine.depth import DepthsByEffort
from worker.models.errors import ModelFormatError


def check_efforts(efforts: DepthsByEffort, check: Callable[[Depth], object]) -> None:
    """Raise ModelFormatError for an effort whose depth `check` refuses."""
    for effort, depth in efforts.items():
        try:
            check(depth)
        except InvalidRequest as error:
            raise ModelFormatError(f"efforts: {effort}: {error.message}") from None
