"""Bodies under `/api` about the fleet: the state of its models and of its workers."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from shared.fleet.presence import Fleet
from shared.messages import ModelInfo, Residence

_STATUSES: tuple[tuple[Residence, Literal["ready", "loading", "unloading", "unloaded"]], ...] = (
    ("loaded", "ready"),
    ("loading", "loading"),
    ("unloading", "unloading"),
    ("unloaded", "unloaded"),
)
"""Pairs of a residence and a status of a model. The first residence that any worker has decides."""


class Acceleration(BaseModel):
    """The device and dtype that a model computes with; empty where its worker does not tell."""

    device: str
    dtype: str


class ModelStatus(BaseModel):
    """The state of a model in the fleet.

    It is `unavailable` while no worker serves it. It is `failed`, for a `reason`, while the workers
    that serve it cannot load it; they try again. A request for a model that is `unloaded` loads it.
    `loaded` of the `workers` that serve it have it in memory. These workers have `in_flight` jobs
    in hand, of all their models. `popularity` is the number of jobs a minute that it was asked
    for, an average in which the past counts ever less (`--popularity-half-life-s`). `puzzle` is the
    kind of puzzles that it solves: `sudoku`, `maze`, `arc`, or `tokens`.
    """

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
    popularity: float
    puzzle: str | None = None
    reason: str | None = None


class ModelStatuses(BaseModel):
    models: list[ModelStatus]


class Unloading(BaseModel):
    """The progress of an order to unload a model.

    `workers` serve the model. `unloaded` of them have unloaded it since the order.
    """

    model_id: str
    status: Literal["unloading", "unloaded"]
    workers: int
    unloaded: int


class ApiHealth(BaseModel):
    """The health of the fleet.

    `workers` are counted by their state. `models` has how many are `known`, and how many of them
    are `served`. `devices` are those of the ready workers' models. `memory_bytes` is the memory of
    all worker processes together. Workers have `in_flight` jobs in hand.
    """

    status: Literal["ok", "unavailable"]
    workers: dict[str, int]
    models: dict[str, int]
    devices: list[str]
    memory_bytes: int
    in_flight: int


def model_status(fleet: Fleet, model: ModelInfo) -> ModelStatus:
    workers = fleet.serving(model.id)
    residences = fleet.residences(model.id)
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
        popularity=round(fleet.popularity.get(model.id, 0.0), 3),
        puzzle=model.puzzle or None,
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
    """Return how far an order to unload has been carried out.

    A worker that has loaded the model again since has obeyed it, too.
    """
    workers = fleet.serving(model_id)
    num_unloaded = 0
    for worker in workers:
        if worker.unloads.get(model_id, 0) >= order:
            num_unloaded += 1
    return Unloading(
        model_id=model_id,
        status="unloaded" if num_unloaded == len(workers) else "unloading",
        workers=len(workers),
        unloaded=num_unloaded,
    )


def api_health(fleet: Fleet) -> ApiHealth:
    states = {"loading": 0, "ready": 0, "draining": 0}
    devices: set[str] = set()
    memory_bytes = 0
    in_flight = 0
    for worker in fleet.workers:
        if worker.state in states:
            states[worker.state] += 1
        memory_bytes += worker.memory_bytes
        in_flight += worker.in_flight
        if worker.state == "ready":
            devices.update(model.device for model in worker.models)
    devices.discard("")

    num_served = 0
    for model_id in fleet.models:
        if fleet.serves(model_id) and fleet.failure(model_id) is None:
            num_served += 1
    return ApiHealth(
        status="ok" if fleet.is_ready else "unavailable",
        workers=states,
        models={"known": len(fleet.models), "served": num_served},
        devices=sorted(devices),
        memory_bytes=memory_bytes,
        in_flight=in_flight,
    )
