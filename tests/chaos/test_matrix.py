"""The small kill matrix: faults x every phase of a job x {sync, SSE, poll, two choices, scoring},
on real processes.

Nothing here is left to timing. The rigged echo runner holds the jobs at their exact tokens, the
other worker is stopped so that the first gets them all, and proxies hold what passes between a
worker or front and Redis.

Every cell is there. For a front, `unacked` means that the end is logged and on its way to the
front: once its clients have been told, there is nothing left that it could lose.
"""

import pytest

from tests.fixtures.chaos.faults import FAULTS
from tests.fixtures.chaos.stage import PHASES, Stage
from tests.fixtures.matrix_cell import check_nobody_notices

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", FAULTS)
async def test_nobody_notices(stage: Stage, name: str, phase: str) -> None:
    """P1, P2, P4: each client gets the undisturbed answer, and Redis is left as if nothing had
    happened."""
    await check_nobody_notices(stage, name, phase)
