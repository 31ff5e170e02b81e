"""The kill matrix for tasks that are done whole.

Faults, phases and promises are those of the other matrix, and each file appears once.
"""

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
    """Each client has the right file in the end.

    The file is there once, however often the task was begun.
    """
    await check_nobody_notices(stage, name, phase)

    store = ArtifactStore(Broker(stage.fleet.redis))
    files, has_more = await store.page("public", limit=1000)
    assert not has_more

    digests = {file.digest for file in files}
    assert len(digests) == len(files)

    file_ids = {file.id for file in files}
    answered_ids = {answer.file_id for answer in stage.answers}
    # In this phase a request of each kind fills the worker first, and makes a file as well.
    files_per_request = 2 if phase == "queued" else 1
    assert len(answered_ids) == len(stage.asked) * files_per_request
    assert answered_ids <= file_ids
