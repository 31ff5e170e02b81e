"""Two ways to put a load on servers: an open loop and a closed loop.

In an open loop requests leave when they are due. In a closed loop each client sends its next
request when it has the answer to the last one.
"""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import cycle
from time import perf_counter as now

from scripts.bench.loads.caller import Caller, Outcome
from scripts.bench.loads.plan import ClientRequest
from scripts.bench.loads.tally import Window


async def open_loop(
    callers: Sequence[Caller], requests: Iterator[ClientRequest], seconds: float
) -> tuple[list[Outcome], Window]:
    """Send each request when it is due, whether or not earlier ones are answered.

    Return the outcomes when all requests have ended, and the window in which they were due.
    """
    outcomes: list[Outcome] = []
    turns = cycle(callers)
    started = now()

    async def send(request: ClientRequest, caller: Caller) -> None:
        outcomes.append(await caller.send(request, started + request.at_s))

    async with asyncio.TaskGroup() as group:
        for request in requests:
            if request.at_s > seconds:
                break
            await asyncio.sleep(started + request.at_s - now())
            group.create_task(send(request, next(turns)))
        await asyncio.sleep(started + seconds - now())
    return outcomes, Window(started, started + seconds)


async def closed_loop(
    callers: Sequence[Caller], requests: Iterator[ClientRequest], seconds: float, clients: int
) -> tuple[list[Outcome], Window]:
    """Run `clients` clients, each of which sends a request as soon as the last one is answered.

    Return the outcomes when all clients have ended, and the window in which they sent requests.
    """
    outcomes: list[Outcome] = []
    turns = cycle(callers)
    started = now()

    async def client(caller: Caller) -> None:
        due = now()
        while due < started + seconds:
            outcomes.append(await caller.send(next(requests), due))
            due = now()

    await asyncio.gather(*[client(next(turns)) for _ in range(clients)])
    return outcomes, Window(started, started + seconds)
