"""A worker and a front are killed amid the requests of an experiment, and each job counts once."""

from pathlib import Path

import httpx

from scripts.chaos.invariants import traces, violations
from scripts.chaos.processes import FleetProcess, fleet
from scripts.chaos.rigged import GATES_ENV
from shared.queue.broker import Broker
from shared.queue.experiment_log import ExperimentLog
from shared.queue.janitor import Janitor
from tests.fixtures.chaos.stage import LEASE_S, until

NUM_REQUESTS = 12
_TIMEOUT_S = 60.0


async def submit(front: FleetProcess, prompt: str, key: str) -> httpx.Response:
    """Ask without waiting for the answer."""
    body = {"task": "completions", "model": "split", "prompt": prompt, "max_tokens": 20}
    async with httpx.AsyncClient(base_url=front.url, timeout=_TIMEOUT_S) as client:
        answer = await client.post("/v1/jobs", json=body, headers={"X-AB-Key": key})
    assert answer.status_code == 202, answer.text
    return answer


async def test_each_job_counts_once_whoever_dies(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    worker_flags = ["--lease-s", str(LEASE_S), "--model", "left=echo", "--model", "right=echo"]
    split = '{"split": {"left": 1, "right": 1}}'
    async with fleet(
        2,
        2,
        worker="scripts.chaos.worker",
        worker_flags=worker_flags,
        front_flags=["--ab", split],
        env={GATES_ENV: str(tmp_path)},
    ) as running:
        victim, rescuer = running.workers
        await rescuer.stop()
        first, second = running.fronts
        arm_of = {}
        for number in range(NUM_REQUESTS):
            front = (first, second)[number % 2]
            # Held behind its eighth token.
            answer = await submit(front, f"hold:gate:8 {number}", f"user-{number}")
            arm_of[answer.headers["X-Job-Id"]] = answer.headers["X-AB-Arm"]
        assert set(arm_of.values()) == {"left", "right"}

        async def are_held() -> bool:
            found = await traces(running.redis)
            return sum(trace.state == "running" and trace.text != "" for trace in found) >= 4

        await until(are_held, "jobs have begun")
        log = ExperimentLog(Broker(running.redis))
        assert await log.outcomes("split") == []

        await victim.kill()
        await first.kill()
        rescuer.resume()
        gate.unlink()

        async def have_ended() -> bool:
            return {trace.state for trace in await traces(running.redis)} == {"done"}

        await until(have_ended, "all jobs have ended")
        for sweep in Janitor(Broker(running.redis), grace_s=0).sweeps.values():
            await sweep()
        outcomes = await log.outcomes("split")
        assert len(outcomes) == NUM_REQUESTS
        assert {outcome.request_id: outcome.arm for outcome in outcomes} == arm_of
        found = await traces(running.redis)
        assert {outcome.job_id for outcome in outcomes} == {trace.job.id for trace in found}
        assert any(trace.was_hit for trace in found), "the fault hit no job"
        assert {outcome.state for outcome in outcomes} == {"done"}
        assert await violations(running.redis) == []

        # The other front takes feedback on a request of the one that is gone.
        [request_id, *_] = arm_of
        async with httpx.AsyncClient(base_url=second.url, timeout=_TIMEOUT_S) as client:
            noted = await client.post("/v1/feedback", json={"id": request_id, "score": 1})
        assert noted.json()["arm"] == arm_of[request_id]
