"""Local inference: `/api/inference` for any task, whole or as named events, and what there is to ask."""

from typing import Annotated

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from api.deps import FrontDep
from api.dialect import Access, Dialect
from api.endpoint import Post
from api.error_format import API
from api.routes.inference_tasks import BODIES, ENDPOINTS, body_type
from api.schemas.errors import ApiErrorBody, errors_of
from api.schemas.fleet import ApiHealth, ModelStatus, ModelStatuses, api_health, model_status
from api.schemas.inference import ClassificationRequest, EchoRequest, FeatureRequest, TextGenerationRequest
from api.shapes import chosen
from shared.errors import DeviceUnavailable, ModelNotFound

router = APIRouter(prefix="/api", tags=["inference"], responses=errors_of(ApiErrorBody))
probes = APIRouter(prefix="/api", tags=["inference"], responses=errors_of(ApiErrorBody))

Body = Annotated[
    EchoRequest | TextGenerationRequest | ClassificationRequest | FeatureRequest, chosen(body_type, BODIES.values())
]


@router.get("/models/status", response_model_exclude_none=True)
async def statuses(front: FrontDep) -> ModelStatuses:
    """All models that a worker has served."""
    fleet = await front.fleet.now()
    return ModelStatuses(models=[model_status(fleet, fleet.models[name]) for name in sorted(fleet.models)])


@router.get("/models/status/{model_id:path}", response_model_exclude_none=True)
async def status(model_id: str, front: FrontDep) -> ModelStatus:
    fleet = await front.fleet.now()
    if (obstacle := fleet.obstacle(model_id)) is not None:
        raise DeviceUnavailable(obstacle, field="model_id")
    if model_id not in fleet.models:
        raise ModelNotFound(f"model_id: {model_id!r} does not exist.", field="model_id")
    return model_status(fleet, fleet.models[model_id])


@probes.get("/health", response_model=ApiHealth)
async def health(front: FrontDep) -> Response:
    """Counts of workers, models and requests; 503 while no worker is ready."""
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
            "The same as events: `token` for each piece of text, then `done` or `error`.",
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
