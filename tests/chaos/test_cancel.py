"""Cancelling over HTTP frees the place for the next job within a step and 50 ms.

This holds in each phase and for each way to cancel. The processes are real;
`tests/worker/test_cancel.py` has what happens inside a worker.
"""

import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from scripts.chaos.cancel import PHASES, SLACK_S, WAYS, Cancelling, Phase
from scripts.chaos.invariants import violations
from scripts.chaos.processes import Fleet, fleet
from scripts.chaos.rigged import GATES_ENV, STEP_ENV
from tests.fixtures.chaos.sharing import Shared
from tests.fixtures.slowness import slowness_meanwhile

pytestmark = pytest.mark.asyncio(loop_scope="module")

STEP_S = 0.04
LEASE_S = 0.5


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Shared[tuple[Fleet, Cancelling]]]:
    flags = ("--model", "echo=echo", "--lease-s", str(LEASE_S), "--max-batch-size", "1")

    @asynccontextmanager
    async def make() -> AsyncIterator[tuple[Fleet, Cancelling]]:
        gates = tmp_path_factory.mktemp("gates")
        env = {STEP_ENV: str(STEP_S), GATES_ENV: str(gates)}

        async with fleet(
            1, 1, worker_flags=flags, worker="scripts.chaos.worker", env=env
        ) as members:
            cancelling = Cancelling(members, gates)
            try:
                yield members, cancelling
            finally:
                await cancelling.close()

    shared = Shared(make)
    yield shared
    await shared.close()


@pytest_asyncio.fixture(loop_scope="module")
async def rigged(
    shared: Shared[tuple[Fleet, Cancelling]], request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Fleet, Cancelling]]:
    async with shared.lent_to(request.node) as rigged:
        yield rigged


@pytest.mark.parametrize("phase", PHASES)
async def test_the_place_is_another_s_within_a_step(
    rigged: tuple[Fleet, Cancelling], phase: Phase
) -> None:
    """The next job is taken within a step, and has its first token within two.

    Of three tries, one for each way to cancel, the median counts: the machine may be busy.
    """
    fleet, cancelling = rigged
    if phase == "takeover":
        await fleet.add_worker()

    tries = []
    with slowness_meanwhile() as greatest_slowness:
        for way in WAYS:
            tries.append(await cancelling.freed(phase, way))
        stretched = greatest_slowness()

    taken_s = statistics.median(freed.taken_s for freed in tries)
    token_s = statistics.median(freed.token_s for freed in tries)
    assert taken_s < (STEP_S + SLACK_S) * stretched, tries
    assert token_s < (2 * STEP_S + SLACK_S) * stretched, tries
    assert await violations(fleet.redis) == []
