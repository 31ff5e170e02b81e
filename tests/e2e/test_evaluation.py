"""An evaluation by the background role, which is killed in the middle of it."""

import signal
from pathlib import Path
from typing import Any

from api.evaluation.sets import read_sets
from shared.fleet.presence import Presence
from shared.queue.broker import connect
from tests.e2e.test_batches import jobs_role
from tests.fixtures.api.fronts import in_memory
from tests.fixtures.e2e.fleet import start_worker
from tests.fixtures.polling import until
from tests.fixtures.redis_server import RedisServer, patient

# Each of their items is one job.
TASKS = ["mathematics", "text-classification", "text-generation"]


def without_times(report: dict[str, Any]) -> list[Any]:
    """Return what a report says of answers."""
    told = []
    for result in report["results"]:
        items = []
        for item in result["items"]:
            items.append(
                (item["id"], item["score"], item["tokens"], item["answered"], item["error"])
            )
        told.append((result["task"], result["set_digest"], result["accuracy"], items))
    return told


async def test_a_kill_changes_nothing_and_asks_nothing_twice(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    url = own_redis.url
    redis = patient(connect(url))
    sets = read_sets()
    total = sum(1 + len(sets[task].items) for task in TASKS)

    async def num_jobs() -> int:
        """Return how many jobs have ended in the worker, by its announcement."""
        [worker] = (await Presence(redis).fleet()).workers
        return sum(load.jobs for load in worker.loads)

    worker = await start_worker(url, redis)
    try:
        async with in_memory(redis, admin_keys="boss:key", require_key="no") as client:
            client.headers["Authorization"] = "Bearer key"

            async def begun() -> str:
                answer = await client.post("/api/evaluation/run", json={"tasks": TASKS})
                assert answer.status_code == 202, answer.text
                return str(answer.json()["id"])

            async def run(run_id: str) -> dict[str, Any]:
                body: dict[str, Any] = (await client.get(f"/api/evaluation/runs/{run_id}")).json()
                return body

            async def has_ended(run_id: str) -> bool:
                return (await run(run_id))["state"] in ("done", "failed")

            async with jobs_role(url, tmp_path) as jobs:
                calm = await begun()
                await until(lambda: has_ended(calm), "the first evaluation has ended")

                async def is_amid() -> bool:
                    return bool((await run(hit))["done"] > 0)

                async def is_over() -> bool:
                    return await has_ended(hit)

                before, num_runs = calm, 2
                hit = await begun()
                await until(is_amid, "the second evaluation is under way")
                jobs.send_signal(signal.SIGSTOP)
                # On a busy machine it may have come to its end by then.
                while (await run(hit))["done"] == total:
                    jobs.send_signal(signal.SIGCONT)
                    await until(is_over, "the evaluation has ended")
                    before, num_runs = hit, num_runs + 1
                    hit = await begun()
                    await until(is_amid, "another evaluation is under way")
                    jobs.send_signal(signal.SIGSTOP)
                jobs.send_signal(signal.SIGKILL)
                await jobs.wait()
            left = await run(hit)
            assert left["state"] == "running"
            assert 0 < left["done"] < total
            async with jobs_role(url, tmp_path):
                await until(lambda: has_ended(hit), "the second evaluation has ended")

            first = (await run(calm))["report"]
            second = (await run(hit))["report"]
            assert without_times(second) == without_times(first)
            assert [result["task"] for result in second["results"]] == TASKS
            assert {result["baseline"] for result in second["results"]} == {before}
            assert (await client.get("/api/evaluation/latest")).json()["id"] == hit
            # Each announcement is up to a second old.
            await until(lambda: _is(num_jobs, num_runs * total), "all jobs are told of")
    finally:
        await worker.end()
        await redis.aclose()


async def _is(count: Any, expected: int) -> bool:
    found = await count()
    assert found <= expected, "something was asked twice"
    return bool(found == expected)
