"""How far a stream has come, as text in the `id:` of its frames, so that any front can go on behind
any frame.

REQUEST.3-0+1-5 of the first job all frames up to its 3rd event, of the second one frame of its 1st
event, ... REQUEST.9-4-8.1 and one of the frames that close the stream
"""

import re
from dataclasses import dataclass, replace

from shared.errors import InvalidRequest

HEADER = "Last-Event-ID"
_FORM = re.compile(
    r"([0-9a-f]{34})\.([0-9]{1,10}(?:\+[0-9]{1,3})?(?:-[0-9]{1,10}(?:\+[0-9]{1,3})?)*)(?:\.([0-9]))?"
)
_MOST_CHARACTERS = 16_384


@dataclass(frozen=True)
class Cursor:
    """For each job the index of its last event that was told whole, and how many frames of the one
    behind it were."""

    request_id: str
    jobs: tuple[tuple[int, int], ...]
    closing: int = 0

    @classmethod
    def start(cls, request_id: str, num_jobs: int) -> "Cursor":
        return cls(request_id, ((0, 0),) * num_jobs)

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Raises InvalidRequest."""
        match = _FORM.fullmatch(text) if len(text) <= _MOST_CHARACTERS else None
        if match is None:
            raise InvalidRequest(f"{HEADER}: expected the id of a frame.", field=HEADER)
        parts = [part.partition("+") for part in match[2].split("-")]
        return cls(
            match[1],
            tuple((int(index), int(frames or 0)) for index, _, frames in parts),
            int(match[3] or 0),
        )

    def __str__(self) -> str:
        jobs = "-".join(
            f"{index}+{frames}" if frames else str(index) for index, frames in self.jobs
        )
        return (
            f"{self.request_id}.{jobs}.{self.closing}"
            if self.closing
            else f"{self.request_id}.{jobs}"
        )

    def check(self, request_id: str, last: list[int]) -> None:
        """Raises InvalidRequest unless it is one of this request, whose jobs' logs have come to the
        indexes `last`."""
        is_near = len(self.jobs) == len(last) and all(
            told <= end for (told, _), end in zip(self.jobs, last, strict=True)
        )
        if self.request_id != request_id or not is_near:
            raise InvalidRequest(
                f"{HEADER}: expected the id of a frame of this request.", field=HEADER
            )

    def has(self, job: int, index: int, number: int) -> bool:
        """Whether the frame with this number (from 0) of an event is at or before the cursor."""
        told, frames = self.jobs[job]
        return index <= told or (index == told + 1 and number < frames)

    def at(self, job: int, index: int, frames: int = 0) -> "Cursor":
        """With one job moved."""
        return replace(self, jobs=(*self.jobs[:job], (index, frames), *self.jobs[job + 1 :]))

    def closed(self, frames: int) -> "Cursor":
        """With so many of the closing frames told."""
        return replace(self, closing=frames)
