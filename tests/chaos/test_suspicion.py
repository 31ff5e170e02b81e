"""A job in a worker's engine is known to be there, however fast the worker dies."""

import pytest

from scripts.chaos.polling import came_true
from tests.fixtures.chaos.stage import LEASE_S, Stage, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_nothing_runs_before_it_is_known_to_have_begun(stage: Stage) -> None:
    """P7: a job runs only after its `started` event is logged.

    Otherwise a request that kills its worker in its first step would not be blamed, and would crash
    many workers.
    """
    await stage.open()
    proxy = stage.victim.proxy
    proxy.trap(b"started", proxy.to_server)
    stage.ask("prefill", "client")

    async def is_sprung() -> bool:
        return proxy.is_sprung

    await until(is_sprung, "the first Started is on its way, and gets no further")

    async def is_any_held() -> bool:
        for trace in await stage.traces("client"):
            if stage.is_held(trace):
                return True
        return False

    assert not await came_true(is_any_held, LEASE_S), (
        "a job is in the engine that nobody would blame"
    )

    await stage.victim.kill()
    stage.lose(stage.victim)
    await stage.go_on()
