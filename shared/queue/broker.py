"""Connections of every process to Redis, and the errors that mean that Redis is away.

A connection that fails is tried again, and so is a call of our scripts (`shared.queue.script`).
Another command whose answer was lost may have run, and only its caller knows whether it is safe to
repeat. Reads have no time limit, since blocking reads and subscriptions wait for any time.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import cast
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.queue import keys
from shared.queue.cluster import ELSEWHERE, Cluster
from shared.settings.layers import SettingsError
from shared.settings.paths import fault_of
from shared.telemetry.histogram import BucketHistogram
from shared.telemetry.logging_setup import fields

logger = logging.getLogger("aios.redis")


class CannotWrite(RedisError):
    """Redis answers, but refuses to write just now.

    It has no memory left, is a replica until a failover, or is still loading.
    """


UNAVAILABLE = (RedisConnectionError, RedisTimeoutError, CannotWrite, *ELSEWHERE)
"""Errors that pass by themselves: the command may be tried again, if repeating it is safe."""

CONNECT_TIMEOUT_S = 2.0
USAGE_DAYS = 400
"""The days for which usage can be read, unless settings say otherwise: a year, and a month to bill it."""
# A connection that does not close in this time is abandoned.
_CLOSE_S = 0.2
_FILES_OF_TLS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


class Broker:
    """Redis as this process sees it, divided into `shards`.

    It knows the client for each hash tag. `calls` are the round trips of each script, in seconds.
    What jobs have used can be read for `usage_days`; with 0 it is not counted.
    """

    publish = "PUBLISH"

    def __init__(
        self, redis: Redis | Cluster, shards: int = 1, *, usage_days: int = USAGE_DAYS
    ) -> None:
        self._redis = redis
        self.shards = keys.shards(shards)
        self.usage_days = usage_days
        self.calls: dict[str, BucketHistogram] = {}

    def client(self, tag: str) -> Redis:
        """Return the client for keys with this hash tag, a shard or `keys.PRESENCE`."""
        if isinstance(self._redis, Cluster):
            return self._redis.client(tag)
        return self._redis

    @property
    def admission(self) -> str:
        """The hash tag under which the limits of the fleet are counted."""
        if len(self.shards) == 1:
            return self.shards[0]
        return keys.ADMISSION

    def together(self, shards: Sequence[str]) -> list[list[str]]:
        """Return the shards in parts. One command may name keys of a whole part.

        There is one part where there is one server.
        """
        parts: dict[Redis, list[str]] = {}
        for shard in shards:
            parts.setdefault(self.client(shard), []).append(shard)
        return list(parts.values())

    async def by_server(self, shards: Sequence[str]) -> list[list[str]]:
        """Return the shards in parts, one for each server.

        A pipeline may name keys of a whole part. Unlike a command for a part of `together`, such a
        pipeline is refused while a slot moves, and has to be sent again.
        """
        if isinstance(self._redis, Cluster):
            return await self._redis.by_server(shards)
        if not shards:
            return []
        return [list(shards)]

    async def nodes(self) -> list[Redis]:
        """Return a client for each server that has keys of a shard."""
        if isinstance(self._redis, Cluster):
            return await self._redis.nodes(self.shards)
        return [self._redis]

    async def as_settled(self) -> "Broker":
        """Return a broker of the same Redis, with the number of shards that its fleet uses.

        Return this broker if there has been no fleet yet.
        """
        layout = await cast(Awaitable[bytes | None], self.client(keys.PRESENCE).get(keys.LAYOUT))
        if not layout:
            return self
        return Broker(self._redis, int(layout), usage_days=self.usage_days)

    async def settle(self) -> None:
        """Make sure that all processes of a fleet use the same keys and the same number of shards.

        Raise SettingsError where the keys in Redis are of another version, or the number of shards
        is another one.
        """
        client = self.client(keys.PRESENCE)
        await self._settle_version(client)
        num_ours = len(self.shards)
        # The first process to come writes the number, and all others compare theirs with it.
        await cast(Awaitable[object], client.set(keys.LAYOUT, num_ours, nx=True))
        layout = await cast(Awaitable[bytes | None], client.get(keys.LAYOUT))
        num_in_redis = int(layout or num_ours)
        if num_in_redis != num_ours:
            raise SettingsError(
                f"redis_shards: this Redis is divided into {num_in_redis}, got {num_ours}; to "
                "change that, let the queues run empty, stop the fleet and delete the key "
                f"{keys.LAYOUT}"
            )

    @staticmethod
    async def _settle_version(client: Redis) -> None:
        version, layout = await cast(
            Awaitable[list[bytes | None]], client.mget(keys.VERSION, keys.LAYOUT)
        )
        version_in_redis = int(version or keys.WIRE_VERSION)
        if version is None and layout is not None:
            # The first version noted the layout alone.
            version_in_redis = 1
        if version_in_redis != keys.WIRE_VERSION:
            raise SettingsError(
                f"redis_url: this Redis has queues of version {version_in_redis}, and this program "
                f"reads version {keys.WIRE_VERSION}; let them run empty under the program that "
                f"wrote them, stop the fleet and delete the keys {keys.LAYOUT} and {keys.VERSION}"
            )
        # The version is written before the layout, so that no process finds a layout alone.
        await cast(Awaitable[object], client.set(keys.VERSION, keys.WIRE_VERSION, nx=True))


@asynccontextmanager
async def open_broker(
    url: str, shards: int = 1, *, usage_days: int = USAGE_DAYS
) -> AsyncIterator[Broker]:
    """Open the broker of a process, to a single server or a cluster, and close it at the end.

    Raise SettingsError as `Broker.settle` does. While Redis is away nothing is compared.
    """
    async with open_unsettled(url, shards, usage_days=usage_days) as broker:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await broker.settle()
        except (TimeoutError, *UNAVAILABLE) as error:
            reason = f"{error}" or "it does not answer"
            logger.warning("redis away at start", extra=fields(error=reason))
        yield broker


@asynccontextmanager
async def open_unsettled(
    url: str, shards: int = 1, *, usage_days: int = USAGE_DAYS
) -> AsyncIterator[Broker]:
    """Open a broker for those who only look: the number of shards is not compared or written."""
    redis = connect(url)
    source = redis if url.startswith("unix://") else Cluster(redis)
    try:
        yield Broker(source, shards, usage_days=usage_days)
    finally:
        # Closing must not hold up the end of the process.
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await source.aclose()


def fault_of_url(url: str) -> str | None:
    """Return the fault of a Redis URL, None if there is none. Connect to nothing."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # The error's own words could hold a piece of a password.
        return (
            "its host or port cannot be read (in a password, write / as %2F, # as %23, ? as "
            "%3F and % as %25)"
        )

    if parts.scheme == "unix":
        if not parts.path:
            return "no path of a socket"
    else:
        if not parts.hostname or port == 0:
            return "no host and port"
        database = parts.path.strip("/")
        if database and not database.isdecimal():
            return f"the database is a number, not {database!r}"

    try:
        pool = connect(url).connection_pool
        pool.connection_class(**pool.connection_kwargs)
    except ValueError as error:
        return str(error)
    except TypeError as error:
        # redis-py raises it for an option that it does not know.
        return str(error).rpartition(") ")[2]

    for option in _FILES_OF_TLS:
        path = pool.connection_kwargs.get(option)
        if not path:
            continue
        fault = fault_of(path, may_be_directory=False)
        if fault is not None:
            return f"cannot read {option} {path!r}: {fault}"
    return None


def connect(url: str) -> Redis:
    """Return a client, a pool that connects on first use. Its replies are bytes.

    Close it with `aclose`.
    """
    over_tcp = {}
    if not url.startswith("unix://"):
        over_tcp["socket_keepalive"] = True
    client: Redis = Redis.from_url(
        url,
        decode_responses=False,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 2),
        **over_tcp,
    )
    return client
