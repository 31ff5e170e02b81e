"""Two ways to put a load on servers: requests that leave when they are due (an open loop), and
clients that each wait for their answers (a closed loop)."""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import cycle
from time import perf_counter as now

from scripts.bench.loads.caller import Caller, Heard
from scripts.bench.loads.plan import ClientRequest
from scripts.bench.loads.tally import Window


async def open_loop(
    callers: Sequence[Caller], asks: Iterator[ClientRequest], seconds: float
) -> tuple[list[Heard], Window]:
    """Send each request when it is due, whether or not earlier ones are answered, and return when
    all are.

    The window is the time in which requests were due.
    """
    heard: list[Heard] = []
    turns = cycle(callers)
    begun = now()

    async def send(ask: ClientRequest, caller: Caller) -> None:
        heard.append(await caller.ask(ask, begun + ask.at_s))

    async with asyncio.TaskGroup() as group:
        for ask in asks:
            if ask.at_s > seconds:
                break
            await asyncio.sleep(begun + ask.at_s - now())
            group.create_task(send(ask, next(turns)))
        await asyncio.sleep(begun + seconds - now())
    return heard, Window(begun, begun + seconds)


async def closed_loop(
    callers: Sequence[Caller], asks: Iterator[ClientRequest], seconds: float, clients: int
) -> tuple[list[Heard], Window]:
    """Run so many clients, each of which asks again as soon as it is answered, until the time is
    over."""
    heard: list[Heard] = []
    turns = cycle(callers)
    begun = now()

    async def client(caller: Caller) -> None:
        due = now()
        while due < begun + seconds:
            heard.append(await caller.ask(next(asks), due))
            due = now()

    await asyncio.gather(*[client(next(turns)) for _ in range(clients)])
    return heard, Window(begun, begun + seconds)
