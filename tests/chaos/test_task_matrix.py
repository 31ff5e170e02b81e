"""The kill matrix for tasks that are done whole: the same faults in the same phases, with the same
promises, and a file that appears once."""

import pytest

from shared.artifacts.store import ArtifactStore
from shared.queue.broker import Broker
from tests.fixtures.chaos.faults import FAULTS
from tests.fixtures.chaos.stage import PHASES, TaskStage
from tests.fixtures.matrix_cell import check_nobody_notices

pytestmark = pytest.mark.asyncio(loop_scope="module")

STAGE = TaskStage


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", FAULTS)
async def test_nobody_notices(stage: TaskStage, name: str, phase: str) -> None:
    """Each client has the right file in the end, which is there once, however often the task was
    begun."""
    await check_nobody_notices(stage, name, phase)
    store = ArtifactStore(Broker(stage.fleet.redis))
    files, has_more = await store.page("public", limit=1000)
    assert not has_more
    assert len({file.digest for file in files}) == len(files)
    asked = [answer.file_id for answer in stage.answers]
    assert len(set(asked)) == len(stage.asked) * (2 if phase == "queued" else 1)
    assert set(asked) <= {file.id for file in files}
