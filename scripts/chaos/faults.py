"""Faults that are injected into a fleet at regular intervals while its clients work.

Each fault hits a random member of the fleet, and is counted in a `Toll`.
"""

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
    """The counts of the faults that hit, and of those that were skipped to spare the last member.

    For each member that got SIGTERM, `exits_s` has the seconds until its end and `statuses` its
    exit status.
    """

    faults: int = 0
    spared: int = 0
    exits_s: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)


@asynccontextmanager
async def every(seconds: float, fault: Fault, fleet: Fleet, seed: int = 1) -> AsyncIterator[Toll]:
    """Inject `fault` once every `seconds` while the context lasts.

    At its end the faults that have begun are waited for.
    """
    toll = Toll()
    is_over = asyncio.Event()
    rng = random.Random(seed)
    tasks: set[asyncio.Task[None]] = set()

    async def keep_pace() -> None:
        while not is_over.is_set():
            try:
                await asyncio.wait_for(is_over.wait(), seconds)
            except TimeoutError:
                # A task of its own, as a fault may last longer than the pause before the next.
                tasks.add(asyncio.create_task(fault(fleet, rng, toll)))  # type: ignore[arg-type]

    pace = asyncio.create_task(keep_pace())
    try:
        yield toll
    finally:
        is_over.set()
        await pace
        await asyncio.gather(*tasks)


async def kill_worker(fleet: Fleet, rng: random.Random, toll: Toll) -> None:
    """Kill a worker with SIGKILL and start another one. The last worker that runs is spared."""
    victim = _victim(fleet.workers, rng, toll)
    if victim is not None:
        fleet.leave(victim)
        await victim.kill()
        await fleet.add_worker()


async def stop_worker(fleet: Fleet, rng: random.Random, toll: Toll, *, for_s: float = 20.0) -> None:
    """Stop a worker with SIGSTOP, and resume it `for_s` seconds later.

    The last worker that runs is spared.
    """
    victim = _victim(fleet.workers, rng, toll)
    if victim is not None:
        await victim.stop()
        await asyncio.sleep(for_s)
        victim.resume()


async def kill_front(fleet: Fleet, rng: random.Random, toll: Toll) -> None:
    """Kill a front with SIGKILL and start another one on its port.

    The last front that runs is spared.
    """
    victim = _victim(fleet.fronts, rng, toll)
    if victim is not None:
        fleet.leave(victim)
        await victim.kill()
        await fleet.add_front(port_of(victim))


async def cut_worker(fleet: Fleet, rng: random.Random, toll: Toll, *, for_s: float = 4.0) -> None:
    """Cut a worker off from Redis for `for_s` seconds, which is longer than its leases.

    The last worker that is connected is spared.
    """
    connected = [member for member in fleet.workers if not member.proxy.is_cut]
    victim = _victim(connected, rng, toll)
    if victim is not None:
        victim.proxy.cut()
        await asyncio.sleep(for_s)
        victim.proxy.restore()


async def kill_redis(fleet: Fleet, rng: random.Random, toll: Toll) -> None:
    """Kill Redis and start it again."""
    toll.faults += 1
    await restart_redis(fleet)


async def restart_redis(fleet: Fleet) -> None:
    """Kill Redis with SIGKILL and start it again with the contents of its append-only file."""
    os.kill(fleet.server.pid, signal.SIGKILL)

    async def is_back() -> bool:
        return fleet.server.revive()

    await came_true(is_back, 10.0, every_s=0.005)


async def roll(fleet: Fleet, toll: Toll) -> None:
    """Terminate each worker and then each front, one at a time, and replace it at its end."""
    for group, replace in ((fleet.workers, _new_worker), (fleet.fronts, _new_front)):
        for member in list(group):
            toll.faults += 1
            status, seconds = await member.terminate()
            fleet.leave(member)
            toll.statuses.append(status)
            toll.exits_s.append(seconds)
            await replace(fleet, member)


async def replace_the_dead(fleet: Fleet, toll: Toll) -> None:
    """Replace workers that end by themselves, as a supervisor does, until cancelled.

    Each of them counts as a fault.
    """
    while True:
        for member in list(fleet.workers):
            if not member.is_running:
                toll.faults += 1
                fleet.leave(member)
                await fleet.add_worker()
        await asyncio.sleep(0.02)


async def _new_worker(fleet: Fleet, old: FleetProcess) -> None:
    await fleet.add_worker()


async def _new_front(fleet: Fleet, old: FleetProcess) -> None:
    await fleet.add_front(port_of(old))


def port_of(front: FleetProcess) -> int:
    """Return the port at which a front listens."""
    return int(front.url.rpartition(":")[2])


def _victim(members: list[FleetProcess], rng: random.Random, toll: Toll) -> FleetProcess | None:
    """Return one of the members that run, chosen at random, or None if it would be the last."""
    running = []
    for member in members:
        if member.is_running and not member.is_stopped:
            running.append(member)
    if len(running) < 2:
        toll.spared += 1
        return None
    toll.faults += 1
    return rng.choice(running)
