"""An echo worker and a front without a socket, as most tests need them."""

from collections.abc import AsyncIterator

import httpx
import pytest
from redis.asyncio import Redis

from tests.fixtures.api.echo_worker import ALL_TASKS, EchoWorker, model_info
from tests.fixtures.api.fronts import in_memory


@pytest.fixture
async def worker(redis_url: str) -> AsyncIterator[EchoWorker]:
    async with EchoWorker(redis_url) as worker:
        yield worker


@pytest.fixture
async def able(redis_url: str) -> AsyncIterator[EchoWorker]:
    """A worker for every endpoint."""
    async with EchoWorker(redis_url, model_info(tasks=ALL_TASKS)) as worker:
        yield worker


@pytest.fixture
async def client(redis: Redis) -> AsyncIterator[httpx.AsyncClient]:
    async with in_memory(redis) as client:
        yield client
