"""The scenario of cancelling: how soon does the slot of a cancelled job go to another job?"""

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
_TIMEOUT_S = 30.0
_LONG = 256
_GATE = "shut"


@dataclass(frozen=True)
class Freed:
    """The times until the slot of a cancelled job was free, in seconds since the client cancelled.

    `taken_s` is the time until the next job was taken, and `token_s` that until its first token, a
    step later. For a cancelled job that had no slot both are the time until it left the queue.
    """

    taken_s: float
    token_s: float


@dataclass(frozen=True)
class Caller:
    """A client with an open stream."""

    request_id: str
    job_id: str
    response: httpx.Response


class Cancelling:
    """Callers who cancel their jobs, on a fleet of one front with only one free slot."""

    def __init__(self, fleet: Fleet, gates: Path) -> None:
        broker = Broker(fleet.redis)
        self._fleet = fleet
        self._gates = gates
        self._requests = Requests(broker)
        self._subscriptions = Subscriptions(fleet.redis)
        self._reader = LogReader(broker, self._subscriptions)
        self._http = httpx.AsyncClient(base_url=fleet.fronts[0].url, timeout=_TIMEOUT_S)
        (gates / _GATE).touch()

    async def close(self) -> None:
        await self._http.aclose()
        await self._subscriptions.close()

    async def freed(self, phase: Phase, way: Way) -> Freed:
        """Cancel a job in this phase while another one waits, and measure when its slot is free.

        Raises RuntimeError if the measurement proves nothing.
        """
        running = None
        if phase == "queued":
            # This job takes the only slot, so that the caller's job stays in the queue.
            running = await self._ask("decode")
        caller = await self._ask(phase)
        lost_worker = None
        if phase == "takeover":
            lost_worker = await self._lose_worker(caller)
        next_job = await self._submit()
        if await self._state(next_job) != "queued":
            raise RuntimeError(f"{phase}: a slot was free before the job was cancelled")

        started = time.monotonic()
        cancelling = asyncio.create_task(self._cancel(caller, way))
        if running is not None:
            ended_s = await self._seconds_to(caller.job_id, Cancelled, started)
            freed = Freed(ended_s, ended_s)
            await self._cancel(running, "DELETE")
            await self._seconds_to(next_job, Tokens, started)
        else:
            taken_s = await self._seconds_to(next_job, Started, started)
            token_s = await self._seconds_to(next_job, Tokens, started)
            freed = Freed(taken_s, token_s)
        await cancelling

        if lost_worker is not None:
            lost_worker.resume()
        await self._check(caller, phase)
        return freed

    async def _ask(self, phase: Phase) -> Caller:
        """Open a stream, and return it when its job is in the phase."""
        prompt = "on and on"
        if phase == "prefill":
            prompt = f"hold:{_GATE}:0"
        body = {"prompt": prompt, "max_tokens": _LONG, "stream": True}
        request = self._http.build_request("POST", "/v1/completions", json=body)
        response = await self._http.send(request, stream=True)
        if response.status_code != 200:
            raise RuntimeError(f"a stream was refused: {response.status_code}")
        request_id = response.headers["X-Job-Id"]
        [job_id] = (await self._requests.find(request_id, "public")).job_ids

        if phase == "prefill":
            await self._await_held(job_id)
        elif phase != "queued":
            await self._seconds_to(job_id, Tokens, since=0)
        return Caller(request_id, job_id, response)

    async def _await_held(self, job_id: str) -> None:
        """Wait until the engine holds the job at its gate, of which its log shows nothing."""

        async def is_held() -> bool:
            return any(self._gates.glob(f"{_GATE}.{job_id}:*"))

        if not await came_true(is_held, _TIMEOUT_S, every_s=0.005):
            raise RuntimeError(f"job {job_id} never had a slot")

    async def _submit(self) -> str:
        """Submit a job of one token without following it, and return its id."""
        body = {"prompt": "next", "max_tokens": 1}
        response = await self._http.post(
            "/v1/completions", json=body, headers={"Prefer": "respond-async"}
        )
        [job_id] = (await self._requests.find(response.json()["id"], "public")).job_ids
        return job_id

    async def _lose_worker(self, caller: Caller) -> FleetProcess:
        """Stop the worker that has the job, and return it when another one goes on with the job."""
        # On a busy machine the job may have lost a worker before, without our doing.
        name, epoch = await self._fields(caller.job_id, "worker", "epoch")
        [holder] = [member for member in self._fleet.workers if f"-{member.pid}-" in name]
        await holder.stop()
        is_taken_over = False
        async for _, event in self._reader.follow(caller.job_id):
            if isinstance(event, Started) and event.epoch > int(epoch):
                is_taken_over = True
            if is_taken_over and isinstance(event, Tokens):
                return holder
        raise RuntimeError(f"job {caller.job_id} was not taken over")

    async def _cancel(self, caller: Caller, way: Way) -> None:
        """Cancel the caller's request in one of the ways that clients have."""
        match way:
            case "DELETE":
                await self._http.delete(f"/v1/jobs/{caller.request_id}")
            case "POST":
                await self._http.post(f"/api/inference/cancel/{caller.request_id}")
            case "hang up":
                await caller.response.aclose()

    async def _seconds_to(self, job_id: str, kind: type[Event], since: float) -> float:
        """Wait for the first event of a kind in the job's log.

        Return the seconds since `since`, a time of the monotonic clock.
        """
        async with asyncio.timeout(_TIMEOUT_S):
            async for _, event in self._reader.follow(job_id):
                if isinstance(event, kind):
                    return time.monotonic() - since
        raise RuntimeError(f"job {job_id} ended without {kind.__name__}")

    async def _check(self, caller: Caller, phase: Phase) -> None:
        """Close the caller's stream, and check the log of its job.

        Raises RuntimeError if the log does not end with the cancellation, or if a job that never
        had a slot has other events in its log.
        """
        await caller.response.aclose()
        events = [event for _, event in await self._reader.read(caller.job_id)]
        is_right = isinstance(events[-1], Cancelled)
        if phase == "queued" and len(events) != 1:
            is_right = False
        if not is_right:
            raise RuntimeError(f"{phase}: the log of the cancelled job is {events}")

    async def _state(self, job_id: str) -> str:
        [state] = await self._fields(job_id, "state")
        return state

    async def _fields(self, job_id: str, *names: str) -> list[str]:
        values = await self._fleet.redis.hmget(keys.job(job_id), list(names))  # type: ignore[misc]
        return [value.decode() for value in values]


async def cancel(plan: ExperimentPlan) -> ScenarioResult:
    """Cancel `tries` jobs in each phase, in all ways in turn, on a fleet with one slot."""
    figures: dict[str, Any] = {"step ms": round(1000 * plan.step_s), "tries": plan.tries}
    wrong: list[str] = []
    one_worker = replace(plan, model="echo", workers=1, lease_s=_LEASE_S)
    with tempfile.TemporaryDirectory() as gates:
        env = {STEP_ENV: str(plan.step_s), GATES_ENV: gates}
        async with fleet_of(one_worker, worker_flags=("--max-batch-size", "1"), env=env) as fleet:
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
                wrong += _lateness(phase, _p99(taken_s), _p99(token_s), step_s=plan.step_s)
            await cancelling.close()
            await all_ended(fleet.redis, _TIMEOUT_S)
            wrong += await violations(fleet.redis)
    return ScenarioResult("cancel", figures, wrong)


def _lateness(phase: Phase, taken_s: float, token_s: float, *, step_s: float) -> list[str]:
    """Return what is too late in a phase.

    A slot should be free within a step, and the next job has its first token a step later.
    """
    is_taken_late = taken_s > step_s + SLACK_S
    is_token_late = token_s > 2 * step_s + SLACK_S
    if not is_taken_late and not is_token_late:
        return []
    return [
        f"{phase}: p99 {1000 * taken_s:.0f} ms to the take, "
        f"{1000 * token_s:.0f} ms to the first token"
    ]


def _p99(ordered: Sequence[float]) -> float:
    return ordered[len(ordered) * 99 // 100]


def _quantiles(ordered: Sequence[float]) -> str:
    """Return the median and the 99th percentile of sorted seconds, as text in milliseconds."""
    p50_ms = 1000 * ordered[len(ordered) // 2]
    p99_ms = 1000 * _p99(ordered)
    return f"p50 {p50_ms:.1f} p99 {p99_ms:.1f}"
