"""What the kill matrix does to a fleet, and how it shows that the one who was struck does no harm
later.

A fault finds every client's job in the phase of its cell, and returns when all clients have their
right answers.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from scripts.chaos.faults import restart_redis
from scripts.chaos.proxy import Proxy
from tests.chaos.stage import DONE, PLACES, Stage, until
from tests.polling import DEADLINE_S
from tests.slowness import slowness

_EXIT_S = 2.0
_REFUSALS = tuple(b"*%d\r\n" % count + count * b":0\r\n" for count in range(1, PLACES))


@dataclass(frozen=True)
class Fault:
    """`strike(stage, phase)` hits the worker that has all jobs, the front that all clients came
    through, or Redis. Only clients of a worker's fleet never ask again. The jobs of a `lost` worker
    are found by their leases alone."""

    strike: Callable[[Stage, str], Awaitable[None]]
    hits: Literal["worker", "front", "redis"]
    is_lost: bool = False


async def kill_worker(stage: Stage, phase: str) -> None:
    """What was on its way is lost."""
    await stage.victim.kill()
    stage.lose(stage.victim)
    await stage.go_on()


async def stop_worker(stage: Stage, phase: str) -> None:
    """The victim comes back when others have its jobs; what it still has to say is refused."""
    await stage.victim.stop()
    if phase == "unsent":
        await let_the_rescuer_in(stage)
    else:
        await stage.go_on()
    stage.victim.proxy.restore()
    stage.victim.resume()
    if phase == "unsent":
        await until(partial(is_refused, stage.victim.proxy), "its last words are refused")
        await stage.go_on()
    await until(partial(is_idle, stage), "the victim has dropped what it held")


async def cut_worker(stage: Stage, phase: str) -> None:
    """The victim loses Redis, and what was on its way, until others have its jobs (which takes a
    lease, unless they had ended). It has gone on alone meanwhile: none of that lands."""
    proxy = stage.victim.proxy
    proxy.cut()
    if phase == "unsent":
        await let_the_rescuer_in(stage)
        proxy.restore()
        proxy.trap(DONE, proxy.to_client)
        await until(partial(is_sprung, proxy), "it says its last words again")
        proxy.restore()
        await until(partial(is_refused, proxy), "they are refused")
    await stage.go_on()
    proxy.restore()
    await until(partial(is_idle, stage), "the victim has dropped what it held")


async def let_the_rescuer_in(stage: Stage) -> None:
    """It takes all jobs over, and is held where the victim was: who speaks now speaks into
    another's work."""
    stage.gate.touch()
    stage.rescuer.resume()

    async def has_all() -> bool:
        has_taken = all(trace.was_hit for trace in await stage.traces("client"))
        return has_taken and await stage.all_in("unsent", "client")

    await until(has_all, "the rescuer has all jobs, as far as they were logged")


async def terminate_worker(stage: Stage, phase: str) -> None:
    """It drains: what it holds is ended by it or by the other, and it goes with 0."""
    stage.victim.process.terminate()
    stage.victim.proxy.restore()

    async def drains() -> bool:
        info = await stage.info(stage.victim)
        return info is None or info.state == "draining"

    await until(drains, "the victim drains")
    await stage.go_on()
    assert await asyncio.wait_for(stage.victim.process.wait(), DEADLINE_S) == 0
    stage.lose(stage.victim)


async def kill_front(stage: Stage, phase: str) -> None:
    """What it had not told its clients they hear from the other one."""
    stage.lose(stage.front)
    await stage.front.kill()
    await until(stage.have_come_back, "all clients ask the other front")
    stage.victim.proxy.restore()
    await stage.go_on()


async def terminate_front(stage: Stage, phase: str) -> None:
    """It sends its clients away and goes with 0."""
    stage.lose(stage.front)
    stretched = slowness()
    status, seconds = await stage.front.terminate()
    assert status == 0
    assert seconds < _EXIT_S * max(stretched, slowness())
    await until(stage.have_come_back, "all clients ask the other front")
    stage.victim.proxy.restore()
    await stage.go_on()


async def kill_redis(stage: Stage, phase: str) -> None:
    """It comes back with all that it had acknowledged; what was on its way, to it or from it, is
    lost. Who waits or reads a stream goes on doing so; who polls is told to ask again."""
    stage.victim.proxy.cut()
    await restart_redis(stage.fleet)
    stage.victim.proxy.restore()
    await stage.go_on()
    assert [
        answer.request.name
        for answer in stage.answers
        if answer.request.mode != "poll" and answer.tries > 1
    ] == []
    await until(partial(is_idle, stage), "the victim has nothing in hand")


async def is_idle(stage: Stage) -> bool:
    info = await stage.info(stage.victim)
    return info is not None and info.in_flight == 0


async def is_sprung(proxy: Proxy) -> bool:
    return proxy.is_sprung


async def is_refused(proxy: Proxy) -> bool:
    """Whether Redis has answered what the trap was set for; and that none of it landed."""
    assert proxy.answer in (b"", *_REFUSALS), proxy.answer
    return proxy.answer != b""


FAULTS = {
    "SIGKILL worker": Fault(kill_worker, "worker", is_lost=True),
    "SIGSTOP worker": Fault(stop_worker, "worker", is_lost=True),
    "SIGTERM worker": Fault(terminate_worker, "worker"),
    "cut worker": Fault(cut_worker, "worker", is_lost=True),
    "SIGKILL front": Fault(kill_front, "front"),
    "SIGTERM front": Fault(terminate_front, "front"),
    "SIGKILL Redis": Fault(kill_redis, "redis"),
}
