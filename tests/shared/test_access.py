"""Keys in Redis are found by their digests alone, on a cluster too.

They are gone when they are revoked or have expired.
"""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from shared.access import Grant, Keyring, Rate, check_name, check_priority, digest_of, rate_of
from shared.queue import keys
from shared.queue.broker import Broker, open_broker
from tests.fixtures.redis_cluster import redis_cluster

ANN = Grant(
    "ann",
    tenant="acme",
    best_priority="bulk",
    rate=Rate(10, 60),
    concurrency=3,
    models=("m", "n"),
    is_admin=True,
)


@pytest.fixture
async def broker(redis: Redis) -> AsyncIterator[Broker]:
    yield Broker(redis)


async def check_life(broker: Broker) -> None:
    """Check that a key can be created, found, listed and revoked."""
    keyring = Keyring(broker)
    key, key_id, created = await keyring.create(ANN)
    other, _, _ = await keyring.create(Grant("bob", "bob"), lives_s=1000)
    assert digest_of(key).startswith(key_id)

    grant = await keyring.find(digest_of(key))
    assert grant is not None
    assert grant == created
    assert grant.tenant == "acme"
    assert grant.rate == Rate(10, 60)
    assert grant.models == ("m", "n")
    assert grant.is_admin
    assert set(await keyring.all_grants()) == {digest_of(key), digest_of(other)}
    assert await keyring.find(digest_of(key + "x")) is None

    await keyring.revoke(digest_of(key))
    assert await keyring.find(digest_of(key)) is None
    assert set(await keyring.all_grants()) == {digest_of(other)}


async def test_the_life_of_a_key(broker: Broker) -> None:
    await check_life(broker)


async def test_the_life_of_a_key_on_a_cluster(tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as cluster:
        async with open_broker(cluster.url, 4) as broker:
            await check_life(broker)


async def test_redis_knows_no_key(broker: Broker, redis: Redis) -> None:
    key, _, _ = await Keyring(broker).create(ANN)
    assert len(key) >= 5 + 43, "256 bits"

    for name in await redis.keys("*"):
        value = await redis.dump(name)
        assert key.encode() not in name + value
        assert key[5:].encode() not in name + value


async def test_an_expired_key_is_nowhere(broker: Broker, redis: Redis) -> None:
    """A key expires by Redis's clock, and leaves the list when that is next read."""
    keyring = Keyring(broker)
    key, _, grant = await keyring.create(ANN, lives_s=100)
    assert grant.expires_at == grant.created_at + 100
    assert 99_000 < await redis.pttl(keys.grant(digest_of(key))) <= 100_000

    await redis.pexpire(keys.grant(digest_of(key)), 0)
    assert await keyring.find(digest_of(key)) is None
    assert await keyring.all_grants() == {}
    assert not await redis.exists(keys.GRANTS)


@pytest.mark.parametrize(
    ("check", "bad"),
    [
        (rate_of, ["", "10", "/", "0/1", "1/0", "1/1/1", "-1/5", "1.5/1", "1000000/1", "²/1"]),
        (check_name, ["", "*", "a:b", "a b", "-a", "x" * 65, "ä", "a{b}"]),
        (check_priority, ["", "urgent"]),
    ],
)
def test_nonsense_is_refused(check: Callable[[str], object], bad: list[str]) -> None:
    for text in bad:
        with pytest.raises(ValueError, match="expected"):
            check(text)
    assert str(rate_of("10/60")) == "10/60"
