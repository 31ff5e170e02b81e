"""The row of fair sharing: who is served while there is too little for all."""

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from scripts.chaos.criteria import ExperimentPlan, Row
from scripts.chaos.invariants import all_ended, violations
from scripts.chaos.polling import came_true
from scripts.chaos.queue_clients import QueueClients
from scripts.chaos.scenarios import fleet_of
from worker.scheduler import PATIENCE_STEPS

_WORKERS, _BATCH = 2, 4
_SHARES = (0.8, 1.25)
_FIRST_TOKEN_S, _FIRST_TOKEN_STEPS = 0.1, 3
"""A full worker looks for interactive jobs that often; a step may be under way, and one says the
token."""
_PAUSE_S = 0.2
_OVERHEAD_S = 0.01
"""What a step may take beyond the model's part of it."""
_ENDED_BY_S = 60.0


async def shares(clients: QueueClients, jobs: int, num_tokens: int) -> Row:
    """Two tenants of one class. One has ten times as many jobs, which are twice as long, and came
    first."""
    flood = await clients.submit("flood", 10 * jobs, 2 * num_tokens)
    await clients.filled()
    modest = await clients.submit("modest", jobs, num_tokens)
    await clients.first_token(modest)  # the flood keeps the places it had until its jobs end
    before = await clients.served(flood, modest)

    async def is_served() -> bool:
        return await clients.num_in(modest, "queued") == 0

    await came_true(is_served, _ENDED_BY_S)
    flooding, served = (
        now - then for now, then in zip(await clients.served(flood, modest), before, strict=True)
    )
    is_flooded = await clients.num_in(flood, "queued") > 0
    await clients.call_off(flood)
    await clients.texts(modest)
    share = served / flooding
    figures = {"tokens to the modest": served, "to the flood": flooding, "share": round(share, 2)}
    wrong = (
        []
        if _SHARES[0] <= share <= _SHARES[1]
        else [f"the modest tenant had {share:.2f} times the flood's tokens"]
    )
    return Row("shares", figures, wrong if is_flooded else [*wrong, "the flood had dried up"])


def _unstretched() -> float:
    return 1.0


async def preemption(
    clients: QueueClients,
    num_urgent: int,
    num_tokens: int,
    step_s: float,
    *,
    slowness: Callable[[], float] = _unstretched,
) -> Row:
    """Bulk holds every place, and more of it waits. Interactive jobs come one by one, at any moment
    of a step.

    `slowness` tells how many times as slow as a quiet one the machine is: the limit is stretched by
    that.
    """
    rng = random.Random(5)
    alone = await clients.texts(
        await clients.submit("bulk", 2 * clients.places, num_tokens, "bulk")
    )
    bulk, waits, open_jobs = (
        await clients.submit("bulk", 2 * clients.places, num_tokens, "bulk"),
        [],
        [],
    )
    await clients.filled()
    for _ in range(num_urgent):
        await asyncio.sleep(rng.uniform(0, _PAUSE_S))
        begun = time.monotonic()
        urgent = await clients.submit("eager", 1, 4, "interactive")
        await clients.first_token(urgent)
        waits.append((time.monotonic() - begun) / step_s)
        open_jobs.append(await clients.num_in(bulk, "queued", "running"))
        await clients.texts(urgent)
    changed = sum(one != other for one, other in zip(await clients.texts(bulk), alone, strict=True))
    median = statistics.median(waits)
    limit = (_FIRST_TOKEN_STEPS + _FIRST_TOKEN_S / step_s) * slowness()
    figures = {
        "interactive": num_urgent,
        "steps to first token p50": round(median, 1),
        "most": round(max(waits), 1),
        "bulk texts": len(alone),
        "changed": changed,
    }
    wrong = [f"{changed} bulk texts changed"] if changed else []
    if median > limit:
        wrong.append(f"the median first token took {median:.1f} steps, not {limit:.1f}")
    if min(open_jobs) < clients.places:
        wrong.append("bulk did not hold every place all the time")
    return Row("preemption", figures, wrong)


async def ageing(
    clients: QueueClients,
    num_tokens: int,
    ageing_s: float,
    step_s: float,
    *,
    slowness: Callable[[], float] = _unstretched,
) -> Row:
    """Interactive jobs without end, three times as many at once as there are places, and one bulk
    job among them.

    In the line it is first after three times `ageing_s`; in the engine it is paused at most twice
    `PATIENCE_STEPS`.
    """
    limit_s = (
        3 * ageing_s + (2 * PATIENCE_STEPS + 2 * num_tokens) * (step_s + _OVERHEAD_S) * slowness()
    )
    async with _stream(clients, 3 * clients.places, num_tokens) as served:
        await clients.filled()
        begun, before, waiting = time.monotonic(), len(served), []
        bulk = await clients.submit("bulk", 1, num_tokens, "bulk")

        async def has_ended() -> bool:
            waiting.append(await clients.waiting("interactive"))
            return await clients.num_in(bulk, "done") == 1

        is_done = await came_true(has_ended, 2 * limit_s)
        seconds, meanwhile = time.monotonic() - begun, len(served) - before
    figures = {
        "bulk ended after s": round(seconds, 1),
        "limit s": round(limit_s, 1),
        "interactive ended meanwhile": meanwhile,
        "waiting p50": statistics.median(waiting),
    }
    wrong = [] if is_done and seconds <= limit_s else [f"the bulk job took {seconds:.1f} s"]
    if statistics.median(waiting) == 0:
        wrong.append("the stream did not fill the fleet")
    return Row("ageing", figures, wrong)


async def fair(plan: ExperimentPlan) -> Row:
    """All three, on workers with few places."""
    flags = ("--max-batch-size", str(_BATCH))
    async with fleet_of(replace(plan, workers=_WORKERS), 0, worker_flags=flags) as made:
        clients = QueueClients(made.redis, plan.model, _WORKERS * _BATCH)
        rows = [
            await shares(clients, 100, 24),
            await preemption(clients, 50, 600, plan.step_s),
            await ageing(clients, 16, plan.ageing_s, plan.step_s),
        ]
        await clients.close()
        await all_ended(made.redis, _ENDED_BY_S)
        wrong = [words for row in rows for words in row.wrong] + await violations(made.redis)
    return Row(
        "fair",
        {f"{row.name}: {name}": told for row in rows for name, told in row.figures.items()},
        wrong,
    )


@asynccontextmanager
async def _stream(
    clients: QueueClients, num_callers: int, num_tokens: int
) -> AsyncIterator[list[str]]:
    """Callers who ask again as soon as they are answered, while the body runs; yields the answers
    so far."""
    is_over, answers = False, []

    async def ask_on(number: int) -> None:
        while not is_over:
            answers.extend(
                await clients.texts(
                    await clients.submit(f"eager {number}", 1, num_tokens, "interactive")
                )
            )

    async with asyncio.TaskGroup() as group:
        for number in range(num_callers):
            group.create_task(ask_on(number))
        yield answers
        is_over = True
