"""Evaluations that the fleet runs by itself, for operators (docs/evaluation.md).

A front only keeps the books. `aios jobs` asks (`api/evaluation/evaluator.py`).
"""

from functools import cache

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from api.access.caller import CallerDep
from api.deps import Front, FrontDep
from api.endpoints.dialect import Access, Dialect
from api.evaluation.evaluator import WINDOW_S
from api.evaluation.sets import EvalSet, chosen_sets, read_sets
from api.redis_timeout import redis_answers
from api.schemas.errors import ApiErrorBody, errors_of
from api.schemas.evaluation import (
    EvaluationBody,
    EvaluationListing,
    EvaluationRequest,
    evaluation_body,
    evaluation_entry,
)
from api.submit.request_options import KeyDep
from shared.errors import EvaluationNotFound, ModelNotFound
from shared.queue.batches import BatchCaller
from shared.queue.evaluation_runs import EvaluationRuns, RunSpec

PREFIX = "/api/evaluation"
_MOST_LISTED = 100
"""More than are kept."""

router = APIRouter(prefix=PREFIX, tags=["evaluation"], responses=errors_of(ApiErrorBody))


@cache
def _sets() -> dict[str, EvalSet]:
    return read_sets()


def _runs(front: Front) -> EvaluationRuns:
    return EvaluationRuns(front.broker)


@router.post("/run", status_code=202, response_model=EvaluationBody)
@redis_answers()
async def run(
    body: EvaluationRequest, front: FrontDep, caller: CallerDep, *, key: KeyDep
) -> JSONResponse:
    """Have the sets asked, one item after the other. The answer is 202 with the address."""
    chosen_sets(_sets(), body.tasks)
    if body.model is not None:
        fleet = await front.fleet.now()
        if body.model not in fleet.models:
            raise ModelNotFound(f"model: {body.model!r} does not exist.", field="model")
    spec = RunSpec(
        tasks=None if body.tasks is None else tuple(body.tasks),
        model=body.model,
        is_accepted=body.accept,
        tenant=caller.tenant,
        caller=BatchCaller(
            id=caller.id,
            digest=caller.digest,
            models=tuple(sorted(caller.models)),
            best_priority=caller.best_priority,
        ),
    )
    made = await _runs(front).create(spec, window_s=WINDOW_S, key=key)
    headers = {"Location": f"{PREFIX}/runs/{made.id}"}
    return JSONResponse(evaluation_body(made).model_dump(mode="json"), 202, headers)


@router.get("/latest")
@redis_answers()
async def latest(front: FrontDep) -> EvaluationBody:
    """Return the last evaluation that has a report. 404 before the first one."""
    runs = _runs(front)
    latest_id = await runs.latest_id()
    if latest_id is None:
        raise EvaluationNotFound("No evaluation has ended yet.")
    return evaluation_body(await runs.find(latest_id))


@router.get("/runs")
@redis_answers()
async def last_runs(front: FrontDep) -> EvaluationListing:
    """List the evaluations that are kept, the newest first, without their reports."""
    runs = await _runs(front).last(_MOST_LISTED)
    return EvaluationListing(runs=[evaluation_entry(run) for run in runs])


@router.get("/runs/{id}")
@redis_answers()
async def one_run(id: str, front: FrontDep) -> EvaluationBody:
    """Return an evaluation, as far as it has come."""
    return evaluation_body(await _runs(front).find(id))


DIALECT = Dialect(router=router, access=Access.ADMIN)
