"""`/v1/puzzles/solve`: grids in, solutions out, in order."""

from fastapi import APIRouter, Request

from api.deps import FrontDep, TrailDep
from api.run import total_usage
from api.schemas.puzzles import SolveRequest, SolveResponse, solve_response

router = APIRouter(tags=["puzzles"])


@router.post("/v1/puzzles/solve")
async def solve(body: SolveRequest, request: Request, front: FrontDep, trail: TrailDep) -> SolveResponse:
    """One solution for each grid, with the network's confidence in it and the ACT segments it took."""
    front.admission.check_count("grids", len(body.puzzles))
    model = await front.admission.resolve(body.model, "solve")
    jobs = await front.admission.submit(model, body.tasks(), trail.request_id)
    outcomes = await front.dispatcher.gather(jobs, request.receive)
    trail.usage = total_usage(outcomes)
    return solve_response(model.id, body.puzzles, outcomes)
