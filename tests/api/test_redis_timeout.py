"""The time that a front gives Redis to answer.

It is two seconds. A front that was itself held up reads the answers that have come before it takes
Redis for unavailable."""

import time

import pytest
from redis.asyncio import Redis

from api.redis_timeout import redis_answers
from shared.errors import BrokerUnavailable
from shared.queue.broker import connect
from tests.fixtures.redis_server import RedisServer
from tests.fixtures.slowness import within


async def test_who_was_held_up_reads_the_answer_first(redis: Redis) -> None:
    """An answer that comes while the process stands still is read, not given up.

    A long garbage collection makes a process stand still."""
    await redis.set("key", "value")

    async def held_up() -> bytes | None:
        async with redis_answers():
            pipe = redis.pipeline(transaction=False)
            pipe.get("key")
            time.sleep(2.5)  # noqa: ASYNC251 - it is the loop that is to stand still
            [value] = await pipe.execute()
            time.sleep(2.5)  # noqa: ASYNC251
            assert await redis.get("key") == value
            return value

    assert await held_up() == b"value"


async def test_a_redis_that_hangs_is_given_up(own_redis: RedisServer) -> None:
    redis = connect(own_redis.url)
    await redis.ping()
    began_s = time.monotonic()
    with own_redis.hanging(), within(3.9, "it is given up"), pytest.raises(BrokerUnavailable):
        async with redis_answers():
            await redis.get("key")
    assert time.monotonic() - began_s > 1.9
    await redis.aclose()
