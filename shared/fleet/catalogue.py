"""The models that the whole fleet knows, in Redis: added, removed and pinned while it runs.

A worker that can read a model's path serves it: it loads the model when work comes for it, within
its own budget. Readers ask for the version, which grows with every change, and read the rest only
when it has grown.
"""

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import cast

from pydantic import ValidationError
from redis.asyncio import Redis

from shared.queue import keys
from shared.settings.models import ModelEntry

_ORDER_TTL_S = 3600


@dataclass(frozen=True)
class Listing:
    """The entries of the catalogue.

    `loads` has, by model, the number of the last order to load it. The orders to unload one are in
    `Presence`.
    """

    version: int = 0
    entries: dict[str, ModelEntry] = field(default_factory=dict)
    pinned: frozenset[str] = frozenset()
    loads: dict[str, int] = field(default_factory=dict)


class Catalogue:
    """Reads and changes the catalogue. All methods raise redis-py's errors."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def version(self) -> int:
        """Return a number that grows with every change; 0 before the first."""
        reading = cast(Awaitable[bytes | None], self._redis.get(keys.CATALOGUE_VERSION))
        return int(await reading or 0)

    async def listing(self) -> Listing:
        """Return the whole catalogue.

        An entry that only another version of the fleet can read is left out.
        """
        # In one transaction, so that the entries are those of the version.
        pipe = self._redis.pipeline(transaction=True)
        pipe.get(keys.CATALOGUE_VERSION)
        pipe.hgetall(keys.CATALOGUE)
        pipe.smembers(keys.PINNED)
        pipe.hgetall(keys.LOADS)
        version, entries, pinned, loads = await pipe.execute()
        known: dict[str, ModelEntry] = {}
        for name, entry in entries.items():
            try:
                known[name.decode()] = ModelEntry.model_validate_json(entry)
            except ValidationError:
                continue
        return Listing(
            version=int(version or 0),
            entries=known,
            pinned=frozenset(name.decode() for name in pinned),
            loads={name.decode(): int(order) for name, order in loads.items()},
        )

    async def add(self, entry: ModelEntry) -> bool:
        """Add a model, or change it. Return whether it is new."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.hset(keys.CATALOGUE, entry.id, entry.model_dump_json(exclude_none=True))
        pipe.incr(keys.CATALOGUE_VERSION)
        is_new, _ = await pipe.execute()
        return bool(is_new)

    async def remove(self, model_id: str) -> bool:
        """Let workers forget a model once its jobs in hand have ended.

        Return whether it was in the catalogue.
        """
        pipe = self._redis.pipeline(transaction=True)
        pipe.hdel(keys.CATALOGUE, model_id)
        pipe.srem(keys.PINNED, model_id)
        pipe.hdel(keys.MODELS, model_id)
        pipe.hdel(keys.POPULARITY, model_id)
        pipe.incr(keys.CATALOGUE_VERSION)
        was_there, *_ = await pipe.execute()
        return bool(was_there)

    async def pin(self, model_id: str, *, is_pinned: bool) -> None:
        """Keep a model in memory once it is there, or let it make room for others again."""
        pipe = self._redis.pipeline(transaction=True)
        if is_pinned:
            pipe.sadd(keys.PINNED, model_id)
        else:
            pipe.srem(keys.PINNED, model_id)
        pipe.incr(keys.CATALOGUE_VERSION)
        await pipe.execute()

    async def order_load(self, model_id: str) -> int:
        """Order every worker that knows a model to load it now.

        Return the number of the order; later ones are greater.
        """
        seconds, micros = await self._redis.time()
        order = int(seconds) * 1_000_000 + int(micros)
        pipe = self._redis.pipeline(transaction=True)
        pipe.hset(keys.LOADS, model_id, str(order))
        pipe.pexpire(keys.LOADS, _ORDER_TTL_S * 1000)
        pipe.incr(keys.CATALOGUE_VERSION)
        await pipe.execute()
        return order
