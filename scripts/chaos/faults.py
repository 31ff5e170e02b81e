"""What is done to a fleet while its clients work: one fault after the other, at a steady pace, to
members chosen at random. Each runs until it is cancelled and counts in `Toll` what it did."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from scripts.chaos.polling import came_true
from scripts.chaos.processes import Fleet, FleetProcess

Fault = Callable[[Fleet, random.Random, "Toll"], Awaitable[None]]


@dataclass
class Toll:
    """How many faults there were, how often the last member that ran was spared, and how long
    members took to go (seconds), where they were asked to."""

    faults: int = 0
    spared: int = 0
    exits_s: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)


@asynccontextmanager
async def every(seconds: float, fault: Fault, fleet: Fleet, seed: int = 1) -> AsyncIterator[Toll]:
    """One `fault` every so often, while the body runs. What is under way then is finished."""
    toll, over, rng = Toll(), asyncio.Event(), random.Random(seed)

    async def go_on() -> None:
        while not over.is_set():
            try:
                await asyncio.wait_for(over.wait(), seconds)
            except TimeoutError:
                begun.add(asyncio.create_task(fault(fleet, rng, toll)))  # type: ignore[arg-type]

    begun: set[asyncio.Task[None]] = set()
    pace = asyncio.create_task(go_on())
    try:
        yield toll
    finally:
        over.set()
        await pace
        await asyncio.gather(*begun)


async def kill_worker(fleet: Fleet, rng: random.Random, toll: Toll) -> None:
    """SIGKILL; another one is started at once. The last worker that runs is spared."""
    victim = _victim(fleet.workers, rng, toll)
    if victim is not None:
        fleet.leave(victim)
        await victim.kill()
        await fleet.add_worker()


async def stop_worker(fleet: Fleet, rng: random.Random, toll: Toll, *, for_s: float = 20.0) -> None:
    """SIGSTOP, and SIGCONT later. The last worker that runs is spared."""
    victim = _victim(fleet.workers, rng, toll)
    if victim is not None:
        await victim.stop()
        await asyncio.sleep(for_s)
        victim.resume()


async def kill_front(fleet: Fleet, rng: random.Random, toll: Toll) -> None:
    """SIGKILL; another one is started at once where it listened. The last front that runs is
    spared."""
    victim = _victim(fleet.fronts, rng, toll)
    if victim is not None:
        fleet.leave(victim)
        await victim.kill()
        await fleet.add_front(port_of(victim))


async def cut_worker(fleet: Fleet, rng: random.Random, toll: Toll, *, for_s: float = 4.0) -> None:
    """A worker loses Redis for longer than its leases last. The last one that has it is spared."""
    connected = [member for member in fleet.workers if not member.proxy.is_cut]
    victim = _victim(connected, rng, toll)
    if victim is not None:
        victim.proxy.cut()
        await asyncio.sleep(for_s)
        victim.proxy.restore()


async def kill_redis(fleet: Fleet, rng: random.Random, toll: Toll) -> None:
    """Redis dies and comes back."""
    toll.faults += 1
    await restart_redis(fleet)


async def restart_redis(fleet: Fleet) -> None:
    """SIGKILL, and the same Redis again with what its append-only file has kept."""
    os.kill(fleet.server.pid, signal.SIGKILL)

    async def is_back() -> bool:
        return fleet.server.revive()

    await came_true(is_back, 10.0, every_s=0.005)


async def roll(fleet: Fleet, toll: Toll) -> None:
    """Each worker, then each front, is asked to go and replaced when it has gone, one at a time."""
    for group, replace in ((fleet.workers, _new_worker), (fleet.fronts, _new_front)):
        for member in list(group):
            toll.faults += 1
            status, seconds = await member.terminate()
            fleet.leave(member)
            toll.statuses.append(status)
            toll.exits_s.append(seconds)
            await replace(fleet, member)


async def replace_the_dead(fleet: Fleet, toll: Toll) -> None:
    """Until cancelled: a worker that ends by itself is counted and replaced, as a supervisor
    does."""
    while True:
        for member in list(fleet.workers):
            if not member.is_running:
                toll.faults += 1
                fleet.leave(member)
                await fleet.add_worker()
        await asyncio.sleep(0.02)


async def _new_worker(fleet: Fleet, gone: FleetProcess) -> None:
    await fleet.add_worker()


async def _new_front(fleet: Fleet, gone: FleetProcess) -> None:
    await fleet.add_front(port_of(gone))


def port_of(front: FleetProcess) -> int:
    return int(front.url.rpartition(":")[2])


def _victim(members: list[FleetProcess], rng: random.Random, toll: Toll) -> FleetProcess | None:
    """One of those that run, while there are two or more."""
    running = [member for member in members if member.is_running and not member.is_stopped]
    if len(running) < 2:
        toll.spared += 1
        return None
    toll.faults += 1
    return rng.choice(running)
