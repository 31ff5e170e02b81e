"""A guard of the memory of this worker's machine, or of its container: full memory takes no work.

A GPU's memory is not looked at: keys and values take most of it at the start, by plan, and a step
that finds none is planned smaller.
"""

import logging
from collections.abc import Callable

from shared.telemetry.logging_setup import fields
from worker.hardware.machine import memory_share

logger = logging.getLogger("aios.memory")


class MemoryGuard:
    """A look at the memory now and then.

    `is_over` is True while more than `mark` of the memory was in use at the last look. Without a
    mark it never is.
    """

    def __init__(self, mark: float | None = None, read: Callable[[], float] = memory_share) -> None:
        self._mark = mark
        self._read = read
        self.share = 0.0
        self.is_over = False

    def look(self) -> None:
        """Read the memory in use again, which costs a few small files."""
        self.share = self._read()
        is_over = self._mark is not None and self.share > self._mark
        if is_over and not self.is_over:
            logger.warning("memory full, nothing taken", extra=fields(share=round(self.share, 3)))
        elif self.is_over and not is_over:
            logger.warning(
                "memory free, work taken again", extra=fields(share=round(self.share, 3))
            )
        self.is_over = is_over
