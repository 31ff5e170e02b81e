"""The small kill matrix: {SIGKILL, SIGSTOP, SIGTERM} x every phase of a job x {sync, SSE, scoring}, on real processes.

Nothing here is left to timing. The rigged echo runner holds three jobs at their exact tokens, the other worker is
stopped so that the first gets them all, and a proxy holds what passes between the first and Redis.
"""

import asyncio

import pytest

from scripts.chaos.invariants import violations
from shared.messages import Terminal
from tests.chaos.stage import DEADLINE_S, MODES, PHASES, Stage, num_logged, num_tokens, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("fault", ["SIGKILL", "SIGSTOP", "SIGTERM"])
async def test_nobody_notices(stage: Stage, fault: str, phase: str) -> None:
    """P1, P4: each client gets the undisturbed answer, and Redis is left as if nothing had happened."""
    await stage.open()
    clients = stage.ask("prefill", "filler") if phase == "queued" else []
    if phase == "queued":
        await until(lambda: all_in(stage, "filler", "prefill"), "the victim is full")
    clients += stage.ask(phase, "client")
    await until(lambda: all_in(stage, "client", phase), f"all jobs are in phase {phase}")
    if phase in ("unsent", "unacked"):
        await let_the_end_go(stage, phase)
    await FAULTS[fault](stage, phase, clients)
    assert await violations(stage.fleet.redis) == []
    takeovers = [trace.epoch - 1 for trace in await stage.traces("client")]
    if fault != "SIGTERM" and phase in ("prefill", "decode", "unsent"):
        assert takeovers == [1, 1, 1], "the fault hit nothing, so this proved nothing"


async def all_in(stage: Stage, name: str, phase: str) -> bool:
    """Whether every job of these clients has come to its place, and its log shows that."""
    found = await stage.traces(name)
    if len(found) < len(MODES):
        return False
    if phase == "queued":
        return all(trace.state == "queued" for trace in found)
    return all(stage.is_held(trace) and num_tokens(trace) == num_logged(trace, phase) for trace in found)


async def let_the_end_go(stage: Stage, phase: str) -> None:
    """The victim says the last tokens; they get as far as the phase wants."""
    proxy = stage.victim.proxy
    assert proxy is not None
    proxy.trap(b"done", proxy.to_server if phase == "unsent" else proxy.to_client)
    stage.gate.unlink()

    async def have_gone() -> bool:
        ends = [isinstance(trace.events[-1], Terminal) for trace in await stage.traces("client")]
        return proxy.is_sprung and (phase == "unsent" or any(ends))

    await until(have_gone, "the last tokens have left the victim")


async def kill(stage: Stage, phase: str, clients: list["asyncio.Task[None]"]) -> None:
    """What was on its way is lost."""
    await stage.victim.kill()
    stage.fleet.leave(stage.victim)
    stage.gate.unlink(missing_ok=True)
    stage.rescuer.resume()
    await asyncio.gather(*clients)


async def stop(stage: Stage, phase: str, clients: list["asyncio.Task[None]"]) -> None:
    """The victim comes back when others have answered for it; what it still has to say is refused."""
    await stage.victim.stop()
    stage.gate.unlink(missing_ok=True)
    stage.rescuer.resume()
    await asyncio.gather(*clients)
    proxy = stage.victim.proxy
    assert proxy is not None
    proxy.restore()
    stage.victim.resume()

    async def is_idle() -> bool:
        info = await stage.info(stage.victim)
        is_answered = phase != "unsent" or proxy.answer != b""
        return is_answered and info is not None and info.in_flight == 0

    await until(is_idle, "the victim has dropped what it held")
    if phase == "unsent":
        assert proxy.answer in (b"*%d\r\n" % count + count * b":0\r\n" for count in (1, 2, 3)), "refused, each of them"


async def terminate(stage: Stage, phase: str, clients: list["asyncio.Task[None]"]) -> None:
    """It drains: what it holds is ended by it or by the other, and it goes with 0."""
    stage.victim.process.terminate()
    assert stage.victim.proxy is not None
    stage.victim.proxy.restore()

    async def drains() -> bool:
        info = await stage.info(stage.victim)
        return info is None or info.state == "draining"

    await until(drains, "the victim drains")
    stage.gate.unlink(missing_ok=True)
    stage.rescuer.resume()
    await asyncio.gather(*clients)
    assert await asyncio.wait_for(stage.victim.process.wait(), DEADLINE_S) == 0
    stage.fleet.leave(stage.victim)


FAULTS = {"SIGKILL": kill, "SIGSTOP": stop, "SIGTERM": terminate}
