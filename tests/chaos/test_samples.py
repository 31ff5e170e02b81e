"""Workers die with samples of puzzles in flight, and each request gets the answer that it gets
undisturbed.

The puzzle is a Sudoku of one cell: a random network solves it with some noises, and not with others.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx

from scripts.chaos.invariants import Trace, traces, violations
from scripts.chaos.processes import FleetProcess, fleet
from shared.messages import Solve, Started
from tests.fixtures.chaos.stage import until
from tests.fixtures.worker.puzzle_nets import Net, random_weights, write_checkpoint

NET = Net(
    "trm",
    vocab=3,
    cells=1,
    hidden=128,
    intermediate=128,
    heads=4,
    l_layers=2,
    h_cycles=3,
    l_cycles=6,
    halt_max_steps=16,
    puzzle_ndim=0,
)
SAMPLES = 6
_TIMEOUT_S = 300.0
_LEASE_S = 6.0
"""The lease of jobs, longer than workers are stopped: a job counts each lease that ends as a death of
its worker, and is given up after three."""


def bodies() -> list[dict[str, Any]]:
    """Return requests of all rules, each with a noise of its own."""
    asked: list[dict[str, Any]] = []
    for number in range(9):
        select = ("verified", "mode", "best_q")[number % 3]
        asked.append(
            {
                "grids": [[[0]], [[1]]],
                "samples": SAMPLES,
                "noise": 2.0,
                "noise_at": "all",
                "select": select,
                "seed": number,
            }
        )
    return asked


async def ask(client: httpx.AsyncClient, body: dict[str, Any], name: str) -> Any:
    """Return the answer, of which every other one is polled for."""
    headers = {"X-Request-Id": name}
    is_polled = body["seed"] % 2 == 1
    if is_polled:
        headers["Prefer"] = "respond-async"
    response = await client.post("/v1/puzzles/solve", json=body, headers=headers)
    assert response.is_success, response.text
    answer = response.json()
    if is_polled:
        answer = await polled(client, answer["id"])
    if body["select"] == "verified":
        # How many were computed before they became needless is a matter of time.
        for solution in answer["solutions"]:
            del solution["samples_run"], solution["votes"]
        del answer["usage"]
    return answer


async def polled(client: httpx.AsyncClient, request_id: str) -> Any:
    body: dict[str, Any] = {}

    async def has_ended() -> bool:
        response = await client.get(f"/v1/jobs/{request_id}")
        body.update(response.json())
        return body["state"] not in ("queued", "running")

    await until(has_ended, "the request has ended")
    assert body["state"] == "done", body
    return body["result"]


def write_model(folder: Path) -> None:
    weights = random_weights(NET)
    # The wrong digits are as likely as the right one.
    write_checkpoint(folder, NET, weights=weights, filename="step_1", data_path=["data/sudoku"])
    (folder / "dataset.json").write_text(json.dumps({"vocab_size": 3, "seq_len": 1}))


def is_sample(trace: Trace) -> bool:
    task = trace.job.task
    return isinstance(task, Solve) and task.sample is not None and task.sample.number > 0


async def test_the_same_answers_whoever_dies(tmp_path: Path) -> None:
    """Two of three workers are killed, each while it computes samples of several puzzles.

    No sample is lost or computed with other noise, and none stays parked.
    """
    write_model(tmp_path / "cell")
    flags = ["--lease-s", str(_LEASE_S), "--threads", "1", "--device", "cpu"]
    flags += ["--model", f"cell={tmp_path / 'cell'}", "--max-batch-size", "2"]
    async with fleet(3, 1, worker_flags=flags) as running:
        async with httpx.AsyncClient(base_url=running.fronts[0].url, timeout=_TIMEOUT_S) as client:
            asked = bodies()
            alone = []
            for number, body in enumerate(asked):
                alone.append(await ask(client, body, f"alone-{number}"))
            check_variety(alone)

            asking = []
            for number, body in enumerate(asked):
                asking.append(asyncio.create_task(ask(client, body, f"again-{number}")))
            workers = list(running.workers)
            while len(workers) > 1:
                await kill_with_samples(running.redis, workers)
            again = await asyncio.gather(*asking)

        assert again == alone
        hit = [trace for trace in await jobs_again(running.redis) if trace.was_hit]
        assert any(is_sample(trace) for trace in hit), "the faults hit no sample"
        assert await violations(running.redis) == []


async def kill_with_samples(redis: Any, workers: list[FleetProcess]) -> None:
    """Kill the first worker while it holds samples, and take it out of the list.

    The others are stopped meanwhile, so that they do not compute all of them before. So is the
    worker while it is looked at.
    """
    victim = workers.pop(0)
    for other in workers:
        await other.stop()

    async def holds_samples() -> bool:
        await victim.stop()
        for trace in await jobs_again(redis):
            starts = [event for event in trace.events if isinstance(event, Started)]
            if trace.state == "running" and is_sample(trace) and starts:
                last = starts[-1]
                if last.epoch == trace.epoch and f"-{victim.pid}-" in last.worker:
                    return True
        victim.resume()
        return False

    await until(holds_samples, "the worker holds samples")
    await victim.kill()
    for other in workers:
        other.resume()


async def jobs_again(redis: Any) -> list[Trace]:
    found = []
    for trace in await traces(redis):
        if trace.job.request_id.startswith("again"):
            found.append(trace)
    return found


def check_variety(answers: list[Any]) -> None:
    """Assert that some puzzles are solved at once, some by a later sample, and some never."""
    verified = []
    for answer in answers[::3]:
        verified += answer["solutions"]
    samples = {solution["sample"] for solution in verified if solution["valid"]}
    assert 0 in samples, verified
    assert len(samples) > 1, verified
    for solution in verified:
        assert (solution["grid"] is None) == (not solution["valid"])
