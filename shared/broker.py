"""How every process connects to Redis, and which errors mean that Redis is away.

Only connecting is tried again by itself: a command whose answer was lost may have run, and only its caller knows
whether it is safe to repeat. Reads have no time limit: blocking reads and subscriptions wait as long as they like.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared import keys


class CannotWrite(RedisError):
    """Redis answers, but refuses to write just now: no memory left, a replica until a failover, still loading."""


UNAVAILABLE = (RedisConnectionError, RedisTimeoutError, CannotWrite)
"""What passes by itself: the command may be tried again, if repeating it is safe."""

CONNECT_TIMEOUT_S = 2.0


class Broker:
    """Redis as this process sees it, divided into `shards`: which client to ask about what carries a hash tag."""

    publish = "PUBLISH"

    def __init__(self, redis: Redis, shards: int = 1) -> None:
        self._redis = redis
        self.shards = keys.shards(shards)

    def client(self, tag: str) -> Redis:
        """The client for keys with this hash tag, a shard or `keys.PRESENCE`."""
        return self._redis

    async def nodes(self) -> list[Redis]:
        """A client for each server that has keys of a shard."""
        return [self._redis]


@asynccontextmanager
async def open_broker(url: str, shards: int = 1) -> AsyncIterator[Broker]:
    """What every process talks to Redis by, closed at the end; nothing connects yet."""
    redis = connect(url)
    try:
        yield Broker(redis, shards)
    finally:
        await redis.aclose()


def connect(url: str) -> Redis:
    """A client (a pool that connects on first use) whose replies are bytes; close it with `aclose`."""
    over_tcp = {} if url.startswith("unix://") else {"socket_keepalive": True}
    client: Redis = Redis.from_url(
        url,
        decode_responses=False,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 2),
        **over_tcp,
    )
    return client
