"""Calling off over HTTP frees the place for the next job within a step and 50 ms, in each phase and
each way.

Real processes; what a worker does inside is told by `tests/worker/test_cancel.py`.
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
from tests.fixtures.slowness import slowness

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
        rig = {
            "worker": "scripts.chaos.worker",
            "env": {STEP_ENV: str(STEP_S), GATES_ENV: str(gates)},
        }
        async with fleet(1, 1, worker_flags=flags, **rig) as members:
            cancelling = Cancelling(members, gates)
            try:
                yield members, cancelling
            finally:
                await cancelling.close()

    shared = Shared(make)
    yield shared
    await shared.close()


@pytest_asyncio.fixture(loop_scope="module")
async def made(
    shared: Shared[tuple[Fleet, Cancelling]], request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Fleet, Cancelling]]:
    async with shared.lent_to(request.node) as made:
        yield made


@pytest.mark.parametrize("phase", PHASES)
async def test_the_place_is_another_s_within_a_step(
    made: tuple[Fleet, Cancelling], phase: Phase
) -> None:
    """Of three tries, one for each way, the median counts: the machine may be busy with something
    else."""
    fleet, cancelling = made
    if phase == "takeover":
        await fleet.add_worker()
    stretched = slowness()
    tries = [await cancelling.freed(phase, way) for way in WAYS]
    stretched = max(stretched, slowness())
    assert statistics.median(item.taken_s for item in tries) < (STEP_S + SLACK_S) * stretched, tries
    assert statistics.median(item.token_s for item in tries) < (2 * STEP_S + SLACK_S) * stretched, (
        tries
    )
    assert await violations(fleet.redis) == []
