"""Workers die with augmentations of ARC tasks in flight, and each request gets the same vote."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from scripts.chaos.invariants import Trace, traces, violations
from scripts.chaos.processes import fleet
from shared.messages import Solve
from shared.tasks.augmentations import attempts_of, augmented
from tests.fixtures.chaos.stage import until
from tests.fixtures.worker.arc_nets import ALIKE, NUM_AUGMENTED, TASK, arc_net, write_arc
from tests.fixtures.worker.stepping import solve_all
from worker.engine.runner import RunnerOptions
from worker.runners.registry import load_runner

COUNT = NUM_AUGMENTED + 1
GRIDS = [((1, 2, 3), (4, 5, 6)), ((7, 0), (0, 7))]
_TIMEOUT_S = 300.0
_LEASE_S = 6.0
"""The lease of jobs, longer than a step of the network takes on a busy machine: a job counts each
lease that ends as a death of its worker, and is given up after three."""


def body_of(task_id: str) -> dict[str, Any]:
    """Return a request whose outputs are copies of its inputs, as the network's answers are."""
    first, second = [[list(row) for row in grid] for grid in GRIDS]
    return {
        "task_id": task_id,
        "test": [{"input": first}, {"input": second, "output": second}],
        "train": [{"input": second, "output": second}],
        "check_demonstrations": True,
        "augmentations": COUNT + 2,
        "attempts": 10,
    }


async def ask(client: httpx.AsyncClient, task_id: str, name: str) -> Any:
    headers = {"X-Request-Id": name}
    response = await client.post("/v1/puzzles/arc", json=body_of(task_id), headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


def expected_attempts(path: Path, task_id: str) -> list[list[dict[str, Any]]]:
    """Return the attempts at each input by a runner in this process."""
    runner = load_runner("auto", RunnerOptions(path=str(path), max_batch=2))
    expected = []
    for grid in GRIDS:
        bodies = []
        for attempt in attempts_of(
            solve_all(runner, augmented(Solve(grid), task_id, COUNT)), most=10
        ):
            bodies.append(
                {
                    "grid": [list(row) for row in attempt.grid],
                    "votes": attempt.num_votes,
                    "mean_q": pytest.approx(attempt.mean_confidence, abs=1e-5),
                }
            )
        expected.append(bodies)
    return expected


async def test_the_same_vote_whoever_dies(tmp_path: Path) -> None:
    """Two of three workers are killed, each while it computes augmentations.

    Each augmentation that the task has votes once, and those that it does not have never do.
    """
    path = tmp_path / "arc"
    write_arc(path, "_", arc_net(halt_max_steps=16))
    flags = ["--lease-s", str(_LEASE_S), "--threads", "1", "--device", "cpu"]
    flags += ["--model", f"arc={path}", "--max-batch-size", "2"]
    async with fleet(3, 1, worker_flags=flags) as running:
        async with httpx.AsyncClient(base_url=running.fronts[0].url, timeout=_TIMEOUT_S) as client:
            asking = []
            for task_id in (TASK, ALIKE):
                asking.append(asyncio.create_task(ask(client, task_id, task_id)))
            first, second, _ = running.workers
            for worker in (first, second):
                await until(lambda: has_augmentations(running.redis), "augmentations are computed")
                await worker.kill()
            answers = await asyncio.gather(*asking)

            refused = await client.post("/v1/puzzles/arc", json=body_of("007bbfb"))
            assert (refused.status_code, refused.json()["error"]["field"]) == (400, "task_id")

        for task_id, answer in zip((TASK, ALIKE), answers, strict=True):
            check(answer, expected_attempts(path, task_id))
        hit = [trace for trace in await traces(running.redis) if trace.was_hit]
        assert any(is_augmented(trace) for trace in hit), "the faults hit no augmentation"
        assert await violations(running.redis) == []


async def has_augmentations(redis: Redis) -> bool:
    held = 0
    for trace in await traces(redis):
        held += trace.state == "running" and is_augmented(trace)
    return held >= 2


def is_augmented(trace: Trace) -> bool:
    task = trace.job.task
    return isinstance(task, Solve) and task.augmentation is not None


def check(answer: Any, expected: Sequence[Any]) -> None:
    assert [one["attempts"] for one in answer["answers"]] == expected
    assert answer["num_augmentations"] == COUNT
    assert [one["right"] for one in answer["answers"]] == [None, True]
    assert answer["valid"] is True
    assert answer["usage"]["prompt_tokens"] == 3 * COUNT * 900
