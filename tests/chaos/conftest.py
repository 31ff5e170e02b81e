"""One stage for each file of tests: its processes are started once, and again when a test has
failed."""

from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from scripts.chaos.processes import fleet
from scripts.chaos.rigged import GATES_ENV
from tests.fixtures.chaos.sharing import HAS_FAILED, Shared
from tests.fixtures.chaos.stage import LEASE_S, PLACES, Stage


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Shared[Stage]]:
    """A stage of the module's own kind, which it names `STAGE`."""
    kind = getattr(request.module, "STAGE", Stage)
    size = ("--max-batch-size", str(PLACES), "--step-tokens", "4000", "--batch-wait-ms", "5000")
    flags = ("--model", "echo=echo", "--model", "tasks=echo-task", "--lease-s", str(LEASE_S), *size)

    @asynccontextmanager
    async def made() -> AsyncIterator[Stage]:
        gates = tmp_path_factory.mktemp("gates")
        rig = {
            "worker": "scripts.chaos.worker",
            "env": {GATES_ENV: str(gates)},
            "has_proxies": True,
        }
        async with fleet(2, 2, worker_flags=flags, **rig) as members:
            stage = kind(members, gates)
            try:
                yield stage
            finally:
                await stage.close()

    shared = Shared(made)
    yield shared
    await shared.close()


@pytest_asyncio.fixture(loop_scope="module")
async def stage(
    shared_stage: Shared[Stage], request: pytest.FixtureRequest
) -> AsyncIterator[Stage]:
    async with shared_stage.lent_to(request.node) as stage:
        yield stage


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the fixtures that a test shares with others know of its failure."""
    report = yield
    if report.failed:
        item.stash[HAS_FAILED] = True
    return report
