"""Processes of versions that read Redis otherwise do not share one."""

import pytest
from redis.asyncio import Redis

from shared.queue import keys
from shared.queue.broker import Broker
from shared.settings.settings import SettingsError


async def test_the_first_process_notes_the_version(redis: Redis) -> None:
    await Broker(redis).settle()
    await Broker(redis).settle()

    noted = await redis.get(keys.VERSION)
    assert int(noted) == keys.WIRE_VERSION


async def test_another_version_is_refused(redis: Redis) -> None:
    await redis.set(keys.VERSION, keys.WIRE_VERSION + 1)

    with pytest.raises(SettingsError, match=f"queues of version {keys.WIRE_VERSION + 1}"):
        await Broker(redis).settle()
    assert not await redis.exists(keys.LAYOUT)


async def test_the_first_version_is_known_by_its_layout_alone(redis: Redis) -> None:
    await redis.set(keys.LAYOUT, 1)

    with pytest.raises(SettingsError, match=r"queues of version 1\b.*delete the keys"):
        await Broker(redis).settle()

    await redis.delete(keys.LAYOUT)
    await Broker(redis).settle()
