"""Fixtures for all rooms: a real Redis for the session, empty for each test that asks for it."""

import os
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from shared.broker import connect
from tests.redis_server import RedisServer, start_redis


@pytest.fixture(scope="session", autouse=True)
def _fleets_of_these_tests_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever else runs on this machine is not found by the tools, nor do others find what tests start."""
    os.environ["AIOS_RUN_DIR"] = str(tmp_path_factory.mktemp("fleets"))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = start_redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of an empty Redis."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(redis_url)
    yield client
    await client.aclose()


def pytest_configure() -> None:
    """What a shell runs in the background ignores SIGINT, and so would every process that a test starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu` where there is none; torch is asked only then."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device, and torch finds none here")
