"""A cell that fails on purpose and leaves behind all that it can, and one after it. Run by
test_isolation.py alone."""

import pytest

from scripts.chaos.invariants import violations
from tests.chaos.stage import Stage, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_this_one_breaks(stage: Stage) -> None:
    """Its jobs hold every place, its clients wait, one worker is stopped and the other has lost
    Redis."""
    await stage.open()
    stage.ask("prefill", "client")
    await until(lambda: stage.all_in("prefill", "client"), "all jobs are held")
    stage.victim.proxy.cut()
    raise AssertionError("on purpose")


async def test_the_next_one_sees_nothing_of_it(stage: Stage) -> None:
    await stage.open()
    stage.ask("prefill", "client")
    await until(lambda: stage.all_in("prefill", "client"), "all jobs are held")
    await stage.go_on()
    assert await violations(stage.fleet.redis) == []
