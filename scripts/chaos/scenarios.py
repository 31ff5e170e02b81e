"""The scenarios of chaos experiments.

Each puts a load on a fleet, injects faults, measures the outcome, and checks it against criteria.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import Any

from scripts.chaos import faults
from scripts.chaos.clients import Client, load
from scripts.chaos.criteria import (
    ExperimentPlan,
    ScenarioResult,
    at,
    result_of,
    run_twice,
    unmet_criteria,
)
from scripts.chaos.faults import Fault, Toll, every
from scripts.chaos.processes import Fleet, fleet
from scripts.chaos.requests import ClientRequest, Mode
from scripts.chaos.rigged import POISON, STEP_ENV
from shared.settings.settings import DEFAULT_MODEL

_DISTINCT = 40
_LATE_S = (0.02, 0.1)

Scenario = Callable[[ExperimentPlan], Coroutine[Any, Any, ScenarioResult]]


def fleet_of(
    plan: ExperimentPlan, num_fronts: int = 1, *, worker_flags: Sequence[str] = (), **options: Any
) -> AbstractAsyncContextManager[Fleet]:
    """Run the fleet of a plan while the context lasts.

    `worker_flags` are added to those of the plan. `options` are those of `Fleet`.
    """
    flags = ["--lease-s", str(plan.lease_s)]
    flags += ["--ageing-s", str(plan.ageing_s)]
    flags += ["--max-new-tokens", "1024"]
    flags += worker_flags
    if plan.model == "echo":
        flags += ["--model", "echo=echo"]
        options = {"worker": "scripts.chaos.worker", "env": {STEP_ENV: str(plan.step_s)}, **options}
    else:
        flags += ["--model", f"sample={DEFAULT_MODEL}"]
        flags += ["--threads", "1", "--device", "cpu", "--dtype", "float32"]
    return fleet(
        plan.workers,
        num_fronts,
        worker_flags=flags,
        front_flags=("--max-queue-depth", "100000"),
        **options,
    )


async def with_expected(
    plan: ExperimentPlan, client: Client, modes: Sequence[Mode]
) -> list[ClientRequest]:
    """Return the requests of a load, each with the text of an undisturbed run.

    The load repeats `_DISTINCT` different requests, which have the `modes` in turn. Raises
    RuntimeError if the undisturbed run fails.
    """
    kinds = []
    undisturbed = []
    for number in range(min(_DISTINCT, plan.requests)):
        kind = _request(plan, number, modes[number % len(modes)])
        kinds.append(kind)
        undisturbed.append(replace(kind, name=f"alone-{kind.name}", mode=_plain(kind)))

    texts = {}
    answers = await load(client, undisturbed, plan.clients)
    for answer in answers:
        if answer.error:
            raise RuntimeError(f"the undisturbed run failed: {answer.error}")
        texts[answer.request.name.removeprefix("alone-")] = answer.text

    requests = []
    for number in range(plan.requests):
        kind = kinds[number % len(kinds)]
        requests.append(replace(kind, name=f"ask-{number}", expected=texts[kind.name]))
    return requests


async def under_load(
    name: str,
    plan: ExperimentPlan,
    fault: Fault,
    *,
    is_persistent: bool = False,
    has_proxies: bool = False,
) -> ScenarioResult:
    """Inject one fault after the other into a fleet whose clients stream, wait or score.

    The clients repeat no request unless they are persistent.
    """
    async with fleet_of(plan, has_proxies=has_proxies) as running:
        client = Client(_urls_of(running), is_persistent=is_persistent)
        requests = await with_expected(plan, client, ("sse", "sync", "sse", "scoring"))
        started = time.monotonic()
        async with every(plan.every_s, fault, running) as toll:
            answers = await load(client, requests, plan.clients)
            seconds = time.monotonic() - started
        await client.close()
        result = await result_of(name, running, answers, toll=toll, seconds=seconds)
        result.wrong += unmet_criteria(name, plan, result.figures)
        return result


async def fronts_killed(plan: ExperimentPlan) -> ScenarioResult:
    """Kill one of two fronts at regular intervals, while their clients reconnect."""
    async with fleet_of(plan, 2) as running:
        # A front that is started again has the port of the one that was killed.
        urls = [front.url for front in running.fronts]
        undisturbed = Client(lambda: urls)
        client = Client(lambda: urls, is_persistent=True)
        requests = await with_expected(plan, undisturbed, ("sse", "sync", "poll", "scoring"))
        started = time.monotonic()
        async with every(plan.every_s, faults.kill_front, running) as toll:
            answers = await load(client, requests, plan.clients)
            seconds = time.monotonic() - started
        result = await result_of("front", running, answers, toll=toll, seconds=seconds)

        num_run_twice = await run_twice(running, requests)
        result.figures["run twice"] = num_run_twice
        if num_run_twice:
            result.wrong.append(f"{num_run_twice} requests were run twice")
        await client.close()
        await undisturbed.close()
        return result


async def slow(plan: ExperimentPlan) -> ScenarioResult:
    """Delay all bytes between Redis and the workers and fronts by 20 to 100 ms."""
    async with fleet_of(plan, has_proxies=True) as running:
        client = Client(_urls_of(running))
        requests = await with_expected(plan, client, ("sse", "sync", "poll", "scoring"))
        from_s, to_s = _LATE_S
        for member in running.fronts + running.workers:
            member.proxy.slow(from_s, to_s)
        started = time.monotonic()
        answers = await load(client, requests, plan.clients)
        seconds = time.monotonic() - started
        result = await result_of("slow", running, answers, toll=Toll(), seconds=seconds)
        took_s = sorted(answer.took_s for answer in answers)
        result.figures["took p50 s"] = at(took_s, 0.5)
        result.figures["took p99 s"] = at(took_s, 0.99)
        await client.close()
        return result


async def rolling(plan: ExperimentPlan) -> ScenarioResult:
    """Restart every worker and both fronts, one after the other, under load."""
    async with fleet_of(plan, 2) as running:
        urls = [front.url for front in running.fronts]
        undisturbed = Client(lambda: urls)
        client = Client(lambda: urls, is_persistent=True)
        requests = await with_expected(plan, undisturbed, ("sse", "sync", "sse", "scoring"))
        toll = Toll()
        started = time.monotonic()
        loading = asyncio.create_task(load(client, requests, plan.clients))
        # The load must be running before the first restart.
        await asyncio.sleep(1)
        await faults.roll(running, toll)
        is_covered = not loading.done()
        answers = await loading
        seconds = time.monotonic() - started
        result = await result_of("rolling", running, answers, toll=toll, seconds=seconds)

        result.figures["exits s"] = " ".join(f"{exit_s:.2f}" for exit_s in toll.exits_s)
        slowest_s = max(toll.exits_s)
        if slowest_s >= 2:
            result.wrong.append(f"the slowest exit took {slowest_s:.2f} s")
        if any(toll.statuses):
            result.wrong.append(f"exit statuses {toll.statuses}")
        if not is_covered:
            result.wrong.append("the load ended before the last restart")
        await client.close()
        await undisturbed.close()
        return result


async def poisoned(plan: ExperimentPlan) -> ScenarioResult:
    """Send 64 requests, one of which kills every worker that runs it.

    Workers that end are replaced.
    """
    async with fleet_of(replace(plan, workers=3)) as running:
        client = Client(_urls_of(running))
        toll = Toll()
        requests = []
        for number in range(64):
            request = _request(plan, number, "sync")
            requests.append(replace(request, expected=_echoed(request)))
        requests[31] = replace(requests[31], prompt=POISON, expected=None)

        replacing = asyncio.create_task(faults.replace_the_dead(running, toll))
        started = time.monotonic()
        answers = await load(client, requests, num_clients=len(requests))
        seconds = time.monotonic() - started
        replacing.cancel()
        await asyncio.gather(replacing, return_exceptions=True)

        [poisonous] = [answer for answer in answers if answer.request.prompt == POISON]
        answers.remove(poisonous)
        result = await result_of("poison", running, answers, toll=toll, seconds=seconds)
        num_dead = await running.redis.xlen("aios:{00}:dead")
        result.figures["crashes"] = toll.faults
        result.figures["dead"] = num_dead

        # A job is given up when three workers have crashed on it.
        is_given_up = "worker_crashed" in poisonous.error and num_dead == 1
        if not is_given_up or toll.faults > 3:
            result.wrong.append(
                f"{toll.faults} crashes, {num_dead} dead, the client of the poison got "
                f"{poisonous.error[:200]!r}"
            )
        await client.close()
        return result


def _urls_of(running: Fleet) -> Callable[[], list[str]]:
    """Return a function that returns the URLs of the fronts that run when it is called."""
    return lambda: [front.url for front in running.fronts]


def _request(plan: ExperimentPlan, number: int, mode: Mode) -> ClientRequest:
    """Return one of the different requests of a load."""
    name = f"kind-{number}"
    prompt = f"{number} apples and {3 * number + 1} pears"
    if mode == "scoring":
        continuations = (" make a pie", " are fruit", f" {number}")
        return ClientRequest(name, mode, prompt, continuations=continuations)
    return ClientRequest(name, mode, prompt, max_tokens=plan.max_tokens, temperature=0.8)


def _plain(request: ClientRequest) -> Mode:
    """Return the mode of a request in the undisturbed run."""
    return "scoring" if request.mode == "scoring" else "sync"


def _echoed(request: ClientRequest) -> str:
    """Return the text of the echo model, which repeats the prompt. A token is a character."""
    return (request.prompt * request.max_tokens)[: request.max_tokens]


SCENARIOS: dict[str, Scenario] = {
    "kill": partial(under_load, "kill", fault=faults.kill_worker),
    "stop": partial(under_load, "stop", fault=faults.stop_worker),
    "cut": partial(under_load, "cut", fault=faults.cut_worker, has_proxies=True),
    "redis": partial(under_load, "redis", fault=faults.kill_redis, is_persistent=True),
    "slow": slow,
    "front": fronts_killed,
    "rolling": rolling,
    "poison": poisoned,
}
