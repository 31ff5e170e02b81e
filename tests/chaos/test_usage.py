"""Usage and budgets when processes are killed: the same sums as of a run that nobody disturbs."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx

from scripts.chaos.faults import restart_redis
from scripts.chaos.invariants import all_ended, traces, violations
from scripts.chaos.processes import Fleet, fleet
from scripts.chaos.rigged import GATES_ENV
from shared.access import Budget, Grant, Keyring
from shared.queue.broker import Broker
from shared.queue.janitor import Janitor
from shared.queue.usage_ledger import Usage, UsageLedger, grouped
from tests.fixtures.chaos.stage import LEASE_S, until

NUM_REQUESTS = 12
MORE_REQUESTS = 8
BUDGET = Budget(100_000, "month")
_TIMEOUT_S = 60.0
_ENDED_S = 90.0
_LONG_LEASE_S = 60.0
"""The lease where nobody dies: a short one lapses on a busy machine, and a job is hit."""
Disturb = Callable[[Fleet], Awaitable[None]]


async def submit(running: Fleet, number: int, key: str) -> None:
    """Ask without waiting for the answer. Where a front does not answer, ask the others too."""
    body: dict[str, Any] = {
        "task": "completions",
        "model": ("left", "right")[number % 2],
        # Those of `gate` are held behind their eighth token.
        "prompt": [f"hold:gate:8 {number}", f"the second {number}"],
        "max_tokens": 12 + number,
        "n": 1 + number % 3,
        "seed": number,
    }
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": f"request-{number}"}
    for attempt in range(500):
        front = running.fronts[(number + attempt) % len(running.fronts)]
        try:
            async with httpx.AsyncClient(base_url=front.url, timeout=_TIMEOUT_S) as client:
                answer = await client.post("/v1/jobs", json=body, headers=headers)
        except httpx.HTTPError:
            pass
        else:
            if answer.status_code in (200, 202):
                return
            assert answer.status_code == 503, answer.text
        await asyncio.sleep(0.05)
    raise AssertionError("no front has taken the request")


def gate_in(folder: Path) -> Path:
    """Make the folder with a gate that is shut."""
    folder.mkdir()
    gate = folder / "gate"
    gate.touch()
    return gate


async def sums(folder: Path, disturb: Disturb, lease_s: float) -> dict[str, Usage]:
    """Return the usage of each model, with some requests before the disturbance and some after."""
    gate = gate_in(folder)
    async with fleet(
        2,
        2,
        worker="scripts.chaos.worker",
        worker_flags=["--lease-s", str(lease_s), "--model", "left=echo", "--model", "right=echo"],
        env={GATES_ENV: str(folder)},
    ) as running:
        broker = Broker(running.redis)
        key, key_id, _ = await Keyring(broker).create(Grant("ann", "ann", budget=BUDGET))
        await asyncio.gather(*[submit(running, number, key) for number in range(NUM_REQUESTS)])

        async def are_held() -> bool:
            found = await traces(running.redis)
            return sum(trace.state == "running" and trace.text != "" for trace in found) >= 4

        await until(are_held, "jobs have begun")
        later = range(NUM_REQUESTS, NUM_REQUESTS + MORE_REQUESTS)
        submitting = [asyncio.create_task(submit(running, number, key)) for number in later]
        await disturb(running)
        await asyncio.gather(*submitting)
        gate.unlink()
        assert await all_ended(running.redis, _ENDED_S)
        for sweep in Janitor(broker, grace_s=0).sweeps.values():
            await sweep()

        found = await traces(running.redis)
        assert {trace.state for trace in found} == {"done"}
        assert any(trace.was_hit for trace in found) is (disturb is not leave_alone)
        assert await violations(running.redis) == []
        ledger = UsageLedger(broker)
        today = await ledger.today()
        rows = await ledger.read(today - timedelta(days=1), today, tenant="ann", key=key_id)
        by_model = {group.values[0]: group.usage for group in grouped(rows, ["model"])}
        standing = await ledger.standing(key_id, BUDGET)

    num_tokens = 0
    for usage in by_model.values():
        num_tokens += usage.prompt_tokens + usage.completion_tokens
    assert (standing.used, standing.reserved) == (num_tokens, 0)
    return by_model


async def leave_alone(running: Fleet) -> None:
    """Disturb nothing."""


async def kill_all_kinds(running: Fleet) -> None:
    """Kill a worker that holds jobs, a front, and Redis, which comes back with its file."""
    worker = running.workers[0]
    await worker.kill()
    running.leave(worker)
    front = running.fronts[0]
    await front.kill()
    running.leave(front)
    await restart_redis(running)


async def test_the_sums_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    disturbed = await sums(tmp_path / "killed", kill_all_kinds, LEASE_S)
    undisturbed = await sums(tmp_path / "quiet", leave_alone, _LONG_LEASE_S)

    def without_time(by_model: dict[str, Usage]) -> dict[str, dict[str, int]]:
        return {model: vars(usage) | {"compute_ms": 0} for model, usage in by_model.items()}

    assert without_time(disturbed) == without_time(undisturbed)
    assert {model: usage.requests for model, usage in undisturbed.items()} == {
        "left": 10,
        "right": 10,
    }
    assert sum(usage.jobs for usage in undisturbed.values()) == 2 * 20
