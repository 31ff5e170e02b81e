"""The interface of what answers lines: models in this process, or a fleet."""

from typing import Protocol

from api.batches.lines import BatchLine
from shared.queue.batches import LineAnswer


class Answerer(Protocol):
    """Answers lines, up to `most_at_once` of them at a time."""

    most_at_once: int

    async def answer(self, line: BatchLine) -> LineAnswer:
        """Return the answer of a line, which may be a refusal.

        Raise ToolError if no line can be answered any more.
        """
        ...

    async def close(self) -> None:
        """Free what it holds. Lines under way are dropped."""
        ...
