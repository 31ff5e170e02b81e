"""Earlier requests with the same contents, whose answers may be given again.

The request that is found is a hint: it may still run, have failed, or be gone.
"""

from collections.abc import Awaitable
from typing import cast

from shared.queue import keys
from shared.queue.broker import Broker


class Repeats:
    """Remembers requests by a digest of their contents, for `ttl_s`, which is more than 0."""

    def __init__(self, broker: Broker, *, ttl_s: float) -> None:
        self._broker = broker
        self._ttl_ms = max(1, int(ttl_s * 1000))

    async def find(self, tenant: str, digest: str) -> str | None:
        """Return the id of the tenant's last request with this digest, None if there is none."""
        shard = self._shard(tenant, digest)
        reading = self._broker.client(shard).get(keys.repeat(shard, tenant, digest))
        request_id = await cast(Awaitable[bytes | None], reading)
        if request_id is None:
            return None
        return request_id.decode()

    async def note(self, tenant: str, digest: str, request_id: str) -> None:
        """Note a request as the tenant's last with this digest."""
        shard = self._shard(tenant, digest)
        name = keys.repeat(shard, tenant, digest)
        await self._broker.client(shard).set(name, request_id, px=self._ttl_ms)

    def _shard(self, tenant: str, digest: str) -> str:
        return keys.shard_for(f"{tenant}/{digest}", len(self._broker.shards))
