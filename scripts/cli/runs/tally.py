"""The sums over the lines of an output, as a run shows them."""

from collections.abc import Mapping
from typing import Any, Protocol


class Counted(Protocol):
    """A tally that a progress can show: how much is done, and more about it."""

    num_done: int

    def parts(self, seconds: float) -> list[str]:
        """Return the sums as texts for people, after so many seconds of a run."""


class Tally(Counted, Protocol):
    """Sums over the lines of an output, of which there are `num_done`."""

    def add(self, line: Mapping[str, Any]) -> None:
        """Count a line."""
