"""One stage for each file of tests.

Its processes are started once, and again after a test has failed.
"""

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
    """Share a stage of the class that the module names `STAGE`."""
    kind = getattr(request.module, "STAGE", Stage)
    flags = (
        *("--model", "echo=echo"),
        *("--model", "tasks=echo-task"),
        *("--lease-s", str(LEASE_S)),
        *("--max-batch-size", str(PLACES)),
        *("--step-tokens", "4000"),
        *("--batch-wait-ms", "5000"),
    )

    @asynccontextmanager
    async def new_stage() -> AsyncIterator[Stage]:
        gates = tmp_path_factory.mktemp("gates")

        async with fleet(
            2,
            2,
            worker_flags=flags,
            worker="scripts.chaos.worker",
            env={GATES_ENV: str(gates)},
            has_proxies=True,
        ) as members:
            stage = kind(members, gates)
            try:
                yield stage
            finally:
                await stage.close()

    shared = Shared(new_stage)
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
    """Tell the fixtures that a test shares with others of its failure."""
    report = yield
    if report.failed:
        item.stash[HAS_FAILED] = True
    return report
