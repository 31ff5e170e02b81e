"""`/v1/puzzles/...`: `solve` has grids in and solutions out, in order. `arc` has a file of its own."""

from collections.abc import Sequence
from typing import Any

from api.endpoints.dialect import Dialect
from api.endpoints.endpoint import Endpoint, Post, TaskPlan, WholeAnswerStream
from api.routes import arc
from api.schemas.puzzles import SolveRequest, SolveResponse, segment_payload, solve_response
from api.stream.request_events import Outcome
from api.submit.limits import Limits
from api.submit.request_record import SubmittedWork
from shared.messages import ModelInfo, Progress
from shared.tasks.samples import leaders_of


def _plan(body: SolveRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    limits.check_count("grids", len(body.puzzles))
    sampled = body.sampled()
    return TaskPlan(
        body.tasks(sampled),
        notes={
            "as_string": [isinstance(puzzle, str) for puzzle in body.puzzles],
            "samples": sampled.count,
            "select": sampled.select,
        },
        leaders=leaders_of(len(body.puzzles), sampled),
    )


def _whole(work: SubmittedWork, outcomes: Sequence[Outcome]) -> SolveResponse:
    notes = work.record.notes
    return solve_response(
        work.record.model,
        notes["as_string"],
        outcomes,
        # A front of an earlier version noted neither.
        samples=notes.get("samples", 1),
        select=notes.get("select", "first"),
    )


class _SolveStream(WholeAnswerStream):
    """The stream of a request: each segment of each sample, then the whole answer."""

    def __init__(self, work: SubmittedWork) -> None:
        super().__init__(SOLVE, work)

    def _progress(self, job: int, progress: Progress) -> Any:
        if progress.segment is None:
            return super()._progress(job, progress)
        notes = self._work.record.notes
        puzzle, sample = divmod(job, notes["samples"])
        return segment_payload(
            self._work.id,
            progress,
            progress.segment,
            puzzle=puzzle,
            sample=sample,
            as_string=notes["as_string"][puzzle],
        )


SOLVE = Endpoint(
    name="solve",
    task="solve",
    body=SolveRequest,
    answer=SolveResponse,
    plan=_plan,
    render=_whole,
    stream=_SolveStream,
)
DIALECT = Dialect(
    (
        Post(
            "/v1/puzzles/solve",
            "solve",
            (
                "One solution for each grid, with the network's confidence in it and the ACT "
                "segments it took. A stream shows the grid after each segment."
            ),
            (SOLVE,),
            tag="puzzles",
            job_task="solve",
        ),
        arc.POST,
    ),
    prefix="/v1/puzzles/",
)
