"""A stream of plain text: a payload for each piece of each completion, and what is known of all at the end."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from api.error_format import PLAIN
from api.pieces import Piece, Pieces
from api.problem import Problem
from api.request_state import Usage
from api.run import JobEvent, Outcome, Tally
from api.timings import Timings

End = Callable[[Sequence[Outcome], Timings | None], dict[str, Any]]


class Texts:
    """Of `num_jobs` jobs with `n` completions each; `end` makes the last payload of all outcomes and their timings."""

    def __init__(self, n: int, num_jobs: int, end: End) -> None:
        self._pieces = Pieces(n)
        self._tallies = [Tally(n) for _ in range(num_jobs)]
        self._end = end

    def opening(self) -> dict[str, Any]:
        return _payload(Piece(0))

    def of(self, job: int, event: JobEvent) -> Iterator[dict[str, Any]]:
        self._tallies[job].add(event)
        for piece in self._pieces.of(job, event):
            if piece.text or piece.finish_reason:
                yield _payload(piece)

    def closing(self, usage: Usage, timings: Timings | None) -> Iterator[dict[str, Any]]:
        yield self._end([tally.outcome() for tally in self._tallies], timings)

    def failed(self, problem: Problem) -> dict[str, Any]:
        return PLAIN.body(problem)


def _payload(piece: Piece) -> dict[str, Any]:
    return {"index": piece.index, "text": piece.text, "finish_reason": piece.finish_reason}
