"""The small kill matrix, on real processes: each fault in every phase of a job.

Each cell has one client of each kind: sync, SSE, poll, two choices, scoring.

Nothing is left to timing. The rigged echo runner holds the jobs at their exact tokens. The other
worker is stopped, so that the first gets all jobs. Proxies hold what passes between a worker or a
front and Redis.

For a front, `unacked` means that the end is logged and on its way to the front. Once its clients
have their answers there is nothing left that it could lose.
"""

import pytest

from tests.fixtures.chaos.faults import FAULTS
from tests.fixtures.chaos.stage import PHASES, Stage
from tests.fixtures.matrix_cell import check_nobody_notices

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", FAULTS)
async def test_nobody_notices(stage: Stage, name: str, phase: str) -> None:
    """P1, P2, P4: each client gets the undisturbed answer, and Redis is left clean."""
    await check_nobody_notices(stage, name, phase)
