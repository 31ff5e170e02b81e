"""Fixtures for all rooms: a real Redis for the session, empty for each test that asks for it."""

import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis

from shared.queue.broker import connect
from tests.fixtures.redis_server import RedisServer, patient, start_redis

pytest_plugins = ("tests.fixtures.leftovers", "tests.fixtures.tiers")
# Modules that tests share say what was not as it must be, as tests do themselves.
pytest.register_assert_rewrite(
    "tests.api.golden",
    "tests.fixtures.api",
    "tests.fixtures.chaos",
    "tests.fixtures.deploy",
    "tests.fixtures.e2e",
    "tests.fixtures.worker",
)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> None:
    """Have Triton's kernels interpreted where there is no GPU.

    Triton asks when a kernel is defined, so that must be decided before a file of tests is loaded.
    The fast tier has no kernels, and loads no torch.
    """
    if parent.config.getoption("--fast"):
        return
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    # torch.compile's pool of processes would outlive the tests.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _fleets_of_these_tests_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever else runs on this machine is not found by the tools, nor do others find what tests
    start."""
    os.environ["AIOS_RUN_DIR"] = str(tmp_path_factory.mktemp("fleets"))


@pytest.fixture(scope="session")
def redis_server(
    tmp_path_factory: pytest.TempPathFactory, kept_pids: set[int]
) -> Iterator[RedisServer]:
    server = start_redis(tmp_path_factory.mktemp("redis"))
    kept_pids.add(server.pid)
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of an empty Redis."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = patient(connect(redis_url))
    yield client
    await client.aclose()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, to do harm to."""
    server = start_redis(tmp_path)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(autouse=True)
def _log_handlers_of_before() -> Iterator[None]:
    """Take away the handlers of a process that a test was: they write to a stream that is closed."""
    root = logging.getLogger()
    before = list(root.handlers)
    level = root.level
    yield
    root.setLevel(level)
    for handler in list(root.handlers):
        if handler not in before:
            root.removeHandler(handler)


def pytest_configure() -> None:
    """Let no property fail because an example took long.

    What a shell runs in the background ignores SIGINT, and so would every process that a test
    starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("patient", patient)
    settings.load_profile("patient")


def pytest_collection_finish() -> None:
    """Leave the modules of all tests out of the garbage collections, each of which would take a second."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu` where there is none; torch is asked only then."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device, and torch finds none here")
