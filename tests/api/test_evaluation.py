"""`/api/evaluation`: the background role asks each item once, whatever becomes of its processes."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.evaluation import evaluator as evaluator_module
from api.evaluation.evaluator import Evaluator, open_evaluator
from api.evaluation.sets import EvalSet, read_sets
from shared.queue import evaluation_runs, keys
from shared.queue.broker import Broker
from shared.queue.evaluation_runs import EvaluationRuns, RunSpec
from shared.settings.settings import Settings
from shared.telemetry.metrics import JanitorMetrics
from tests.fixtures.api.changed_worker import ChangedWorker, words_set
from tests.fixtures.api.fronts import in_memory
from tests.fixtures.polling import until

BOSS = {"Authorization": "Bearer admin-key"}
PATH = "/api/evaluation"
TURN_S = 60.0


@pytest.fixture
async def worker(redis_url: str) -> AsyncIterator[ChangedWorker]:
    async with ChangedWorker(redis_url) as worker:
        yield worker


@pytest.fixture
async def client(redis: Redis) -> AsyncIterator[httpx.AsyncClient]:
    async with in_memory(redis, admin_keys="boss:admin-key", require_key="no") as client:
        client.headers.update(BOSS)
        yield client


@asynccontextmanager
async def evaluating(
    redis: Redis, *sets: EvalSet, metrics: JanitorMetrics | None = None
) -> AsyncIterator[Evaluator]:
    """Run the part of a process that asks, with these sets or those that ship."""
    metrics = metrics or JanitorMetrics()
    with pytest.MonkeyPatch.context() as patch:
        if sets:
            patch.setattr(evaluator_module, "read_sets", lambda: {one.task: one for one in sets})
        async with open_evaluator(Settings(), Broker(redis), metrics.evaluations) as evaluator:
            yield evaluator


async def queued(redis: Redis, tasks: Sequence[str] = ("words",), **more: Any) -> str:
    runs = EvaluationRuns(Broker(redis))
    spec = RunSpec(tasks=tuple(tasks), is_accepted=more.pop("is_accepted", False))
    return (await runs.create(spec, window_s=more.pop("window_s", 60.0), **more)).id


async def run_of(client: httpx.AsyncClient, run_id: str) -> dict[str, Any]:
    answer = await client.get(f"{PATH}/runs/{run_id}")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def report_of(client: httpx.AsyncClient, run_id: str) -> dict[str, Any]:
    run = await run_of(client, run_id)
    assert run["state"] == "done", run
    report: dict[str, Any] = run["report"]
    return report


async def test_every_set_that_ships_is_asked_through_the_endpoint_table(
    redis: Redis, worker: ChangedWorker, client: httpx.AsyncClient
) -> None:
    """The bodies of all items are accepted, and each item is asked once."""
    answer = await client.post(f"{PATH}/run", json={})
    assert answer.status_code == 202
    run = answer.json()
    assert answer.headers["Location"] == f"{PATH}/runs/{run['id']}"
    assert (run["state"], run["report"]) == ("queued", None)
    [listed] = (await client.get(f"{PATH}/runs")).json()["runs"]
    assert (listed["id"], listed["state"], listed["tasks"]) == (run["id"], "queued", None)
    assert (await client.get(f"{PATH}/latest")).status_code == 404

    async with evaluating(redis) as evaluator:
        assert await evaluator.advance_one(TURN_S)
        assert not await evaluator.advance_one(TURN_S)

    report = await report_of(client, run["id"])
    sets = read_sets()
    assert [result["task"] for result in report["results"]] == list(sets)
    assert report["skipped"] == []
    for result in report["results"]:
        errors = [item["error"] for item in result["items"]]
        assert errors == [None] * len(sets[result["task"]].items), result["task"]
        assert result["model"]["id"] == "echo"
        assert result["latency_ms"]["p50"] <= result["latency_ms"]["p95"]
        assert (result["first_token_ms"] is not None) == sets[result["task"]].is_streamed
    # An echo's grid is the puzzle itself, and it says no more than it was told.
    by_task = {result["task"]: result["accuracy"]["value"] for result in report["results"]}
    assert by_task["sudoku-9x9"] == by_task["mathematics"] == 0

    latest = (await client.get(f"{PATH}/latest")).json()
    assert latest["report"] == report
    assert latest["done"] == latest["total"] == sum(1 + len(one.items) for one in sets.values())


async def test_a_run_goes_on_where_another_process_has_left_it(
    redis: Redis, worker: ChangedWorker, client: httpx.AsyncClient
) -> None:
    run_id = await queued(redis)
    one = words_set()
    async with evaluating(redis, one) as first, evaluating(redis, one) as second:
        worker.held = 3
        turn = asyncio.create_task(first.advance_one(TURN_S))
        await until(lambda: len(worker.jobs) == 3, "the third request is at work")
        assert not await second.advance_one(TURN_S), "one process at a time"
        turn.cancel()
        await asyncio.gather(turn, return_exceptions=True)

        run = await run_of(client, run_id)
        assert (run["state"], run["done"], run["total"]) == ("running", 2, 6)
        worker.release.set()
        assert await second.advance_one(TURN_S)

    report = await report_of(client, run_id)
    assert len(worker.jobs) == 6, "each item once, and a warm-up"
    [result] = report["results"]
    assert [item["score"] for item in result["items"]] == [1, 1, 1, 1, 0]
    assert [item["tokens"] for item in result["items"]] == [3, 3, 3, 3, 1]
    assert result["accuracy"]["value"] == 0.8


async def test_a_turn_is_short(
    redis: Redis, worker: ChangedWorker, client: httpx.AsyncClient
) -> None:
    run_id = await queued(redis)
    async with evaluating(redis, words_set()) as evaluator:
        turns = 0
        while (await run_of(client, run_id))["state"] != "done":
            # Nothing but what is under way is awaited.
            assert await evaluator.advance_one(0.0 if turns == 0 else TURN_S)
            turns += 1
    assert turns == 2
    assert len(worker.jobs) == 6


async def test_a_slowdown_and_an_accuracy_drop_are_regressions(
    redis: Redis, worker: ChangedWorker, client: httpx.AsyncClient
) -> None:
    metrics = JanitorMetrics()

    def counted(kind: str) -> float | None:
        return metrics.registry.get_sample_value(
            "aios_evaluation_regressions_total", {"task": "words", "model": "echo", "kind": kind}
        )

    async with evaluating(redis, words_set(), metrics=metrics) as evaluator:
        worker.delay_s = 0.05
        first = await queued(redis)
        await evaluator.advance_one(TURN_S)

        worker.delay_s = 0.15
        second = await queued(redis)
        await evaluator.advance_one(TURN_S)

        worker.delay_s = 0.0
        worker.is_right = False
        third = await queued(redis)
        await evaluator.advance_one(TURN_S)

    [result] = (await report_of(client, first))["results"]
    assert (result["baseline"], result["regressions"]) == (None, [])
    [result] = (await report_of(client, second))["results"]
    [regression] = result["regressions"]
    assert (regression["kind"], regression["baseline"]) == ("latency", first)
    [result] = (await report_of(client, third))["results"]
    [regression] = result["regressions"]
    assert (regression["kind"], regression["baseline"]) == ("accuracy", first)
    assert regression["now"] == 0
    assert (counted("latency"), counted("accuracy")) == (1, 1)

    # Other processes show the same figures.
    other = JanitorMetrics()
    async with evaluating(redis, words_set(), metrics=other) as evaluator:
        await evaluator.advance_one(TURN_S)
    labels = {"task": "words", "model": "echo"}
    assert other.registry.get_sample_value("aios_evaluation_accuracy", labels) == 0
    p95 = other.registry.get_sample_value("aios_evaluation_p95_seconds", labels)
    assert p95 == pytest.approx(result["latency_ms"]["p95"] / 1000)


async def test_a_set_that_the_model_refuses_is_skipped(
    redis: Redis, worker: ChangedWorker, client: httpx.AsyncClient
) -> None:
    run_id = await queued(redis)
    async with evaluating(redis, words_set(top_k=-7)) as evaluator:
        await evaluator.advance_one(TURN_S)
    report = await report_of(client, run_id)
    assert report["results"] == []
    [skipped] = report["skipped"]
    assert (skipped["task"], skipped["model"]) == ("words", "echo")
    assert skipped["reason"].startswith("refused: 4") and "top_k" in skipped["reason"]
    assert worker.jobs == []


async def test_the_last_runs_alone_are_kept(
    redis: Redis, worker: ChangedWorker, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_runs, "_MOST_KEPT", 2)
    made = []
    async with evaluating(redis, words_set()) as evaluator:
        for _ in range(3):
            made.append(await queued(redis))
            await evaluator.advance_one(TURN_S)
    assert (await client.get(f"{PATH}/runs/{made[0]}")).status_code == 404
    await report_of(client, made[1])
    assert (await client.get(f"{PATH}/latest")).json()["id"] == made[2]
    assert await redis.zcard(keys.EVALUATION_RUNS) == 2
    assert await redis.zcard(keys.ACTIVE_EVALUATIONS) == 0


async def test_a_run_whose_time_is_over_fails(
    redis: Redis, worker: ChangedWorker, client: httpx.AsyncClient
) -> None:
    worker.held = 2
    waiting = await queued(redis, window_s=0.001)
    async with evaluating(redis, words_set()) as evaluator:
        await evaluator.advance_one(TURN_S)
        run_id = await queued(redis, window_s=5)
        await evaluator.advance_one(TURN_S)
    for failed, num_done in ((waiting, 0), (run_id, 1)):
        run = await run_of(client, failed)
        assert (run["state"], run["done"]) == ("failed", num_done)
        assert run["error"] == "The time of the run was over before all items were asked."
    # What Redis knows of its items is gone, and the record goes later.
    assert await redis.exists(keys.evaluation_results(run_id)) == 0
    assert await redis.pttl(keys.evaluation(run_id)) > 0


async def test_what_is_refused(
    redis: Redis, worker: ChangedWorker, client: httpx.AsyncClient
) -> None:
    unknown = await client.post(f"{PATH}/run", json={"tasks": ["singing"]})
    assert unknown.status_code == 400
    assert "expected some of" in unknown.json()["error"]["message"]
    assert (await client.post(f"{PATH}/run", json={"model": "nobody"})).status_code == 404
    assert (await client.get(f"{PATH}/runs/eval_{'0' * 32}")).status_code == 404
    assert (await client.get(f"{PATH}/runs/*")).status_code == 404

    body = {"tasks": ["mathematics"]}
    key = {"Idempotency-Key": "one"}
    first = (await client.post(f"{PATH}/run", json=body, headers=key)).json()
    again = (await client.post(f"{PATH}/run", json=body, headers=key)).json()
    assert first["id"] == again["id"]
    conflict = await client.post(f"{PATH}/run", json={}, headers=key)
    assert conflict.status_code == 409
    for _ in range(3):
        assert (await client.post(f"{PATH}/run", json={})).status_code == 202
    full = await client.post(f"{PATH}/run", json={})
    assert (full.status_code, full.headers["Retry-After"]) == (429, "60")
