"""Fair sharing between tenants, between classes and over time.

The worker is a real process with two places.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from scripts.chaos.fair import ageing, preemption, shares
from scripts.chaos.processes import fleet
from scripts.chaos.queue_clients import QueueClients
from scripts.chaos.rigged import STEP_ENV
from tests.fixtures.chaos.sharing import Shared
from tests.fixtures.slowness import slowness, slowness_meanwhile

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLACES = 2
STEP_S = 0.002
AGEING_S = 0.3


@asynccontextmanager
async def new_crowd() -> AsyncIterator[QueueClients]:
    flags = ("--model", "echo=echo", "--max-batch-size", str(PLACES), "--ageing-s", str(AGEING_S))
    env = {STEP_ENV: str(STEP_S)}

    async with fleet(1, 0, worker_flags=flags, worker="scripts.chaos.worker", env=env) as members:
        clients = QueueClients(members.redis, "echo", PLACES)
        try:
            yield clients
        finally:
            await clients.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Shared[QueueClients]]:
    shared = Shared(new_crowd)
    yield shared
    await shared.close()


@pytest_asyncio.fixture(loop_scope="module")
async def clients(
    shared: Shared[QueueClients], request: pytest.FixtureRequest
) -> AsyncIterator[QueueClients]:
    async with shared.lent_to(request.node) as clients:
        yield clients


async def test_tenants_share_by_tokens_served(clients: QueueClients) -> None:
    """Ten times as many jobs, each twice as long, earn no larger share."""
    result = await shares(clients, jobs=30, num_tokens=12)
    assert not result.wrong, result


async def test_interactive_jobs_pause_bulk_and_change_nothing(clients: QueueClients) -> None:
    """An interactive job has its first token while bulk jobs fill all places.

    The texts of the bulk jobs stay the same.
    """
    with slowness_meanwhile() as greatest_slowness:
        result = await preemption(
            clients, num_urgent=7, num_tokens=1500, step_s=STEP_S, slowness=greatest_slowness
        )
    assert not result.wrong, result


async def test_bulk_ends_among_interactive_jobs_without_end(clients: QueueClients) -> None:
    """Interactive jobs go first for as long as the ageing setting says, then bulk has its turn."""
    result = await ageing(
        clients, num_tokens=8, ageing_s=AGEING_S, step_s=STEP_S, slowness=slowness
    )
    assert not result.wrong, result
    assert result.figures["interactive ended meanwhile"] > 3 * PLACES, "it was not first at once"
