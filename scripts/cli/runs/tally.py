"""The sums over the lines of an output, as a run shows them."""

from collections.abc import Mapping
from typing import Any, Protocol


class Tally(Protocol):
    """Sums over the lines of an output, of which there are `num_done`."""

    num_done: int

    def add(self, line: Mapping[str, Any]) -> None:
        """Count a line."""

    def parts(self, seconds: float) -> list[str]:
        """Return the sums as texts for people, after so many seconds of a run."""
