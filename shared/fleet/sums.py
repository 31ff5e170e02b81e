"""Sums over the fleet, for `/metrics`, `aios status` and `GET /v1/fleet` alike."""

from collections.abc import Iterable, Mapping

from shared.messages import PRIORITIES, ModelLoad, WorkerInfo
from shared.model_load import NUMBERS
from shared.presence import Fleet
from shared.queue_stats import QueueState

ASSUMED_WORK_PER_S = 100.0
"""Of a worker that has not yet shown what it can do: the cost, in tokens, that it gets done in a
second."""

Values = dict[tuple[str, ...], float]
"""By the values of a metric's labels."""


def of_queues(queues: Mapping[str, QueueState], fleet: Fleet) -> dict[str, Values]:
    """By the name in `FleetMetrics`: what there is to say of the models' queues."""
    lines = {
        (model, name): state.lines[name] for model, state in queues.items() for name in PRIORITIES
    }
    rates = {model: work_per_s(fleet, model) for model in queues}
    depth: Values = {(model, "queued"): state.queued for model, state in queues.items()}
    depth |= {(model, "running"): state.running for model, state in queues.items()}
    return {
        "queue_depth": depth,
        "waiting": {key: line.jobs for key, line in lines.items()},
        "oldest": {key: line.oldest_s for key, line in lines.items()},
        "work_seconds": {
            key: line.cost / (rates[key[0]] or ASSUMED_WORK_PER_S) for key, line in lines.items()
        },
        "queue_bytes": {(model,): state.num_bytes for model, state in queues.items()},
        "work_rate": {(model,): rate for model, rate in rates.items()},
    }


def work_per_s(fleet: Fleet, model: str) -> float:
    """Cost that the ready workers of a model get done in a second of stepping; 0 where there are
    none.

    One that has not shown it yet is taken for as fast as the others, or for `ASSUMED_WORK_PER_S`.
    """
    rates = [_load(worker, model).work_per_s for worker in _ready(fleet, model)]
    known = [rate for rate in rates if rate > 0]
    guess = sum(known) / len(known) if known else ASSUMED_WORK_PER_S
    return sum(rate or guess for rate in rates)


def of_workers(fleet: Fleet) -> dict[str, Values]:
    """By the name in `FleetMetrics`: what there is to say of the workers and their models."""
    loads = [load for worker in fleet.workers for load in worker.loads]
    states = [(worker.pool, "full" if worker.is_full else worker.state) for worker in fleet.workers]
    serving = [(model, worker.pool) for model in fleet.models for worker in _ready(fleet, model)]
    found: dict[str, Values] = {
        "workers": _added((labels, 1) for labels in states),
        "model_workers": _added((labels, 1) for labels in serving),
        "active_models": {(): len({model for model, _ in serving})},
        "memory": {
            ("host",): sum(worker.memory_bytes for worker in fleet.workers),
            ("device",): sum(worker.device_bytes for worker in fleet.workers),
        },
    }
    for name, number in NUMBERS.items():
        if number.total is None:
            continue
        summed = _added if number.total.how == "sum" else _largest
        found[name] = summed(((load.id,), getattr(load, name)) for load in loads)
    return found


def _ready(fleet: Fleet, model: str) -> list[WorkerInfo]:
    """Those that serve it: it may be one of their models and have failed to load."""
    ready = [
        worker
        for worker in fleet.workers
        if worker.state == "ready" and model not in worker.failures
    ]
    return [worker for worker in ready if any(item.id == model for item in worker.models)]


def _load(worker: WorkerInfo, model: str) -> ModelLoad:
    return next((load for load in worker.loads if load.id == model), ModelLoad(model))


def _added(values: Iterable[tuple[tuple[str, ...], float]]) -> Values:
    sums: Values = {}
    for labels, value in values:
        sums[labels] = sums.get(labels, 0.0) + value
    return sums


def _largest(values: Iterable[tuple[tuple[str, ...], float]]) -> Values:
    largest: Values = {}
    for labels, value in values:
        largest[labels] = max(largest.get(labels, 0.0), value)
    return largest
