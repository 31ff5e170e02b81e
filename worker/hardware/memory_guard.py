"""A guard of the memory of this worker's machine, or of its container.

A worker takes no jobs while its memory is full. A GPU's memory is not guarded: keys and values take
most of it at the start, by plan, and a step that lacks memory is planned smaller.
"""

import logging
from collections.abc import Callable

from shared.telemetry.logging_setup import fields
from worker.hardware.machine import memory_share

logger = logging.getLogger("aios.memory")


class MemoryGuard:
    """The share of memory that was in use at the last call of `look`, from 0 to 1.

    `is_over` is True while that share exceeds `limit`. Without a limit it is always False. `read`
    returns the present share.
    """

    def __init__(
        self, limit: float | None = None, read: Callable[[], float] = memory_share
    ) -> None:
        self._limit = limit
        self._read = read
        self.share = 0.0
        self.is_over = False

    def look(self) -> None:
        """Read the share of memory in use, from a few small files. Log when `is_over` changes."""
        self.share = self._read()
        is_over = self._limit is not None and self.share > self._limit
        if is_over and not self.is_over:
            logger.warning("memory full, nothing taken", extra=fields(share=round(self.share, 3)))
        elif self.is_over and not is_over:
            logger.warning(
                "memory free, work taken again", extra=fields(share=round(self.share, 3))
            )
        self.is_over = is_over
