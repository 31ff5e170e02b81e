"""Requests by what they ask for: which one of a tenant asked the same last, so that its answer may
be given again.

A hint: that request may run yet, have failed, or be gone.
"""

from collections.abc import Awaitable
from typing import cast

from shared import keys
from shared.broker import Broker


class Repeats:
    """Remembers by a digest which request asked the same, for `ttl_s`, which is more than 0."""

    def __init__(self, broker: Broker, *, ttl_s: float) -> None:
        self._broker = broker
        self._ttl_ms = max(1, int(ttl_s * 1000))

    async def find(self, tenant: str, digest: str) -> str | None:
        """The id of the request."""
        shard = self._shard(tenant, digest)
        asked = self._broker.client(shard).get(keys.asked(shard, tenant, digest))
        found = await cast(Awaitable[bytes | None], asked)
        return None if found is None else found.decode()

    async def note(self, tenant: str, digest: str, request_id: str) -> None:
        shard = self._shard(tenant, digest)
        await self._broker.client(shard).set(
            keys.asked(shard, tenant, digest), request_id, px=self._ttl_ms
        )

    def _shard(self, tenant: str, digest: str) -> str:
        return keys.shard_for(f"{tenant}/{digest}", len(self._broker.shards))
