"""Local inference: `/api/inference` for any task, whole or as named events, and its models."""

from functools import reduce
from operator import or_
from typing import Annotated, Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from api.deps import Front, FrontDep
from api.endpoints.dialect import Access, Dialect
from api.endpoints.endpoint import Post
from api.endpoints.shapes import chosen
from api.http.error_format import API
from api.routes.inference_tasks import BODIES, ENDPOINTS, body_type
from api.schemas.errors import ApiErrorBody, errors_of
from api.schemas.fleet import ApiHealth, ModelStatus, ModelStatuses, api_health, model_status
from api.submit.admission import unseen
from shared.errors import DeviceUnavailable, ModelNotFound
from shared.fleet.presence import Fleet
from shared.messages import ModelInfo

router = APIRouter(prefix="/api", tags=["inference"], responses=errors_of(ApiErrorBody))
probes = APIRouter(prefix="/api", tags=["inference"], responses=errors_of(ApiErrorBody))

# The union of all bodies, which grows with the tables of tasks.
_any_body: Any = reduce(or_, BODIES.values())
Body = Annotated[_any_body, chosen(body_type, BODIES.values())]


@router.get("/models/status", response_model_exclude_none=True)
async def statuses(front: FrontDep) -> ModelStatuses:
    """List all models that a worker has served, and those of the catalogue."""
    fleet = await front.fleet.now()
    models = []
    for name in sorted(fleet.models.keys() | fleet.catalogued):
        models.append(model_status(fleet, _known(front, fleet, name)))
    return ModelStatuses(models=models)


@router.get("/models/status/{model_id:path}", response_model_exclude_none=True)
async def status(model_id: str, front: FrontDep) -> ModelStatus:
    fleet = await front.fleet.now()
    obstacle = fleet.obstacle(model_id)
    if obstacle is not None:
        raise DeviceUnavailable(obstacle, field="model_id")
    if model_id not in fleet.models and model_id not in fleet.catalogued:
        raise ModelNotFound(f"model_id: {model_id!r} does not exist.", field="model_id")
    return model_status(fleet, _known(front, fleet, model_id))


def _known(front: Front, fleet: Fleet, model_id: str) -> ModelInfo:
    """Return what is known of a model that is in the fleet or in its catalogue."""
    return fleet.models.get(model_id) or unseen(model_id, front.admission.limits)


@probes.get("/health", response_model=ApiHealth)
async def health(front: FrontDep) -> Response:
    """Count workers, models and jobs. Answer 503 while no worker is ready."""
    body = api_health(await front.fleet.now())
    return JSONResponse(body.model_dump(), 200 if body.status == "ok" else 503)


DIALECT = Dialect(
    (
        Post(
            "/api/inference",
            "inference",
            "Have a task done; without one, the inputs come back.",
            ENDPOINTS,
            tag="inference",
            body=Body,
        ),
        Post(
            "/api/inference/stream",
            "inference_stream",
            "The same as events: `token` for each piece of text, `progress`, then `done` or `error`.",
            ENDPOINTS,
            tag="inference",
            body=Body,
            always_streams=True,
        ),
    ),
    router,
    prefix="/api/",
    errors=API,
)
HEALTH = Dialect(router=probes, access=Access.OPEN, are_probes=True)
