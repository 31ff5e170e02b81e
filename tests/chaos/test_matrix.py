"""The small kill matrix: faults x every phase of a job x {sync, SSE, poll, two choices, scoring},
on real processes.

Nothing here is left to timing. The rigged echo runner holds the jobs at their exact tokens, the
other worker is stopped so that the first gets them all, and proxies hold what passes between a
worker or front and Redis.

Every cell is there. For a front, `unacked` means that the end is logged and on its way to the
front: once its clients have been told, there is nothing left that it could lose.
"""

import time

import pytest

from scripts.chaos.invariants import violations
from shared.messages import Terminal
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.stage import DONE, LEASE_S, PHASES, Stage, until
from tests.slowness import slowness

pytestmark = pytest.mark.asyncio(loop_scope="module")

_MOST_SILENT_S = LEASE_S + 1.0


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", FAULTS)
async def test_nobody_notices(stage: Stage, name: str, phase: str) -> None:
    """P1, P2, P4: each client gets the undisturbed answer, and Redis is left as if nothing had
    happened."""
    await check_nobody_notices(stage, name, phase)


async def check_nobody_notices(stage: Stage, name: str, phase: str) -> None:
    fault = FAULTS[name]
    await stage.open(is_persistent=fault.hits != "worker")
    await set_the_scene(stage, fault, phase)
    stretched = slowness()
    struck_s = time.monotonic()
    await fault.strike(stage, phase)
    assert await violations(stage.fleet.redis) == []
    found = await stage.traces("client")
    assert len(found) == len(stage.asked), "a request was run twice"
    if fault.is_lost and phase in ("prefill", "decode", "unsent"):
        assert all(trace.was_hit for trace in found), (
            "the fault hit nothing, so this proved nothing"
        )
    if fault.hits == "worker" and phase in ("prefill", "decode"):
        gap_s = max(answer.frames[-1] for answer in stage.streams) - struck_s
        assert gap_s <= _MOST_SILENT_S * max(stretched, slowness())


async def set_the_scene(stage: Stage, fault: Fault, phase: str) -> None:
    """Everybody's jobs come to the phase."""
    if phase == "queued":
        stage.ask("prefill", "filler")
        await until(lambda: stage.all_in("prefill", "filler"), "the victim is full")
    stage.ask(phase, "client")
    await until(lambda: stage.all_in(phase, "client"), f"all jobs are in phase {phase}")
    if phase in ("unsent", "unacked"):
        await let_the_end_go(stage, fault, phase)


async def let_the_end_go(stage: Stage, fault: Fault, phase: str) -> None:
    """The victim says the last tokens; they get as far as the phase wants."""
    proxy = stage.victim.proxy
    deaf = stage.front.proxy if fault.hits == "front" else proxy
    proxy.trap(DONE, proxy.to_server if phase == "unsent" else deaf.to_client)
    stage.gate.unlink()

    async def have_gone() -> bool:
        ends = [isinstance(trace.events[-1], Terminal) for trace in await stage.traces("client")]
        return proxy.is_sprung and (phase == "unsent" or any(ends))

    await until(have_gone, "the last tokens have left the victim")
