"""The whole fleet at one moment, read from Redis alone.

It takes five round trips to one server, whatever the number of workers and jobs: the number of
shards, the list of workers, the workers with the models, the queues, INFO. On a cluster the last
two are one for each server. Where a model is not served now, or the record of a worker has expired,
that takes one more.
"""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from shared.fleet.presence import Fleet, Presence
from shared.fleet.sums import Values, of_queues, of_workers
from shared.messages import PRIORITIES, ModelInfo, ModelLoad, WorkerInfo
from shared.queue import keys
from shared.queue.broker import UNAVAILABLE, Broker
from shared.queue.queue_stats import QueueState, QueueStats

TIMEOUT_S = 5.0
Status = Literal["ready", "not_ready", "redis_away"]


class WorkerModel(ModelLoad, frozen=True, kw_only=True, omit_defaults=False):
    """The numbers of one model of a worker, with rows for `max_batch` sequences."""

    max_batch: int


class Worker(msgspec.Struct, frozen=True):
    """A worker. `state` is `loading`, `ready`, `full` or `draining`.

    A worker that is loading has no models yet. `failures` has, by model, the reason why it could
    not load the model again.
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
    """The jobs of one class that wait.

    `oldest_s` is the age of the oldest, and `work_s` the time in which the live workers get all of
    them done.
    """

    waiting: int
    oldest_s: float
    work_s: float


class Model(msgspec.Struct, frozen=True):
    """A model that was ever announced.

    `workers` is the number of those that are ready for it, `running` that of jobs in their hands.
    """

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
    """The answer of `aios status --json` and `GET /v1/fleet`.

    Fields are added, never renamed: a renamed one would raise `version`. `problem` says why Redis
    could not be read; then all the rest is empty. `redis` is empty if INFO is not allowed.
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
    """Return the fleet as it is now, with `redis_away` after `timeout_s` without an answer.

    Forget workers whose records have expired.
    """
    at = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(await broker.as_settled(), at)
    except TimeoutError:
        problem = f"Redis did not answer in {timeout_s:g} s"
        return Snapshot(at, "redis_away", problem=problem)
    except (ResponseError, *UNAVAILABLE) as error:
        return Snapshot(at, "redis_away", problem=str(error))


async def _read(broker: Broker, at: str) -> Snapshot:
    fleet = await Presence(broker.client(keys.PRESENCE)).fleet()
    queues, num_dead = await QueueStats(broker).look(sorted(fleet.models))
    nodes = await broker.nodes()
    servers = await asyncio.gather(*[_server(client) for client in nodes])
    status: Status = "ready" if fleet.is_ready else "not_ready"
    return Snapshot(
        at,
        status,
        workers=tuple(_worker(worker) for worker in fleet.workers),
        models=_models(fleet, queues),
        dead_jobs=num_dead,
        redis=tuple(server for server in servers if server is not None),
    )


def _worker(info: WorkerInfo) -> Worker:
    loads = {load.id: load for load in info.loads}
    models = []
    for model in info.models:
        load = loads.get(model.id, ModelLoad(model.id))
        models.append(_worker_model(model, load))
    return Worker(
        id=info.id,
        state="full" if info.is_full else info.state,
        pool=info.pool,
        uptime_s=info.uptime_s,
        in_flight=info.in_flight,
        memory_bytes=info.memory_bytes,
        device_bytes=info.device_bytes,
        stale_appends=info.stale_appends,
        models=tuple(models),
        failures={name: failure.reason for name, failure in info.failures.items()},
    )


def _worker_model(model: ModelInfo, load: ModelLoad) -> WorkerModel:
    return WorkerModel(max_batch=model.max_batch, **msgspec.structs.asdict(load))


def _models(fleet: Fleet, queues: Mapping[str, QueueState]) -> tuple[Model, ...]:
    """Return the models, sorted by id. Their numbers are those of `/metrics`."""
    numbers: dict[str, Values] = {**of_workers(fleet), **of_queues(queues, fleet)}
    return tuple(_model(fleet.models[name], queues[name], numbers) for name in sorted(queues))


def _model(info: ModelInfo, queue: QueueState, numbers: Mapping[str, Values]) -> Model:
    num_workers = 0.0
    for (name, _), count in numbers["model_workers"].items():
        if name == info.id:
            num_workers += count

    classes: dict[str, Waiting] = {}
    for priority in PRIORITIES:
        line = queue.lines[priority]
        work_s = numbers["work_seconds"][info.id, priority]
        classes[priority] = Waiting(line.jobs, line.oldest_s, work_s=round(work_s, 3))

    return Model(
        id=info.id,
        runner=info.runner,
        device=info.device,
        dtype=info.dtype,
        is_default=info.is_default,
        workers=int(num_workers),
        tokens_per_s=round(numbers["tokens_per_s"].get((info.id,), 0.0), 3),
        work_per_s=round(numbers["work_rate"][info.id,], 3),
        running=queue.running,
        waiting=queue.queued,
        queue_bytes=queue.num_bytes,
        classes=classes,
    )


async def _server(client: Redis) -> Server | None:
    try:
        info: Mapping[str, Any] = await client.info()
    except NoPermissionError:
        return None
    return Server(
        version=str(info["redis_version"]),
        port=info["tcp_port"],
        uptime_s=info["uptime_in_seconds"],
        memory_bytes=info["used_memory"],
        max_memory_bytes=info["maxmemory"],
        clients=info["connected_clients"],
        ops_per_s=info["instantaneous_ops_per_sec"],
        is_append_only=info["aof_enabled"] == 1,
    )
