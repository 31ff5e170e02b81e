"""Sums over the fleet, for `/metrics`, `aios status` and `GET /v1/fleet` alike."""

from collections.abc import Mapping

from shared.fleet.presence import Fleet
from shared.messages import PRIORITIES, ModelLoad, WorkerInfo
from shared.queue.queue_stats import QueueState
from shared.telemetry.model_load import NUMBERS

ASSUMED_WORK_PER_S = 100.0
"""Cost in tokens that a worker gets done in a second, as long as it has not been measured."""

Values = dict[tuple[str, ...], float]
"""The values of a metric, by the values of its labels."""


def of_queues(queues: Mapping[str, QueueState], fleet: Fleet) -> dict[str, Values]:
    """Return the metrics of the models' queues, by their names in `FleetMetrics`."""
    depth: Values = {}
    waiting: Values = {}
    oldest: Values = {}
    work_seconds: Values = {}
    queue_bytes: Values = {}
    work_rate: Values = {}
    for model, state in queues.items():
        rate = work_per_s(fleet, model)
        depth[model, "queued"] = state.queued
        depth[model, "running"] = state.running
        queue_bytes[model,] = state.num_bytes
        work_rate[model,] = rate
        for name in PRIORITIES:
            line = state.lines[name]
            waiting[model, name] = line.jobs
            oldest[model, name] = line.oldest_s
            work_seconds[model, name] = line.cost / (rate or ASSUMED_WORK_PER_S)
    return {
        "queue_depth": depth,
        "waiting": waiting,
        "oldest": oldest,
        "work_seconds": work_seconds,
        "queue_bytes": queue_bytes,
        "work_rate": work_rate,
    }


def work_per_s(fleet: Fleet, model: str) -> float:
    """Return the cost in tokens that a model's ready workers get done in a second of stepping.

    A worker that was not measured yet counts as fast as the others, or as `ASSUMED_WORK_PER_S`.
    """
    workers = _ready(fleet, model)
    measured = []
    for worker in workers:
        rate = _load(worker, model).work_per_s
        if rate > 0:
            measured.append(rate)
    guess = ASSUMED_WORK_PER_S
    if measured:
        guess = sum(measured) / len(measured)
    return sum(measured) + guess * (len(workers) - len(measured))


def of_workers(fleet: Fleet) -> dict[str, Values]:
    """Return the metrics of the workers and their models, by their names in `FleetMetrics`."""
    workers: Values = {}
    host_bytes = 0
    device_bytes = 0
    for worker in fleet.workers:
        state = "full" if worker.is_full else worker.state
        _add(workers, (worker.pool, state), 1)
        host_bytes += worker.memory_bytes
        device_bytes += worker.device_bytes

    model_workers: Values = {}
    popularity: Values = {}
    num_active = 0
    for model in fleet.models:
        popularity[model,] = fleet.popularity.get(model, 0.0)
        ready = _ready(fleet, model)
        if ready:
            num_active += 1
        for worker in ready:
            _add(model_workers, (model, worker.pool), 1)

    metrics: dict[str, Values] = {
        "workers": workers,
        "model_workers": model_workers,
        "active_models": {(): num_active},
        "popularity": popularity,
        "memory": {("host",): host_bytes, ("device",): device_bytes},
    }
    for name, number in NUMBERS.items():
        if number.total is not None:
            metrics[name] = _total(fleet, name, is_sum=number.total.how == "sum")
    return metrics


def _ready(fleet: Fleet, model: str) -> list[WorkerInfo]:
    """Return the ready workers that have this model, and have not failed to load it."""
    return [worker for worker in fleet.serving(model) if model not in worker.failures]


def _load(worker: WorkerInfo, model: str) -> ModelLoad:
    for load in worker.loads:
        if load.id == model:
            return load
    return ModelLoad(model)


def _total(fleet: Fleet, name: str, *, is_sum: bool) -> Values:
    """Return the total of a number for each model: the sum over all workers, or the largest."""
    totals: Values = {}
    for worker in fleet.workers:
        for load in worker.loads:
            value = getattr(load, name)
            if is_sum:
                _add(totals, (load.id,), value)
            else:
                totals[load.id,] = max(totals.get((load.id,), 0.0), value)
    return totals


def _add(values: Values, labels: tuple[str, ...], value: float) -> None:
    values[labels] = values.get(labels, 0.0) + value
