"""The whole fleet at one moment, read from Redis alone.

Four round trips of one server, whatever the number of workers and jobs: how Redis is divided, who
is there, the queues, INFO. On a cluster the last two are one for each server.
"""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from shared import keys
from shared.broker import UNAVAILABLE, Broker
from shared.fleet.sums import Values, of_queues, of_workers
from shared.messages import PRIORITIES, ModelInfo, ModelLoad, WorkerInfo
from shared.presence import Fleet, Presence
from shared.queue_stats import QueueState, QueueStats

TIMEOUT_S = 5.0
Status = Literal["ready", "not_ready", "redis_away"]


class WorkerModel(ModelLoad, frozen=True, kw_only=True, omit_defaults=False):
    """What a worker does for one of its models, of `max_batch` rows at most."""

    max_batch: int


class Worker(msgspec.Struct, frozen=True):
    """`state` is `loading`, `ready`, `full` or `draining`; one that is loading tells no models yet.

    `failures` are of those of its models that it could not load again, each with the reason.
    """

    id: str
    state: str
    pool: str
    uptime_s: float
    in_flight: int
    memory_bytes: int
    device_bytes: int
    stale_appends: int
    models: tuple[WorkerModel, ...]
    failures: dict[str, str] = {}


class Waiting(msgspec.Struct, frozen=True):
    """Jobs of one class, the age of the oldest, and how long the live workers need for all of
    them."""

    waiting: int
    oldest_s: float
    work_s: float


class Model(msgspec.Struct, frozen=True):
    """Every model that was ever announced. `workers` are ready for it; `running` jobs are in
    workers' hands."""

    id: str
    runner: str
    device: str
    dtype: str
    is_default: bool
    workers: int
    tokens_per_s: float
    work_per_s: float
    running: int
    waiting: int
    queue_bytes: int
    classes: dict[str, Waiting]


class Server(msgspec.Struct, frozen=True):
    """One Redis server. `max_memory_bytes` 0: there is no limit."""

    version: str
    port: int
    uptime_s: int
    memory_bytes: int
    max_memory_bytes: int
    clients: int
    ops_per_s: int
    is_append_only: bool


class Snapshot(msgspec.Struct, frozen=True):
    """`aios status --json` and `GET /v1/fleet`. Fields are added, never renamed; `version` would
    change if one were.

    `problem` says why Redis could not be read; then all the rest is empty. `redis` is empty if INFO
    is not allowed.
    """

    at: str
    status: Status
    problem: str | None = None
    workers: tuple[Worker, ...] = ()
    models: tuple[Model, ...] = ()
    dead_jobs: int = 0
    redis: tuple[Server, ...] = ()
    version: int = 1


async def look(broker: Broker, timeout_s: float = TIMEOUT_S) -> Snapshot:
    """The fleet now. Changes nothing, but that workers whose records have expired are forgotten."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(await broker.as_settled(), at)
    except TimeoutError:
        return Snapshot(at, "redis_away", f"Redis did not answer in {timeout_s:g} s")
    except (ResponseError, *UNAVAILABLE) as error:
        return Snapshot(at, "redis_away", str(error))


async def _read(broker: Broker, at: str) -> Snapshot:
    fleet = await Presence(broker.client(keys.PRESENCE)).fleet()
    queues, num_dead = await QueueStats(broker).look(sorted(fleet.models))
    servers = await asyncio.gather(*map(_server, await broker.nodes()))
    return Snapshot(
        at,
        "ready" if fleet.is_ready else "not_ready",
        workers=tuple(_worker(worker) for worker in fleet.workers),
        models=_models(fleet, queues),
        dead_jobs=num_dead,
        redis=tuple(server for server in servers if server is not None),
    )


def _worker(told: WorkerInfo) -> Worker:
    loads = {load.id: load for load in told.loads}
    return Worker(
        told.id,
        "full" if told.is_full else told.state,
        told.pool,
        told.uptime_s,
        told.in_flight,
        told.memory_bytes,
        told.device_bytes,
        told.stale_appends,
        tuple(
            _worker_model(model, loads.get(model.id, ModelLoad(model.id))) for model in told.models
        ),
        {name: failure.reason for name, failure in told.failures.items()},
    )


def _worker_model(model: ModelInfo, load: ModelLoad) -> WorkerModel:
    return WorkerModel(max_batch=model.max_batch, **msgspec.structs.asdict(load))


def _models(fleet: Fleet, queues: Mapping[str, QueueState]) -> tuple[Model, ...]:
    """By id; the numbers are those that fronts tell in `/metrics`."""
    numbers: dict[str, Values] = {**of_workers(fleet), **of_queues(queues, fleet)}
    return tuple(_model(fleet.models[name], queues[name], numbers) for name in sorted(queues))


def _model(told: ModelInfo, queue: QueueState, numbers: Mapping[str, Values]) -> Model:
    work_s = numbers["work_seconds"]
    return Model(
        told.id,
        told.runner,
        told.device,
        told.dtype,
        told.is_default,
        int(sum(count for (name, _), count in numbers["model_workers"].items() if name == told.id)),
        round(numbers["tokens_per_s"].get((told.id,), 0.0), 3),
        round(numbers["work_rate"][told.id,], 3),
        queue.running,
        queue.queued,
        queue.num_bytes,
        {
            name: Waiting(
                queue.lines[name].jobs, queue.lines[name].oldest_s, round(work_s[told.id, name], 3)
            )
            for name in PRIORITIES
        },
    )


async def _server(client: Redis) -> Server | None:
    try:
        info: Mapping[str, Any] = await client.info()
    except NoPermissionError:
        return None
    return Server(
        str(info["redis_version"]),
        info["tcp_port"],
        info["uptime_in_seconds"],
        info["used_memory"],
        info["maxmemory"],
        info["connected_clients"],
        info["instantaneous_ops_per_sec"],
        info["aof_enabled"] == 1,
    )
