"""Advice is one line for each thing that is wrong around the fleet, and none if all is well."""

import logging

import pytest
from redis.asyncio import Redis

from shared.fleet.advice import (
    advise,
    on_open_door,
    on_open_files,
    on_redis,
    on_threads,
    open_files_limit,
    redis_advice,
)
from shared.queue.broker import Broker, connect
from tests.fixtures.logged import fields_of


@pytest.mark.parametrize(
    ("limit", "depth", "lines"), [(1024, 256, 0), (1023, 256, 1), (1024, 4096, 1), (None, 10**6, 0)]
)
def test_too_few_open_files(limit: int | None, depth: int, lines: int) -> None:
    advice = on_open_files(limit, depth)
    assert len(advice) == lines
    for line in advice:
        assert f"ulimit -n is {limit}" in line
        assert str(2 * depth + 512) in line


@pytest.mark.parametrize(
    ("workers", "threads", "cores", "lines"),
    [(2, 1, 2, 0), (2, 2, 4, 0), (2, 2, 2, 1), (1, 3, 2, 1)],
)
def test_too_many_threads(workers: int, threads: int, cores: int, lines: int) -> None:
    assert len(on_threads(workers, threads, cores)) == lines


@pytest.mark.parametrize(
    ("host", "requires_key", "lines"),
    [
        ("0.0.0.0", False, 1),
        ("::", False, 1),
        ("192.0.2.7", False, 1),
        ("fleet.example.org", False, 1),
        ("0.0.0.0", True, 0),
        ("127.0.0.1", False, 0),
        ("127.1.2.3", False, 0),
        ("::1", False, 0),
        ("localhost", False, 0),
    ],
)
def test_a_door_that_is_open_to_the_network(host: str, requires_key: bool, lines: int) -> None:
    advice = on_open_door(host, 8000, requires_key=requires_key)
    assert len(advice) == lines
    for line in advice:
        assert "anybody on the network" in line
        assert "--api-keys" in line


def test_how_redis_should_be_set_up() -> None:
    assert on_redis({"maxmemory_policy": "noeviction", "aof_enabled": 1}) == []
    assert on_redis({}) == []

    [policy, appendonly] = on_redis({"maxmemory_policy": "allkeys-lru", "aof_enabled": 0})
    assert "allkeys-lru" in policy
    assert "noeviction" in policy
    assert "appendonly no" in appendonly


async def test_a_real_redis_is_asked(redis: Redis) -> None:
    """Advice on a real Redis follows its settings."""
    settings = {"maxmemory-policy": "volatile-lru", "appendonly": "no"}
    before = {}
    for name, value in settings.items():
        before |= await redis.config_get(name)
        await redis.config_set(name, value)

    # Other tests use this Redis too.
    try:
        policy, appendonly = await redis_advice(Broker(redis))
    finally:
        for name, value in before.items():
            await redis.config_set(name, value)

    assert policy.split()[2] == "maxmemory-policy"
    assert appendonly.split()[2] == "appendonly"


async def test_a_redis_that_is_away_is_nothing_to_say_of() -> None:
    client = connect("redis://127.0.0.1:1/0")
    assert await redis_advice(Broker(client)) == []
    await client.aclose()


def test_each_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        advise(["one", "100 %"])
    assert fields_of(caplog, "advice") == [{"advice": "one"}, {"advice": "100 %"}]

    limit = open_files_limit()
    assert limit is None or limit > 0
