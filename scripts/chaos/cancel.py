"""The row of cancelling: how long until the place of a job that is called off is another's."""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Literal

import httpx

from scripts.chaos.criteria import ExperimentPlan, Row
from scripts.chaos.invariants import all_ended, violations
from scripts.chaos.polling import came_true
from scripts.chaos.processes import Fleet, FleetProcess
from scripts.chaos.rigged import GATES_ENV, STEP_ENV
from scripts.chaos.scenarios import fleet_of
from shared import keys
from shared.broker import Broker
from shared.log import LogReader
from shared.messages import Cancelled, Event, Started, Tokens
from shared.requests import Requests
from shared.subscriptions import Subscriptions

Phase = Literal["queued", "prefill", "decode", "takeover"]
Way = Literal["DELETE", "POST", "hang up"]
PHASES: tuple[Phase, ...] = ("queued", "prefill", "decode", "takeover")
WAYS: tuple[Way, ...] = ("DELETE", "POST", "hang up")

SLACK_S = 0.05
_LEASE_S = 1.0
_COMES_BY_S = 30.0
_LONG, _GATE = 256, "shut"


@dataclass(frozen=True)
class Freed:
    """Seconds from the client's call until the next job was taken, and until it said its first
    token, a step later.

    Of a job that waits in line: until it had left the line, twice.
    """

    taken_s: float
    token_s: float


@dataclass(frozen=True)
class Caller:
    """Somebody with an open stream."""

    request_id: str
    job_id: str
    reply: httpx.Response


class Cancelling:
    """A fleet in which one place is left, one front, and callers who come to call off what they
    asked for."""

    def __init__(self, made: Fleet, gates: Path) -> None:
        self._fleet, self._gates = made, gates
        self._requests = Requests(Broker(made.redis))
        self._subscriptions = Subscriptions(made.redis)
        self._reader = LogReader(Broker(made.redis), self._subscriptions)
        self._http = httpx.AsyncClient(base_url=made.fronts[0].url, timeout=_COMES_BY_S)
        (gates / _GATE).touch()

    async def close(self) -> None:
        await self._http.aclose()
        await self._subscriptions.close()

    async def freed(self, phase: Phase, way: Way) -> Freed:
        """A job is called off in this phase, this way, while another waits. RuntimeError if that
        proved nothing."""
        running = await self._ask("decode") if phase == "queued" else None
        caller = await self._ask(phase)
        lost = await self._lose_worker(caller) if phase == "takeover" else None
        heir = await self._submit()
        if await self._state(heir) != "queued":
            raise RuntimeError(f"{phase}: a place was free before any was given up")
        begun = time.monotonic()
        calling = asyncio.create_task(self._call_off(caller, way))
        if running is not None:
            ended_s = await self._seconds_to(caller.job_id, Cancelled, begun)
            freed = Freed(ended_s, ended_s)
            await self._call_off(running, "DELETE")
            await self._seconds_to(heir, Tokens, begun)
        else:
            freed = Freed(
                await self._seconds_to(heir, Started, begun),
                await self._seconds_to(heir, Tokens, begun),
            )
        await calling
        if lost is not None:
            lost.resume()
        await self._check(caller, phase)
        return freed

    async def _ask(self, phase: Phase) -> Caller:
        """A stream whose job has come to the phase."""
        prompt = f"hold:{_GATE}:0" if phase == "prefill" else "on and on"
        body = {"prompt": prompt, "max_tokens": _LONG, "stream": True}
        reply = await self._http.send(
            self._http.build_request("POST", "/v1/completions", json=body), stream=True
        )
        if reply.status_code != 200:
            raise RuntimeError(f"a stream was refused: {reply.status_code}")
        request_id = reply.headers["X-Job-Id"]
        [job_id] = (await self._requests.find(request_id, "public")).job_ids
        if phase == "prefill":
            await self._held(job_id)
        elif phase != "queued":
            await self._seconds_to(job_id, Tokens, 0)
        return Caller(request_id, job_id, reply)

    async def _held(self, job_id: str) -> None:
        """Return when the engine has the job, and says nothing of it."""

        async def is_held() -> bool:
            return any(self._gates.glob(f"{_GATE}.{job_id}:*"))

        if not await came_true(is_held, _COMES_BY_S, every_s=0.005):
            raise RuntimeError(f"job {job_id} never came to its place")

    async def _submit(self) -> str:
        """A job of one token that nobody follows; its id."""
        body = {"prompt": "next", "max_tokens": 1}
        reply = await self._http.post(
            "/v1/completions", json=body, headers={"Prefer": "respond-async"}
        )
        [job_id] = (await self._requests.find(reply.json()["id"], "public")).job_ids
        return job_id

    async def _lose_worker(self, caller: Caller) -> FleetProcess:
        """Stop the worker that has the job; returns when another has got on with it."""
        [name] = await self._fields(caller.job_id, "worker")
        [holder] = [member for member in self._fleet.workers if f"-{member.pid}-" in name]
        await holder.stop()
        is_taken_over = False
        async for _, event in self._reader.follow(caller.job_id):
            is_taken_over |= isinstance(event, Started) and event.epoch > 1
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
        """Until the job's log has its first event of a kind."""
        async with asyncio.timeout(_COMES_BY_S):
            async for _, event in self._reader.follow(job_id):
                if isinstance(event, kind):
                    return time.monotonic() - since
        raise RuntimeError(f"job {job_id} ended without {kind.__name__}")

    async def _check(self, caller: Caller, phase: Phase) -> None:
        """Its log ends with that, and what never had a place never began. Leave no stream open."""
        await caller.reply.aclose()
        events = [event for _, event in await self._reader.read(caller.job_id)]
        if not isinstance(events[-1], Cancelled) or (phase == "queued" and len(events) != 1):
            raise RuntimeError(f"{phase}: the log of what was called off is {events}")

    async def _state(self, job_id: str) -> str:
        [state] = await self._fields(job_id, "state")
        return state

    async def _fields(self, job_id: str, *names: str) -> list[str]:
        values = await self._fleet.redis.hmget(keys.job(job_id), list(names))  # type: ignore[misc]
        return [value.decode() for value in values]


async def cancel(plan: ExperimentPlan) -> Row:
    """`tries` in each phase, each of the ways in turn."""
    wrong: list[str] = []
    figures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as gates:
        rig, flags = {STEP_ENV: str(plan.step_s), GATES_ENV: gates}, ("--max-batch-size", "1")
        alone = replace(plan, model="echo", workers=1, lease_s=_LEASE_S)
        async with fleet_of(alone, worker_flags=flags, env=rig) as made:
            cancelling = Cancelling(made, Path(gates))
            for phase in PHASES:
                if phase == "takeover":
                    await made.add_worker()
                tries = [
                    await cancelling.freed(phase, WAYS[number % len(WAYS)])
                    for number in range(plan.tries)
                ]
                figures[f"{phase}: taken ms"] = _told([item.taken_s for item in tries])
                figures[f"{phase}: first token ms"] = _told([item.token_s for item in tries])
                wrong += _late(phase, tries, plan.step_s)
            await cancelling.close()
            await all_ended(made.redis, _COMES_BY_S)
            wrong += await violations(made.redis)
    return Row(
        "cancel", {"step ms": round(1000 * plan.step_s), "tries": plan.tries, **figures}, wrong
    )


def _late(phase: Phase, tries: Sequence[Freed], step_s: float) -> list[str]:
    """A place is to be free within a step, and the next job says its first token a step later."""
    taken, token = (
        sorted(times)[len(tries) * 99 // 100] for times in zip(*map(astuple, tries), strict=True)
    )
    is_late = taken > step_s + SLACK_S or token > 2 * step_s + SLACK_S
    return [
        f"{phase}: p99 {1000 * taken:.0f} ms to the take, {1000 * token:.0f} ms to the first token"
    ] * is_late


def _told(times: Sequence[float]) -> str:
    ordered = sorted(times)
    return (
        f"p50 {1000 * ordered[len(times) // 2]:.1f} p99 "
        f"{1000 * ordered[len(times) * 99 // 100]:.1f}"
    )
