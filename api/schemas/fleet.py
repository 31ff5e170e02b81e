"""What a front tells of its fleet under `/api`: which models are in whose memory, and how many are
at work."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from shared.messages import ModelInfo, Residence, WorkerInfo
from shared.presence import Fleet

_STATUSES: tuple[tuple[Residence, Literal["ready", "loading", "unloading", "unloaded"]], ...] = (
    ("loaded", "ready"),
    ("loading", "loading"),
    ("unloading", "unloading"),
    ("unloaded", "unloaded"),
)
"""What the workers' residences make a model's status: the first that there is."""


class Acceleration(BaseModel):
    """What a model computes with; empty where its worker does not tell."""

    device: str
    dtype: str


class ModelStatus(BaseModel):
    """`unavailable` while no worker serves it, `failed` while those that serve it cannot load it,
    for which there is a `reason`; they try again. Of the `workers` that serve it, so many have it
    `loaded`. `in_flight` jobs of all their models are in their hands. A request for one that is
    `unloaded` loads it."""

    model_id: str
    status: Literal["ready", "loading", "unloading", "unloaded", "failed", "unavailable"]
    runner: str
    description: str
    tasks: list[str]
    context_window: int
    acceleration: Acceleration
    workers: int
    loaded: int
    in_flight: int
    reason: str | None = None


class ModelStatuses(BaseModel):
    models: list[ModelStatus]


class Unloading(BaseModel):
    """Of the `workers` that serve the model so many have `unloaded` it since they were told to."""

    model_id: str
    status: Literal["unloading", "unloaded"]
    workers: int
    unloaded: int


class ApiHealth(BaseModel):
    """Workers by their state; models that are served, of those that are known; the devices they
    compute with; the memory of all worker processes together; jobs in their hands."""

    status: Literal["ok", "unavailable"]
    workers: dict[str, int]
    models: dict[str, int]
    devices: list[str]
    memory_bytes: int
    in_flight: int


def model_status(fleet: Fleet, model: ModelInfo) -> ModelStatus:
    workers, residences = fleet.serving(model.id), fleet.residences(model.id)
    failure = fleet.failure(model.id)
    return ModelStatus(
        model_id=model.id,
        status="failed" if failure else _status_of(residences),
        runner=model.runner,
        description=model.found,
        tasks=list(model.tasks),
        context_window=model.context_window,
        acceleration=Acceleration(device=model.device, dtype=model.dtype),
        workers=len(workers),
        loaded=residences.count("loaded"),
        in_flight=sum(worker.in_flight for worker in workers),
        reason=failure.reason if failure else None,
    )


def _status_of(
    residences: Sequence[Residence],
) -> Literal["ready", "loading", "unloading", "unloaded", "unavailable"]:
    for residence, status in _STATUSES:
        if residence in residences:
            return status
    return "unavailable"


def unloading(fleet: Fleet, model_id: str, order: int) -> Unloading:
    """How far an order to unload has been carried out; a worker that loaded the model again since
    had obeyed it."""
    workers = fleet.serving(model_id)
    count = sum(worker.unloads.get(model_id, 0) >= order for worker in workers)
    status: Literal["unloading", "unloaded"] = "unloaded" if count == len(workers) else "unloading"
    return Unloading(model_id=model_id, status=status, workers=len(workers), unloaded=count)


def api_health(fleet: Fleet) -> ApiHealth:
    states = [worker.state for worker in fleet.workers]
    return ApiHealth(
        status="ok" if fleet.is_ready else "unavailable",
        workers={state: states.count(state) for state in ("loading", "ready", "draining")},
        models={
            "known": len(fleet.models),
            "served": sum(_can_serve(fleet, name) for name in fleet.models),
        },
        devices=sorted(
            {model.device for worker in _ready(fleet) for model in worker.models if model.device}
        ),
        memory_bytes=sum(worker.memory_bytes for worker in fleet.workers),
        in_flight=sum(worker.in_flight for worker in fleet.workers),
    )


def _can_serve(fleet: Fleet, model_id: str) -> bool:
    return fleet.serves(model_id) and fleet.failure(model_id) is None


def _ready(fleet: Fleet) -> list[WorkerInfo]:
    return [worker for worker in fleet.workers if worker.state == "ready"]
