"""One stage for each file of tests: its processes are started once."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from scripts.chaos.members import fleet
from scripts.chaos.rigged import GATES_ENV
from tests.chaos.stage import LEASE_S, Stage


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    gates = tmp_path_factory.mktemp("gates")
    flags = ("--model", "echo=echo", "--lease-s", str(LEASE_S), "--max-batch-size", "3", "--step-tokens", "4000")
    rig = {"worker": "scripts.chaos.worker", "env": {GATES_ENV: str(gates)}, "has_proxies": True}
    async with fleet(2, 1, worker_flags=flags, **rig) as made:
        stage = Stage(made, gates)
        yield stage
        await stage.close()
