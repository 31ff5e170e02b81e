"""Putting a load on servers: requests that come when they are due, or clients that each wait for
their answers."""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import cycle
from time import perf_counter as now

from scripts.loads.caller import Caller, Heard
from scripts.loads.plan import ClientRequest
from scripts.loads.tally import Window


async def open_loop(
    callers: Sequence[Caller], asks: Iterator[ClientRequest], seconds: float
) -> tuple[list[Heard], Window]:
    """Each request leaves when it is due, whether or not earlier ones are answered; returns when
    all are.

    The window is the time in which requests were due.
    """
    begun, heard, turns = now(), list[Heard](), cycle(callers)

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
    """So many clients, each of which asks again when it is answered; none asks when the time is
    over."""
    begun, heard = now(), list[Heard]()

    async def client(caller: Caller) -> None:
        while (due := now()) < begun + seconds:
            heard.append(await caller.ask(next(asks), due))

    turns = cycle(callers)
    await asyncio.gather(*(client(next(turns)) for _ in range(clients)))
    return heard, Window(begun, begun + seconds)
