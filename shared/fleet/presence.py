"""Presence: workers announce themselves and their models by records that expire; fronts read them.

The hash of models never expires, so that a front can tell "no worker for this model just now" from
"no such model". Orders to unload lie in a hash, which workers read as they announce themselves, so
that none is lost with a message.
"""

import math
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from redis.asyncio import Redis

from shared.fleet.popularity import jobs_per_minute
from shared.messages import (
    LoadFailure,
    ModelInfo,
    Residence,
    WorkerInfo,
    decode_model,
    decode_worker,
    encode,
)
from shared.queue import keys
from shared.settings.types import MOST_ABSENT_S

_ORDER_TTL_S = 3600


@dataclass(frozen=True)
class Fleet:
    """The workers alive, and every model that was ever announced, by id.

    `absences` holds the seconds since a ready worker served a model, for models that were served
    lately and are not now. Work may wait for a model that is `catalogued` until a worker comes.
    `popularity` holds the jobs a minute of models that were asked for.
    """

    workers: tuple[WorkerInfo, ...]
    models: dict[str, ModelInfo]
    absences: dict[str, float] = field(default_factory=dict)
    catalogued: frozenset[str] = frozenset()
    popularity: dict[str, float] = field(default_factory=dict)

    @property
    def is_ready(self) -> bool:
        """True when some worker has its models loaded and warm."""
        return any(worker.state == "ready" for worker in self.workers)

    def serves(self, model_id: str) -> bool:
        """Return whether a ready worker has this model."""
        return bool(self.serving(model_id))

    def serving(self, model_id: str) -> list[WorkerInfo]:
        """Return the ready workers that have this model, in memory or not."""
        serving = []
        for worker in self.workers:
            has_model = any(model.id == model_id for model in worker.models)
            if worker.state == "ready" and has_model:
                serving.append(worker)
        return serving

    def may_serve(self, model_id: str, grace_s: float) -> bool:
        """Return whether a worker is ready for this model, or may come for it.

        A worker may come for a model of the catalogue, and for one that a worker served at most
        `grace_s` ago.
        """
        if model_id in self.catalogued or self.serves(model_id):
            return True
        return self.absences.get(model_id, math.inf) <= grace_s

    def may_serve_some(self, grace_s: float) -> bool:
        """Return whether a worker is ready, or one may come back.

        A worker may come back if some model was served at most `grace_s` ago.
        """
        if self.is_ready:
            return True
        return min(self.absences.values(), default=math.inf) <= grace_s

    def residences(self, model_id: str) -> list[Residence]:
        """Return the residence of the model on each ready worker that serves it."""
        return [worker.residences.get(model_id, "loaded") for worker in self.serving(model_id)]

    def failure(self, model_id: str) -> LoadFailure | None:
        """Return the failure to load a model, if every ready worker that serves it failed.

        Of several, return the one whose worker tries again first.
        """
        failures = []
        for worker in self.serving(model_id):
            failure = worker.failures.get(model_id)
            if failure is None:
                return None
            failures.append(failure)
        return min(failures, key=lambda failure: failure.retry_in_s, default=None)

    def obstacle(self, model_id: str) -> str | None:
        """Return why no worker serves this model, and what to do about it.

        None if one serves it, or if no worker that was to serve it lacks a device.
        """
        if self.serves(model_id):
            return None
        for worker in self.workers:
            obstacle = worker.obstacles.get(model_id)
            if obstacle:
                return obstacle
        return None

    @property
    def default_model(self) -> str | None:
        """The id of the model for requests that name none.

        Models that are served come before those that are not, then those marked as default.
        """

        def rank(model: ModelInfo) -> tuple[bool, bool, str]:
            return (not self.serves(model.id), not model.is_default, model.id)

        if not self.models:
            return None
        return min(self.models.values(), key=rank).id


class Presence:
    """Announces workers, and reads who is there. A record lasts for `ttl_s`."""

    def __init__(self, redis: Redis, *, ttl_s: float = 5.0) -> None:
        self._redis = redis
        self._ttl_ms = int(ttl_s * 1000)

    async def announce(self, worker: WorkerInfo) -> dict[str, int]:
        """Write the record of a worker, and those of its models.

        Return, for each model that was ordered to be unloaded lately, the number of its last order.
        """
        pipe = self._redis.pipeline(transaction=False)
        # The models are written before the worker: whoever sees it ready finds what it serves.
        # `fleet` reads in the opposite order.
        for model in worker.models:
            pipe.hset(keys.MODELS, mapping={model.id: encode(model)})
            # The time to live tells when the model was last served, by Redis's own clock.
            if worker.state == "ready" and model.id not in worker.failures:
                pipe.set(keys.last_served(model.id), 1, ex=MOST_ABSENT_S)
        pipe.set(keys.worker(worker.id), encode(worker), px=self._ttl_ms)
        pipe.sadd(keys.WORKERS, worker.id)
        pipe.hgetall(keys.UNLOADS)
        orders = (await pipe.execute())[-1]
        return {model.decode(): int(order) for model, order in orders.items()}

    async def order_unload(self, model_id: str) -> int:
        """Have every worker give the model's memory back.

        Return the number of the order; later ones are greater.
        """
        # The number is Redis's time, so that orders of several fronts are in order.
        seconds, micros = await self._redis.time()
        order = seconds * 1_000_000 + micros
        pipe = self._redis.pipeline(transaction=False)
        pipe.hset(keys.UNLOADS, model_id, str(order))
        pipe.pexpire(keys.UNLOADS, _ORDER_TTL_S * 1000)
        await pipe.execute()
        return int(order)

    async def forget_model(self, model_id: str) -> None:
        """Remove the record of a model. A worker that serves the model writes it again."""
        await cast(Awaitable[int], self._redis.hdel(keys.MODELS, model_id))

    async def leave(self, worker_id: str) -> None:
        """Remove a worker that ends, at once."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.delete(keys.worker(worker_id))
        pipe.srem(keys.WORKERS, worker_id)
        await pipe.execute()

    async def gone(self) -> list[str]:
        """Return the ids of workers whose records have expired."""
        members = await cast(Awaitable[set[bytes]], self._redis.smembers(keys.WORKERS))
        ids = sorted(name.decode() for name in members)
        if not ids:
            return []
        answers = await self._redis.mget([keys.worker(worker_id) for worker_id in ids])
        records = _records(ids, answers)
        return [worker_id for worker_id in ids if worker_id not in records]

    async def forget(self, worker_ids: Sequence[str]) -> None:
        """Take workers off the list. One that is alive after all puts itself back."""
        await cast(Awaitable[int], self._redis.srem(keys.WORKERS, *worker_ids))

    async def fleet(self) -> Fleet:
        """Return the workers that are alive now, and the models.

        Forget workers whose records have expired.
        """
        members = await cast(Awaitable[set[bytes]], self._redis.smembers(keys.WORKERS))
        ids = sorted(name.decode() for name in members)
        pipe = self._redis.pipeline(transaction=False)
        if ids:
            pipe.mget([keys.worker(worker_id) for worker_id in ids])
        # The models are read after the workers: those of a worker are written before it
        # (`announce`).
        pipe.hgetall(keys.MODELS)
        pipe.hkeys(keys.CATALOGUE)
        pipe.hgetall(keys.POPULARITY)
        pipe.time()
        *answers, models, catalogued, popularity, time = await pipe.execute()
        records = _records(ids, *answers)
        gone = [worker_id for worker_id in ids if worker_id not in records]
        if gone:
            await self.forget(gone)

        fleet = Fleet(
            workers=tuple(decode_worker(record) for record in records.values()),
            models={name.decode(): decode_model(record) for name, record in models.items()},
            catalogued=frozenset(name.decode() for name in catalogued),
            popularity=jobs_per_minute(popularity, time),
        )
        absent = [name for name in fleet.models if not fleet.serves(name)]
        return replace(fleet, absences=await self._absences(absent))

    async def _absences(self, model_ids: Sequence[str]) -> dict[str, float]:
        """Return the seconds since each model was last served, without those that are forgotten."""
        if not model_ids:
            return {}
        pipe = self._redis.pipeline(transaction=False)
        for model_id in model_ids:
            pipe.pttl(keys.last_served(model_id))
        absences = {}
        for model_id, left_ms in zip(model_ids, await pipe.execute(), strict=True):
            if left_ms > 0:
                absences[model_id] = MOST_ABSENT_S - left_ms / 1000
        return absences


def _records(worker_ids: Sequence[str], answers: Sequence[bytes | None] = ()) -> dict[str, bytes]:
    """Return the records of the workers that have one, in the order of the ids."""
    records = {}
    for worker_id, record in zip(worker_ids, answers, strict=True):
        if record is not None:
            records[worker_id] = record
    return records
