"""`/v1/puzzles/solve`: grids in, solutions out, in order."""

from collections.abc import Sequence

from api.endpoints.dialect import Dialect
from api.endpoints.endpoint import Endpoint, Post, TaskPlan
from api.schemas.puzzles import SolveRequest, SolveResponse, solve_response
from api.stream.request_events import Outcome
from api.submit.limits import Limits
from api.submit.request_record import SubmittedWork
from shared.messages import ModelInfo


def _plan(body: SolveRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    limits.check_count("grids", len(body.puzzles))
    return TaskPlan(
        body.tasks(), notes={"as_string": [isinstance(puzzle, str) for puzzle in body.puzzles]}
    )


def _whole(work: SubmittedWork, outcomes: Sequence[Outcome]) -> SolveResponse:
    return solve_response(work.record.model, work.record.notes["as_string"], outcomes)


SOLVE = Endpoint(
    name="solve",
    task="solve",
    body=SolveRequest,
    answer=SolveResponse,
    plan=_plan,
    render=_whole,
)
DIALECT = Dialect(
    (
        Post(
            "/v1/puzzles/solve",
            "solve",
            (
                "One solution for each grid, with the network's confidence in it and the ACT "
                "segments it took."
            ),
            (SOLVE,),
            tag="puzzles",
            job_task="solve",
        ),
    ),
    prefix="/v1/puzzles/",
)
