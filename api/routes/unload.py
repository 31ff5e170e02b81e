"""Have workers give a model's memory back.

The model stays served: a later request loads it again.
"""

import asyncio
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import JSONResponse

from api.deps import Front, FrontDep
from api.endpoints.dialect import Access, Dialect
from api.routes.inference_tasks import TASKS
from api.schemas.errors import ApiErrorBody, Responses, errors_of
from api.schemas.fleet import Unloading, unloading
from shared.errors import InvalidRequest, ModelNotFound

router = APIRouter(prefix="/api/models", tags=["inference"], responses=errors_of(ApiErrorBody))

PATIENCE_S = 5.0
_LOOK_S = 0.2
ModelId = Annotated[str, Path(description="May contain slashes.")]
RESPONSES: Responses = {
    202: {"model": Unloading, "description": "Jobs in hand are being ended first."}
}


@router.post("/unload/{model_id:path}", response_model=Unloading, responses=RESPONSES)
async def unload(model_id: ModelId, front: FrontDep) -> JSONResponse:
    """Free a model's memory on all workers, on each when its jobs in hand have ended.

    Answer 200 when that is done, 202 when it takes longer than a few seconds.
    """
    return await _unload(front, model_id)


@router.delete("/{task}/{model_id:path}", response_model=Unloading, responses=RESPONSES)
async def delete(task: str, model_id: ModelId, front: FrontDep) -> JSONResponse:
    """Free a model's memory, by a task that it serves. It is unloaded for all its tasks."""
    if task not in TASKS:
        raise InvalidRequest(f"task: expected one of {', '.join(TASKS)}.", field="task")
    return await _unload(front, model_id, task)


async def _unload(front: Front, model_id: str, task: str | None = None) -> JSONResponse:
    fleet = await front.fleet.now()
    if model_id not in fleet.models:
        raise ModelNotFound(f"model_id: {model_id!r} does not exist.", field="model_id")
    if task is not None and TASKS[task].task not in fleet.models[model_id].tasks:
        raise InvalidRequest(f"task: {model_id!r} does not serve {task}.", field="task")
    order = await front.fleet.order_unload(model_id)
    state = unloading(fleet, model_id, order)
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            while state.status == "unloading" and not front.draining.is_set():
                await asyncio.sleep(_LOOK_S)  # the fleet is read no oftener than that anyway
                state = unloading(await front.fleet.now(), model_id, order)
    return JSONResponse(state.model_dump(), 200 if state.status == "unloaded" else 202)


DIALECT = Dialect(router=router, access=Access.ADMIN)
