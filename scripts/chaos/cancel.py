"""The scenario of cancelling, which measures how soon the slot of a cancelled job goes to another
job."""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import httpx

from scripts.chaos.criteria import ExperimentPlan, ScenarioResult
from scripts.chaos.invariants import all_ended, violations
from scripts.chaos.polling import came_true
from scripts.chaos.processes import Fleet, FleetProcess
from scripts.chaos.rigged import GATES_ENV, STEP_ENV
from scripts.chaos.scenarios import fleet_of
from shared.events.log import LogReader
from shared.events.subscriptions import Subscriptions
from shared.messages import Cancelled, Event, Started, Tokens
from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.requests import Requests

Phase = Literal["queued", "prefill", "decode", "takeover"]
Way = Literal["DELETE", "POST", "hang up"]
PHASES: tuple[Phase, ...] = ("queued", "prefill", "decode", "takeover")
WAYS: tuple[Way, ...] = ("DELETE", "POST", "hang up")

SLACK_S = 0.05
_LEASE_S = 1.0
_COMES_BY_S = 30.0
_LONG = 256
_GATE = "shut"


@dataclass(frozen=True)
class Freed:
    """Seconds from the client's call until the next job was taken, and until that job's first
    token, a step later.

    For a cancelled job that had no slot yet, both are the seconds until it had left the queue.
    """

    taken_s: float
    token_s: float


@dataclass(frozen=True)
class Caller:
    """A client with an open stream."""

    request_id: str
    job_id: str
    reply: httpx.Response


class Cancelling:
    """A fleet with one front and one slot left, and callers who cancel what they asked for."""

    def __init__(self, fleet: Fleet, gates: Path) -> None:
        broker = Broker(fleet.redis)
        self._fleet = fleet
        self._gates = gates
        self._requests = Requests(broker)
        self._subscriptions = Subscriptions(fleet.redis)
        self._reader = LogReader(broker, self._subscriptions)
        self._http = httpx.AsyncClient(base_url=fleet.fronts[0].url, timeout=_COMES_BY_S)
        (gates / _GATE).touch()

    async def close(self) -> None:
        await self._http.aclose()
        await self._subscriptions.close()

    async def freed(self, phase: Phase, way: Way) -> Freed:
        """Cancel a job in this phase, this way, while another one waits, and measure when its slot
        is free. Raises RuntimeError if that proved nothing."""
        running = None
        if phase == "queued":
            # It takes the only slot, so that the caller's job stays in the queue.
            running = await self._ask("decode")
        caller = await self._ask(phase)
        lost_worker = None
        if phase == "takeover":
            lost_worker = await self._lose_worker(caller)
        next_job = await self._submit()
        if await self._state(next_job) != "queued":
            raise RuntimeError(f"{phase}: a slot was free before any was given up")

        begun = time.monotonic()
        calling = asyncio.create_task(self._call_off(caller, way))
        if running is not None:
            ended_s = await self._seconds_to(caller.job_id, Cancelled, begun)
            freed = Freed(ended_s, ended_s)
            await self._call_off(running, "DELETE")
            await self._seconds_to(next_job, Tokens, begun)
        else:
            taken_s = await self._seconds_to(next_job, Started, begun)
            token_s = await self._seconds_to(next_job, Tokens, begun)
            freed = Freed(taken_s, token_s)
        await calling

        if lost_worker is not None:
            lost_worker.resume()
        await self._check(caller, phase)
        return freed

    async def _ask(self, phase: Phase) -> Caller:
        """Open a stream, and return when its job has come to the phase."""
        prompt = "on and on"
        if phase == "prefill":
            prompt = f"hold:{_GATE}:0"
        body = {"prompt": prompt, "max_tokens": _LONG, "stream": True}
        request = self._http.build_request("POST", "/v1/completions", json=body)
        reply = await self._http.send(request, stream=True)
        if reply.status_code != 200:
            raise RuntimeError(f"a stream was refused: {reply.status_code}")
        request_id = reply.headers["X-Job-Id"]
        [job_id] = (await self._requests.find(request_id, "public")).job_ids

        if phase == "prefill":
            await self._held(job_id)
        elif phase != "queued":
            await self._seconds_to(job_id, Tokens, since=0)
        return Caller(request_id, job_id, reply)

    async def _held(self, job_id: str) -> None:
        """Return when the engine holds the job at its gate. Its log says nothing of that."""

        async def is_held() -> bool:
            return any(self._gates.glob(f"{_GATE}.{job_id}:*"))

        if not await came_true(is_held, _COMES_BY_S, every_s=0.005):
            raise RuntimeError(f"job {job_id} never came to its slot")

    async def _submit(self) -> str:
        """Submit a job of one token that nobody follows, and return its id."""
        body = {"prompt": "next", "max_tokens": 1}
        reply = await self._http.post(
            "/v1/completions", json=body, headers={"Prefer": "respond-async"}
        )
        [job_id] = (await self._requests.find(reply.json()["id"], "public")).job_ids
        return job_id

    async def _lose_worker(self, caller: Caller) -> FleetProcess:
        """Stop the worker that has the job, and return it when another one has gone on with the
        job."""
        [name] = await self._fields(caller.job_id, "worker")
        [holder] = [member for member in self._fleet.workers if f"-{member.pid}-" in name]
        await holder.stop()
        is_taken_over = False
        async for _, event in self._reader.follow(caller.job_id):
            if isinstance(event, Started) and event.epoch > 1:
                is_taken_over = True
            if is_taken_over and isinstance(event, Tokens):
                return holder
        raise RuntimeError(f"job {caller.job_id} was not taken over")

    async def _call_off(self, caller: Caller, way: Way) -> None:
        match way:
            case "DELETE":
                await self._http.delete(f"/v1/jobs/{caller.request_id}")
            case "POST":
                await self._http.post(f"/api/inference/cancel/{caller.request_id}")
            case "hang up":
                await caller.reply.aclose()

    async def _seconds_to(self, job_id: str, kind: type[Event], since: float) -> float:
        """Wait for the first event of a kind in the job's log, and return the seconds from `since`
        to it."""
        async with asyncio.timeout(_COMES_BY_S):
            async for _, event in self._reader.follow(job_id):
                if isinstance(event, kind):
                    return time.monotonic() - since
        raise RuntimeError(f"job {job_id} ended without {kind.__name__}")

    async def _check(self, caller: Caller, phase: Phase) -> None:
        """Close the caller's stream, and raise RuntimeError unless the log of its job ends with the
        cancellation. A job that never had a slot must have nothing else in its log."""
        await caller.reply.aclose()
        events = [event for _, event in await self._reader.read(caller.job_id)]
        has_begun = len(events) != 1
        if not isinstance(events[-1], Cancelled) or (phase == "queued" and has_begun):
            raise RuntimeError(f"{phase}: the log of what was called off is {events}")

    async def _state(self, job_id: str) -> str:
        [state] = await self._fields(job_id, "state")
        return state

    async def _fields(self, job_id: str, *names: str) -> list[str]:
        values = await self._fleet.redis.hmget(keys.job(job_id), list(names))  # type: ignore[misc]
        return [value.decode() for value in values]


async def cancel(plan: ExperimentPlan) -> ScenarioResult:
    """Cancel `tries` jobs in each phase, in each of the ways in turn."""
    figures: dict[str, Any] = {"step ms": round(1000 * plan.step_s), "tries": plan.tries}
    wrong: list[str] = []
    alone = replace(plan, model="echo", workers=1, lease_s=_LEASE_S)
    with tempfile.TemporaryDirectory() as gates:
        env = {STEP_ENV: str(plan.step_s), GATES_ENV: gates}
        async with fleet_of(alone, worker_flags=("--max-batch-size", "1"), env=env) as fleet:
            cancelling = Cancelling(fleet, Path(gates))
            for phase in PHASES:
                if phase == "takeover":
                    await fleet.add_worker()
                tries = []
                for number in range(plan.tries):
                    way = WAYS[number % len(WAYS)]
                    tries.append(await cancelling.freed(phase, way))

                taken_s = sorted(freed.taken_s for freed in tries)
                token_s = sorted(freed.token_s for freed in tries)
                figures[f"{phase}: taken ms"] = _quantiles(taken_s)
                figures[f"{phase}: first token ms"] = _quantiles(token_s)

                # A slot should be free within a step, and the next job has its first token a
                # step later.
                taken_p99_s = _p99(taken_s)
                token_p99_s = _p99(token_s)
                is_taken_late = taken_p99_s > plan.step_s + SLACK_S
                is_token_late = token_p99_s > 2 * plan.step_s + SLACK_S
                if is_taken_late or is_token_late:
                    wrong.append(
                        f"{phase}: p99 {1000 * taken_p99_s:.0f} ms to the take, "
                        f"{1000 * token_p99_s:.0f} ms to the first token"
                    )
            await cancelling.close()
            await all_ended(fleet.redis, _COMES_BY_S)
            wrong += await violations(fleet.redis)
    return ScenarioResult("cancel", figures, wrong)


def _p99(ordered: Sequence[float]) -> float:
    return ordered[len(ordered) * 99 // 100]


def _quantiles(ordered: Sequence[float]) -> str:
    """Return the median and the 99th percentile of sorted seconds, as milliseconds in words."""
    p50_ms = 1000 * ordered[len(ordered) // 2]
    p99_ms = 1000 * _p99(ordered)
    return f"p50 {p50_ms:.1f} p99 {p99_ms:.1f}"
