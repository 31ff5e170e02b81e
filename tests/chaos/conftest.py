"""One stage for each file of tests: its processes are started once."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from scripts.chaos.members import fleet
from scripts.chaos.rigged import GATES_ENV
from tests.chaos.stage import LEASE_S, PLACES, Stage


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    gates = tmp_path_factory.mktemp("gates")
    size = ("--max-batch-size", str(PLACES), "--step-tokens", "4000")
    flags = ("--model", "echo=echo", "--lease-s", str(LEASE_S), *size)
    rig = {"worker": "scripts.chaos.worker", "env": {GATES_ENV: str(gates)}, "has_proxies": True}
    async with fleet(2, 2, worker_flags=flags, **rig) as made:
        stage = Stage(made, gates)
        yield stage
        await stage.close()
