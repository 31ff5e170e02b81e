"""`/v1/puzzles/solve`: grids in, solutions out, in order."""

from collections.abc import Sequence

from fastapi import APIRouter, Response

from api.ask import AskDep, Plan
from api.kinds import Dialect, Kind
from api.record import Work
from api.run import Outcome
from api.schemas.errors import LATER
from api.schemas.puzzles import SolveRequest, SolveResponse, solve_response

router = APIRouter(tags=["puzzles"], responses=LATER)


@router.post("/v1/puzzles/solve", response_model=SolveResponse)
async def solve(body: SolveRequest, ask: AskDep) -> Response:
    """One solution for each grid, with the network's confidence in it and the ACT segments it took."""
    ask.front.admission.check_count("grids", len(body.puzzles))
    plan = Plan(body.tasks(), notes={"as_string": [isinstance(puzzle, str) for puzzle in body.puzzles]})
    return await ask.answer(SOLVE, body.model, lambda _: plan)


def _whole(work: Work, outcomes: Sequence[Outcome]) -> SolveResponse:
    return solve_response(work.record.model, work.record.notes["as_string"], outcomes)


SOLVE = Kind("solve", "solve", _whole)
DIALECT = Dialect(router, (SOLVE,))
