"""`aios status` on a real Redis: with real workers, with shards, on a cluster, without a worker,
without Redis."""

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from scripts.cli.aios import main
from scripts.cli.watch.rates import Rates, rates
from scripts.cli.watch.screen import View, screen
from shared.fleet.presence import Presence
from shared.fleet.snapshot import Model, Server, Snapshot, Waiting, Worker, WorkerModel, look
from shared.messages import Generate, LoadFailure, ModelInfo, ModelLoad, Sampling, WorkerInfo
from shared.queue import keys
from shared.queue.broker import Broker, open_broker, open_unsettled
from shared.shipped import REPO_ROOT
from shared.telemetry.model_load import NUMBERS
from tests.fixtures.desk import Desk
from tests.fixtures.e2e.fleet import start_worker
from tests.fixtures.polling import ALL_DAY_S, until
from tests.fixtures.redis_cluster import redis_cluster

Aios = Callable[..., Any]
MODEL = ModelInfo("m", "echo", "test", 100, 100, 4, dtype="float32", device="cpu")


@pytest.fixture
def aios(redis_url: str, capsys: pytest.CaptureFixture[str]) -> Aios:
    """Runs `aios status ...`: its exit status and what it printed, as JSON where it is."""

    async def run(*words: str) -> tuple[int, Any]:
        status = await asyncio.to_thread(main, ["status", "--redis-url", redis_url, *words])
        out = capsys.readouterr().out
        return status, json.loads(out) if "--json" in words else out

    return run


def worker(name: str, state: str = "ready", **load: float) -> WorkerInfo:
    loads = (ModelLoad("m", **load),)  # type: ignore[arg-type]
    return WorkerInfo(name, state, (MODEL,), uptime_s=10.0, loads=loads)  # type: ignore[arg-type]


async def test_two_real_workers(redis: Redis, redis_url: str, aios: Aios) -> None:
    """What they did is seen, and so is the rate at which they did it."""
    workers = [await start_worker(redis_url, redis) for _ in range(2)]
    try:
        before = await look(Broker(redis))
        desk = Desk(redis, "echo")
        await desk.submit(*[Generate("ab", Sampling(max_tokens=50, seed=0))] * 6)

        async def is_done() -> bool:
            told = (await look(Broker(redis))).workers
            num_jobs = sum(model.jobs for worker in told for model in worker.models)
            return num_jobs == 6 and all(worker.uptime_s > 0 for worker in told)

        await until(is_done, "all jobs are counted")
        status, told = await aios("--json")
        text = (await aios())[1]
        done = rates(before, await look(Broker(redis)))
    finally:
        for process in workers:
            await process.end()
    assert (status, told["status"], told["problem"], told["version"], told["dead_jobs"]) == (
        0,
        "ready",
        None,
        1,
        0,
    )
    assert [(seen["state"], seen["pool"], seen["in_flight"]) for seen in told["workers"]] == [
        ("ready", "default", 0)
    ] * 2
    assert all(seen["memory_bytes"] > 0 and seen["uptime_s"] > 0 for seen in told["workers"])
    loads = [load for seen in told["workers"] for load in seen["models"]]
    assert sum(load["tokens"] for load in loads) == 300 and {
        load["max_batch"] for load in loads
    } == {16}
    (model,) = told["models"]
    assert (model["id"], model["runner"], model["dtype"], model["workers"]) == (
        "echo",
        "echo",
        "float32",
        2,
    )
    assert (model["waiting"], model["running"], set(model["classes"])) == (
        0,
        0,
        {"interactive", "default", "bulk"},
    )
    (server,) = told["redis"]
    assert (
        server["memory_bytes"] > 0
        and server["clients"] > 1
        and server["port"] == int(redis_url[:-2].split(":")[2])
    )
    assert "2 of 2 workers ready" in text and all(
        seen["id"][-6:] in text for seen in told["workers"]
    )
    assert (
        done is not None
        and done.jobs > 0
        and done.tokens == pytest.approx(50 * done.jobs)
        and done.errors == 0
    )


async def test_what_waits_is_told_by_class(redis: Redis, aios: Aios) -> None:
    await Presence(redis, ttl_s=ALL_DAY_S).announce(worker("w1", work_per_s=10.0))
    desk = Desk(redis)
    await desk.submit(Generate("x" * 400, Sampling(max_tokens=100, seed=0)), priority="bulk")
    await redis.xadd(keys.dead("00"), {"job": "x"})
    _, told = await aios("--json")
    (model,) = told["models"]
    assert (model["waiting"], told["dead_jobs"], model["classes"]["default"]["waiting"]) == (
        1,
        1,
        0,
    )
    bulk = model["classes"]["bulk"]
    assert (bulk["waiting"], bulk["work_s"]) == (1, pytest.approx(20.0, rel=0.2))
    assert model["queue_bytes"] > 400 and 0 <= bulk["oldest_s"] < 60


@pytest.mark.parametrize("state", [None, "loading", "draining"])
async def test_no_ready_worker_is_1(redis: Redis, aios: Aios, state: str | None) -> None:
    if state is not None:
        await Presence(redis, ttl_s=ALL_DAY_S).announce(worker("w1", state))
    status, told = await aios("--json")
    assert (status, told["status"], len(told["workers"])) == (
        1,
        "not_ready",
        int(state is not None),
    )


async def test_a_worker_without_room_in_memory_is_full(redis: Redis, aios: Aios) -> None:
    await Presence(redis, ttl_s=ALL_DAY_S).announce(
        WorkerInfo("w", "ready", (MODEL,), is_full=True)
    )
    status, told = await aios("--json")
    assert (status, told["workers"][0]["state"]) == (0, "full")


async def test_a_model_that_could_not_be_loaded_again_is_told_with_the_reason(
    redis: Redis, aios: Aios
) -> None:
    failures = {"m": LoadFailure("config.json: not found; restore the file.")}
    await Presence(redis, ttl_s=ALL_DAY_S).announce(
        WorkerInfo("w", "ready", (MODEL,), failures=failures)
    )
    _, told = await aios("--json")
    assert told["workers"][0]["failures"] == {"m": "config.json: not found; restore the file."}
    view = View(await look(Broker(redis)))
    assert "w: m failed: config.json: not found; restore the file." in screen(view, 200)


def test_without_redis_it_is_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIOS_REDIS_URL", raising=False)
    assert main(["status"]) == 2
    assert "redis_url" in capsys.readouterr().err
    assert main(["status", "--redis-url", "redis://127.0.0.1:1/0"]) == 2
    assert "REDIS IS AWAY" in capsys.readouterr().out
    assert main(["status", "--json", "--redis-url", "redis://127.0.0.1:1/0"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert (told["status"], told["workers"]) == ("redis_away", []) and "127.0.0.1" in told[
        "problem"
    ]


async def test_a_redis_that_does_not_answer(redis: Redis, redis_url: str) -> None:
    await redis.client_pause(400)  # type: ignore[no-untyped-call]
    async with open_unsettled(redis_url) as broker:
        told = await look(broker, timeout_s=0.1)
    assert (told.status, told.problem) == ("redis_away", "Redis did not answer in 0.1 s")


async def test_shards_are_found_and_nothing_is_settled(redis: Redis, redis_url: str) -> None:
    """Nobody need say how Redis is divided, and looking does not divide it."""
    async with open_unsettled(redis_url) as early:
        assert (await look(early)).status == "not_ready"
        assert await redis.keys("*") == []
        async with open_broker(redis_url, 3) as broker:
            await Presence(redis, ttl_s=ALL_DAY_S).announce(worker("w1"))
            for tenant in "abcdef":
                await Desk(broker).submit(tenant=tenant)
        assert [model.waiting for model in (await look(early)).models] == [6]


async def test_a_cluster_is_one_fleet(tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as cluster:
        async with open_broker(cluster.url, 8) as broker:
            await Presence(broker.client(keys.PRESENCE), ttl_s=ALL_DAY_S).announce(worker("w1"))
            for tenant in "abcdef":
                await Desk(broker).submit(tenant=tenant)
            async with open_unsettled(cluster.url) as watching:
                told = await look(watching)
    assert (told.status, [model.waiting for model in told.models]) == ("ready", [6])
    assert {server.port for server in told.redis} == {node.port for node in cluster.nodes}


async def test_many_workers_and_jobs_are_as_few_round_trips(redis: Redis) -> None:
    desk = Desk(redis)
    for number in range(30):
        await Presence(redis, ttl_s=ALL_DAY_S).announce(worker(f"w{number}"))
        await desk.submit(tenant=f"t{number % 5}")
    await look(Broker(redis))  # the script is known from now on
    await redis.config_resetstat()
    told = await look(Broker(redis))
    stats = await redis.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): used["calls"] for name, used in stats.items()}
    assert (len(told.workers), told.models[0].waiting) == (30, 30)
    assert [calls.get(name) for name in ("get", "smembers", "mget", "evalsha", "info")] == [1] * 5
    assert not {"keys", "scan", "eval", "set"} & set(calls)


async def test_without_info_all_else_is_told(redis: Redis, redis_url: str) -> None:
    await redis.execute_command("ACL", "SETUSER", "shy", "on", ">shy", "~*", "&*", "+@all", "-info")
    try:
        async with open_unsettled(redis_url.replace("redis://", "redis://shy:shy@")) as broker:
            told = await look(broker)
        assert (told.status, told.redis) == ("not_ready", ())
        await redis.execute_command("ACL", "SETUSER", "shy", "-smembers")
        async with open_unsettled(redis_url.replace("redis://", "redis://shy:shy@")) as broker:
            told = await look(broker)
        assert told.status == "redis_away" and told.problem and "permission" in told.problem
    finally:
        await redis.execute_command("ACL", "DELUSER", "shy")


def test_the_page_names_every_field() -> None:
    page = (REPO_ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    section = page.partition("## Looking at a fleet")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (\w[\w' ]+) \| (.+) \|$", section, re.MULTILINE))
    of = {
        "the document": [Snapshot],
        "a worker": [Worker],
        "a worker's model": [WorkerModel],
        "a model": [Model, Waiting],
        "a Redis server": [Server],
    }
    for name, kinds in of.items():
        told = set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", rows[name])))
        # They have a table of their own.
        numbers = NUMBERS.keys() if kinds == [WorkerModel] else set()
        assert told | numbers == {field for kind in kinds for field in kind.__struct_fields__}, name


async def test_rates_are_by_the_workers_own_clocks(redis: Redis) -> None:
    async def seen(*workers: WorkerInfo) -> Snapshot:
        for info in workers:
            await Presence(redis, ttl_s=ALL_DAY_S).announce(info)
        return await look(Broker(redis))

    def at(name: str, uptime_s: float, tokens: int, jobs: int, errors: int = 0) -> WorkerInfo:
        return WorkerInfo(
            name,
            "ready",
            (MODEL,),
            uptime_s=uptime_s,
            loads=(ModelLoad("m", tokens=tokens, jobs=jobs, errors=errors),),
        )

    before = await seen(at("a", 10, 100, 1), at("b", 5, 0, 0))
    assert rates(before, before) is None
    after = await seen(at("a", 14, 300, 9, 2), at("b", 7, 10, 0), at("new", 1, 500, 5))
    assert rates(before, after) == Rates(55.0, 2.0, 0.5)
