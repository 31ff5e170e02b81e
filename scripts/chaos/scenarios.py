"""The rows of the table: what is done to which fleet under which load, what is measured, and
whether it is enough."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import Any

from scripts.chaos import faults
from scripts.chaos.clients import Client, load
from scripts.chaos.criteria import ExperimentPlan, Row, at, bars, row_of, run_twice
from scripts.chaos.faults import Fault, Toll, every
from scripts.chaos.processes import Fleet, fleet
from scripts.chaos.requests import ClientRequest
from scripts.chaos.rigged import POISON, STEP_ENV
from shared.settings import SAMPLE_MODEL

_DISTINCT = 40
_LATE_S = (0.02, 0.1)

RowOf = Callable[[ExperimentPlan], Coroutine[Any, Any, Row]]


def fleet_of(
    plan: ExperimentPlan, num_fronts: int = 1, *, worker_flags: Sequence[str] = (), **options: Any
) -> AbstractAsyncContextManager[Fleet]:
    """The fleet of a plan, ready; `worker_flags` come on top of the plan's own."""
    flags = [
        "--lease-s",
        str(plan.lease_s),
        "--ageing-s",
        str(plan.ageing_s),
        "--max-new-tokens",
        "1024",
    ]
    flags += worker_flags
    if plan.model == "echo":
        flags += ["--model", "echo=echo"]
        options = {"worker": "scripts.chaos.worker", "env": {STEP_ENV: str(plan.step_s)}, **options}
    else:
        flags += [
            "--model",
            f"sample={SAMPLE_MODEL}",
            "--threads",
            "1",
            "--device",
            "cpu",
            "--dtype",
            "float32",
        ]
    return fleet(
        plan.workers,
        num_fronts,
        worker_flags=flags,
        front_flags=("--max-queue-depth", "100000"),
        **options,
    )


async def with_expected(
    plan: ExperimentPlan, client: Client, modes: Sequence[str]
) -> list[ClientRequest]:
    """The asks of a load: some distinct ones again and again. Each says what an undisturbed run of
    it said."""
    kinds = [
        _ask(plan, number, modes[number % len(modes)])
        for number in range(min(_DISTINCT, plan.requests))
    ]
    told = await load(
        client,
        [replace(ask, name=f"alone-{ask.name}", mode=_plain(ask)) for ask in kinds],
        plan.clients,
    )
    if failed := [answer.error for answer in told if answer.error]:
        raise RuntimeError(f"the undisturbed run failed: {failed[0]}")
    said = {answer.request.name.removeprefix("alone-"): answer.text for answer in told}
    return [
        replace(
            kinds[number % len(kinds)],
            name=f"ask-{number}",
            expected=said[kinds[number % len(kinds)].name],
        )
        for number in range(plan.requests)
    ]


async def under_load(
    name: str,
    plan: ExperimentPlan,
    fault: Fault,
    *,
    is_persistent: bool = False,
    has_proxies: bool = False,
) -> Row:
    """A load of sync, SSE and scoring clients, who repeat nothing unless persistent, and one fault
    after the other."""
    async with fleet_of(plan, has_proxies=has_proxies) as made:
        client = Client(lambda: [front.url for front in made.fronts], is_persistent=is_persistent)
        asks = await with_expected(plan, client, ("sse", "sync", "sse", "scoring"))
        begun = time.monotonic()
        async with every(plan.every_s, fault, made) as toll:
            answers = await load(client, asks, plan.clients)
            seconds = time.monotonic() - begun
        await client.close()
        row = await row_of(name, made, answers, toll, seconds)
        row.wrong += bars(name, plan, row.figures)
        return row


async def fronts_killed(plan: ExperimentPlan) -> Row:
    """Two fronts, one of them killed every so often; the clients reconnect."""
    async with fleet_of(plan, 2) as made:
        urls = [front.url for front in made.fronts]
        undisturbed, client = Client(lambda: urls), Client(lambda: urls, is_persistent=True)
        asks = await with_expected(plan, undisturbed, ("sse", "sync", "poll", "scoring"))
        begun = time.monotonic()
        async with every(plan.every_s, faults.kill_front, made) as toll:
            answers = await load(client, asks, plan.clients)
            seconds = time.monotonic() - begun
        row = await row_of("front", made, answers, toll, seconds)
        row.figures["run twice"] = await run_twice(made, asks)
        if row.figures["run twice"]:
            row.wrong.append(f"{row.figures['run twice']} requests were run twice")
        await client.close()
        await undisturbed.close()
        return row


async def slow(plan: ExperimentPlan) -> Row:
    """Whatever a worker or front says to Redis, and Redis to it, is 20 to 100 ms on its way."""
    async with fleet_of(plan, has_proxies=True) as made:
        client = Client(lambda: [front.url for front in made.fronts])
        asks = await with_expected(plan, client, ("sse", "sync", "poll", "scoring"))
        for member in made.fronts + made.workers:
            member.proxy.slow(*_LATE_S)
        begun = time.monotonic()
        answers = await load(client, asks, plan.clients)
        row = await row_of("slow", made, answers, Toll(), time.monotonic() - begun)
        took = sorted(answer.took_s for answer in answers)
        row.figures |= {"took p50 s": at(took, 0.5), "took p99 s": at(took, 0.99)}
        await client.close()
        return row


async def rolling(plan: ExperimentPlan) -> Row:
    """Every worker and both fronts are asked to go, one after the other, while the load goes on."""
    async with fleet_of(plan, 2) as made:
        urls = [front.url for front in made.fronts]
        undisturbed, client = Client(lambda: urls), Client(lambda: urls, is_persistent=True)
        asks = await with_expected(plan, undisturbed, ("sse", "sync", "sse", "scoring"))
        toll, begun = Toll(), time.monotonic()
        loading = asyncio.create_task(load(client, asks, plan.clients))
        await asyncio.sleep(1)  # the load is on its way
        await faults.roll(made, toll)
        is_covered = not loading.done()
        answers = await loading
        row = await row_of("rolling", made, answers, toll, time.monotonic() - begun)
        row.figures["exits s"] = " ".join(f"{exit_s:.2f}" for exit_s in toll.exits_s)
        if max(toll.exits_s) >= 2:
            row.wrong.append(f"the slowest exit took {max(toll.exits_s):.2f} s")
        if any(toll.statuses):
            row.wrong.append(f"exit statuses {toll.statuses}")
        if not is_covered:
            row.wrong.append("the load ended before the last restart")
        await client.close()
        await undisturbed.close()
        return row


async def poisoned(plan: ExperimentPlan) -> Row:
    """One request in the middle of 64 kills every worker that runs it; workers that end are
    replaced."""
    async with fleet_of(replace(plan, workers=3)) as made:
        client, toll = Client(lambda: [front.url for front in made.fronts]), Toll()
        asks = [_ask(plan, number, "sync") for number in range(64)]
        asks = [replace(ask, expected=_echoed(ask)) for ask in asks]
        asks[31] = replace(asks[31], prompt=POISON, expected=None)
        replacing = asyncio.create_task(faults.replace_the_dead(made, toll))
        begun = time.monotonic()
        answers = await load(client, asks, len(asks))
        seconds = time.monotonic() - begun
        replacing.cancel()
        await asyncio.gather(replacing, return_exceptions=True)
        [convict] = [answer for answer in answers if answer.request.prompt == POISON]
        row = await row_of(
            "poison", made, [answer for answer in answers if answer is not convict], toll, seconds
        )
        dead = await made.redis.xlen("aios:{00}:dead")
        row.figures |= {"crashes": toll.faults, "dead": dead}
        if "worker_crashed" not in convict.error or dead != 1 or toll.faults > 3:
            row.wrong.append(
                f"{toll.faults} crashes, {dead} dead, the poison's client got "
                f"{convict.error[:200]!r}"
            )
        await client.close()
        return row


def _ask(plan: ExperimentPlan, number: int, mode: str) -> ClientRequest:
    prompt = f"{number} apples and {3 * number + 1} pears"
    if mode == "scoring":
        return ClientRequest(
            f"kind-{number}",
            "scoring",
            prompt,
            continuations=(" make a pie", " are fruit", f" {number}"),
        )
    return ClientRequest(f"kind-{number}", mode, prompt, plan.max_tokens, temperature=0.8)  # type: ignore[arg-type]


def _plain(ask: ClientRequest) -> Any:
    """The mode in which an undisturbed run is asked."""
    return "scoring" if ask.mode == "scoring" else "sync"


def _echoed(ask: ClientRequest) -> str:
    return (ask.prompt * ask.max_tokens)[: ask.max_tokens]


ROWS: dict[str, RowOf] = {
    "kill": partial(under_load, "kill", fault=faults.kill_worker),
    "stop": partial(under_load, "stop", fault=faults.stop_worker),
    "cut": partial(under_load, "cut", fault=faults.cut_worker, has_proxies=True),
    "redis": partial(under_load, "redis", fault=faults.kill_redis, is_persistent=True),
    "slow": slow,
    "front": fronts_killed,
    "rolling": rolling,
    "poison": poisoned,
}
