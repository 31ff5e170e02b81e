"""The scenario of fair sharing: who is served while the fleet is overloaded?"""

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from scripts.chaos.criteria import ExperimentPlan, ScenarioResult
from scripts.chaos.invariants import all_ended, violations
from scripts.chaos.polling import came_true
from scripts.chaos.queue_clients import QueueClients
from scripts.chaos.scenarios import fleet_of
from worker.engine.scheduler import PATIENCE_STEPS

_WORKERS = 2
_BATCH = 4
_SHARES = (0.8, 1.25)
# The interval at which a full worker looks for interactive jobs. A step may be running then, and
# the next ones generate the token.
_FIRST_TOKEN_S = 0.1
_FIRST_TOKEN_STEPS = 3
_PAUSE_S = 0.2
# The part of a step that is not spent in the model.
_OVERHEAD_S = 0.01
_ENDED_BY_S = 60.0
# Each reading reads the logs of all jobs.
_READ_EVERY_S = 0.1


async def shares(clients: QueueClients, jobs: int, num_tokens: int) -> ScenarioResult:
    """Check that two tenants of one class get about the same number of tokens.

    The jobs of one tenant are ten times as many, twice as long, and came first.
    """
    flood = await clients.submit("flood", 10 * jobs, num_tokens=2 * num_tokens)
    await clients.filled()
    modest = await clients.submit("modest", jobs, num_tokens=num_tokens)
    # The flood keeps its slots until its jobs end, so counting begins when the other has one.
    await clients.first_token(modest)
    flood_before, modest_before = await clients.served(flood, modest)
    flood_after, modest_after = flood_before, modest_before

    async def is_served() -> bool:
        nonlocal flood_after, modest_after
        flood_now, modest_now = await clients.served(flood, modest)
        if await clients.num_in(modest, "queued") == 0:
            return True
        # The share counts up to here only: a tenant with no job in the queue wants no more.
        flood_after, modest_after = flood_now, modest_now
        return False

    await came_true(is_served, _ENDED_BY_S, every_s=_READ_EVERY_S)
    is_flooded = await clients.num_in(flood, "queued") > 0
    await clients.cancel(flood)
    await clients.texts(modest)

    modest_tokens = modest_after - modest_before
    flood_tokens = flood_after - flood_before
    share = modest_tokens / flood_tokens
    figures = {
        "tokens to the modest": modest_tokens,
        "to the flood": flood_tokens,
        "share": round(share, 2),
    }
    lowest, highest = _SHARES
    wrong = []
    if not lowest <= share <= highest:
        wrong.append(f"the modest tenant had {share:.2f} times the flood's tokens")
    if not is_flooded:
        wrong.append("the flood had no job left in the queue")
    return ScenarioResult("shares", figures, wrong)


def _no_slowness() -> float:
    return 1.0


async def preemption(
    clients: QueueClients,
    num_urgent: int,
    num_tokens: int,
    step_s: float,
    *,
    slowness: Callable[[], float] = _no_slowness,
) -> ScenarioResult:
    """Check that interactive jobs are served at once while bulk jobs fill the fleet.

    Bulk jobs hold all slots, and more of them wait. Their texts must be those of an undisturbed
    run. The interactive jobs come one by one, at random moments of a step. `slowness` returns the
    factor by which this machine is slower than a quiet one; the limit is multiplied by it.
    """
    rng = random.Random(5)
    num_bulk = 2 * clients.slots
    undisturbed = await clients.submit("bulk", num_bulk, num_tokens=num_tokens, priority="bulk")
    undisturbed_texts = await clients.texts(undisturbed)

    bulk = await clients.submit("bulk", num_bulk, num_tokens=num_tokens, priority="bulk")
    await clients.filled()
    wait_steps = []
    num_open = []
    for _ in range(num_urgent):
        await asyncio.sleep(rng.uniform(0, _PAUSE_S))
        started = time.monotonic()
        urgent = await clients.submit("eager", 1, num_tokens=4, priority="interactive")
        await clients.first_token(urgent)
        wait_steps.append((time.monotonic() - started) / step_s)
        num_open.append(await clients.num_in(bulk, "queued", "running"))
        await clients.texts(urgent)

    num_changed = 0
    for text, undisturbed_text in zip(await clients.texts(bulk), undisturbed_texts, strict=True):
        if text != undisturbed_text:
            num_changed += 1

    median = statistics.median(wait_steps)
    limit = (_FIRST_TOKEN_STEPS + _FIRST_TOKEN_S / step_s) * slowness()
    figures = {
        "interactive": num_urgent,
        "steps to first token p50": round(median, 1),
        "most": round(max(wait_steps), 1),
        "bulk texts": len(undisturbed_texts),
        "changed": num_changed,
    }
    wrong = []
    if num_changed:
        wrong.append(f"{num_changed} bulk texts changed")
    if median > limit:
        wrong.append(f"the median first token took {median:.1f} steps, not {limit:.1f}")
    if min(num_open) < clients.slots:
        wrong.append("bulk did not hold every slot all the time")
    return ScenarioResult("preemption", figures, wrong)


async def ageing(
    clients: QueueClients,
    num_tokens: int,
    ageing_s: float,
    step_s: float,
    *,
    slowness: Callable[[], float] = _no_slowness,
) -> ScenarioResult:
    """Check that a bulk job ends in time although interactive jobs keep coming.

    There are always three times as many of them as slots. The bulk job is the first in the queue
    after three times `ageing_s`, and the engine pauses it at most twice for `PATIENCE_STEPS`.
    `slowness` is that of `preemption`.
    """
    waited_s = 3 * ageing_s
    num_steps = 2 * PATIENCE_STEPS + 2 * num_tokens
    limit_s = waited_s + num_steps * (step_s + _OVERHEAD_S) * slowness()
    async with _stream(clients, 3 * clients.slots, num_tokens) as answers:
        await clients.filled()
        num_waiting = []
        started = time.monotonic()
        num_before = len(answers)
        bulk = await clients.submit("bulk", 1, num_tokens=num_tokens, priority="bulk")

        async def has_ended() -> bool:
            num_waiting.append(await clients.waiting("interactive"))
            return await clients.num_in(bulk, "done") == 1

        is_done = await came_true(has_ended, 2 * limit_s)
        seconds = time.monotonic() - started
        num_meanwhile = len(answers) - num_before

    median_waiting = statistics.median(num_waiting)
    figures = {
        "bulk ended after s": round(seconds, 1),
        "limit s": round(limit_s, 1),
        "interactive ended meanwhile": num_meanwhile,
        "waiting p50": median_waiting,
    }
    wrong = []
    if not is_done or seconds > limit_s:
        wrong.append(f"the bulk job took {seconds:.1f} s")
    if median_waiting == 0:
        wrong.append("the stream did not fill the fleet")
    return ScenarioResult("ageing", figures, wrong)


async def fair(plan: ExperimentPlan) -> ScenarioResult:
    """Run all three experiments on workers with few slots."""
    flags = ("--max-batch-size", str(_BATCH))
    async with fleet_of(replace(plan, workers=_WORKERS), 0, worker_flags=flags) as fleet:
        clients = QueueClients(fleet.redis, plan.model, slots=_WORKERS * _BATCH)
        results = [
            await shares(clients, jobs=100, num_tokens=24),
            await preemption(clients, num_urgent=50, num_tokens=600, step_s=plan.step_s),
            await ageing(clients, num_tokens=16, ageing_s=plan.ageing_s, step_s=plan.step_s),
        ]
        await clients.close()
        await all_ended(fleet.redis, _ENDED_BY_S)

        figures = {}
        wrong = []
        for result in results:
            for name, value in result.figures.items():
                figures[f"{result.name}: {name}"] = value
            wrong += result.wrong
        wrong += await violations(fleet.redis)
    return ScenarioResult("fair", figures, wrong)


@asynccontextmanager
async def _stream(
    clients: QueueClients, num_callers: int, num_tokens: int
) -> AsyncIterator[list[str]]:
    """Run callers while the context lasts, and yield the growing list of their answers.

    Each caller submits its next job as soon as the one before has ended.
    """
    is_over = False
    answers: list[str] = []

    async def keep_submitting(number: int) -> None:
        while not is_over:
            request = await clients.submit(
                f"eager {number}", 1, num_tokens=num_tokens, priority="interactive"
            )
            answers.extend(await clients.texts(request))

    async with asyncio.TaskGroup() as group:
        for number in range(num_callers):
            group.create_task(keep_submitting(number))
        yield answers
        is_over = True
