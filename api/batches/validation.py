"""Validate the file of a batch, before any of its lines is run.

This module is pure: it reads lines, and knows neither Redis nor endpoints.
"""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from api.batches.lines import LineFault, RawLine, read_line
from shared.queue.batches import BatchError

# So many bits tell 50,000 names apart, and take less memory than the names.
_DIGEST_BYTES = 16


class BatchRefused(Exception):
    """The file as a whole cannot be run."""

    def __init__(self, error: BatchError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True)
class Validation:
    """The number of lines that are not blank, and those whose `custom_id` came before."""

    total: int
    duplicates: tuple[int, ...]


async def validated(
    lines: AsyncIterator[RawLine], *, url: str, max_lines: int, max_line_bytes: int
) -> Validation:
    """Return what a file holds. Raise BatchRefused for too many lines, and for none.

    Lines that are no requests do not fail a batch: each of them has an answer of its own.
    """
    total = 0
    seen: set[bytes] = set()
    duplicates: list[int] = []
    async for raw in lines:
        # Blank lines count, too, so that no file of them takes for ever.
        if raw.number > max_lines:
            message = f"Expected at most {max_lines} lines; this file has more."
            raise BatchRefused(BatchError("too_many_lines", message, line=raw.number))
        if raw.is_blank:
            continue
        total += 1
        line = read_line(raw, url=url, max_bytes=max_line_bytes)
        if isinstance(line, LineFault):
            continue
        digest = hashlib.blake2b(line.custom_id.encode(), digest_size=_DIGEST_BYTES).digest()
        if digest in seen:
            duplicates.append(raw.number)
        seen.add(digest)
    if total == 0:
        raise BatchRefused(BatchError("empty_file", "Expected at least one line."))
    return Validation(total, tuple(duplicates))
