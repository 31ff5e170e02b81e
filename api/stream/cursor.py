"""The cursor of a stream: a text in the `id:` of each frame, behind which any front can go on.

REQUEST.3-0+1-5 stands behind all frames of the first job up to its 3rd event, behind one frame of
the 1st event of the second job, and so on. REQUEST.9-4-8.1 stands behind one of the frames that
close the stream as well.
"""

import re
from dataclasses import dataclass, replace

from shared.errors import InvalidRequest

HEADER = "Last-Event-ID"
_JOB = r"[0-9]{1,10}(?:\+[0-9]{1,3})?"
_FORM = re.compile(rf"([0-9a-f]{{34}})\.({_JOB}(?:-{_JOB})*)(?:\.([0-9]))?")
_MOST_CHARACTERS = 16_384


@dataclass(frozen=True)
class Cursor:
    """The last event of each job that was sent whole, and how many frames of the next one were."""

    request_id: str
    jobs: tuple[tuple[int, int], ...]
    closing: int = 0

    @classmethod
    def start(cls, request_id: str, num_jobs: int) -> "Cursor":
        return cls(request_id, ((0, 0),) * num_jobs)

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Return the cursor that a client sent back. Raise InvalidRequest for any other text."""
        match = None
        if len(text) <= _MOST_CHARACTERS:
            match = _FORM.fullmatch(text)
        if match is None:
            raise InvalidRequest(f"{HEADER}: expected the id of a frame.", field=HEADER)
        jobs = []
        for part in match[2].split("-"):
            index, _, frames = part.partition("+")
            jobs.append((int(index), int(frames or 0)))
        return cls(match[1], tuple(jobs), closing=int(match[3] or 0))

    def __str__(self) -> str:
        parts = []
        for index, frames in self.jobs:
            part = str(index)
            if frames:
                part += f"+{frames}"
            parts.append(part)
        text = f"{self.request_id}.{'-'.join(parts)}"
        if self.closing:
            text += f".{self.closing}"
        return text

    def check(self, request_id: str, last: list[int]) -> None:
        """Raise InvalidRequest unless this is a cursor of a request with these logs.

        `last` are the newest indexes of its jobs' logs.
        """
        is_known = self.request_id == request_id and len(self.jobs) == len(last)
        if is_known:
            for (index, _), newest in zip(self.jobs, last, strict=True):
                is_known = is_known and index <= newest
        if not is_known:
            raise InvalidRequest(
                f"{HEADER}: expected the id of a frame of this request.", field=HEADER
            )

    def has(self, job: int, index: int, number: int) -> bool:
        """Return whether a frame of an event, by its number from 0, is at or before the cursor."""
        last, frames = self.jobs[job]
        return index <= last or (index == last + 1 and number < frames)

    def at(self, job: int, index: int, frames: int = 0) -> "Cursor":
        """Return the cursor with one job moved."""
        # Once a token: `dataclasses.replace` takes several times as long.
        jobs = (*self.jobs[:job], (index, frames), *self.jobs[job + 1 :])
        return Cursor(self.request_id, jobs, self.closing)

    def closed(self, frames: int) -> "Cursor":
        """Return the cursor behind so many of the closing frames."""
        return replace(self, closing=frames)
