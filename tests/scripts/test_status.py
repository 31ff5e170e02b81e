"""`aios status` on a real Redis.

The fleets have real workers, shards, a cluster, no worker or no Redis.
"""

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
from tests.fixtures.redis_server import RedisServer

Aios = Callable[..., Any]
MODEL = ModelInfo("m", "echo", "test", 100, 100, 4, dtype="float32", device="cpu")


@pytest.fixture
def aios(redis_url: str, capsys: pytest.CaptureFixture[str]) -> Aios:
    """Run `aios status ...` and return its exit status and its output.

    With `--json` the output is parsed.
    """

    async def run(*words: str) -> tuple[int, Any]:
        status = await asyncio.to_thread(main, ["status", "--redis-url", redis_url, *words])
        out = capsys.readouterr().out
        if "--json" in words:
            return status, json.loads(out)
        return status, out

    return run


def worker(name: str, state: str = "ready", **load: float) -> WorkerInfo:
    loads = (ModelLoad("m", **load),)  # type: ignore[arg-type]
    return WorkerInfo(name, state, (MODEL,), uptime_s=10.0, loads=loads)  # type: ignore[arg-type]


def waiting_of(snapshot: Snapshot) -> list[int]:
    """Return the number of waiting jobs of each model."""
    return [model.waiting for model in snapshot.models]


async def test_two_real_workers(redis: Redis, redis_url: str, aios: Aios) -> None:
    """The status shows the work of two workers and its rate."""
    workers = [await start_worker(redis_url, redis), await start_worker(redis_url, redis)]
    try:
        before = await look(Broker(redis))
        desk = Desk(redis, "echo")
        await desk.submit(*[Generate("ab", Sampling(max_tokens=50, seed=0))] * 6)

        async def is_done() -> bool:
            num_jobs = 0
            for worker in (await look(Broker(redis))).workers:
                # A rate needs an uptime, which a worker's first announcement does not have.
                if worker.uptime_s <= 0:
                    return False
                for model in worker.models:
                    num_jobs += model.jobs
            return num_jobs == 6

        await until(is_done, "all jobs are counted")
        status, document = await aios("--json")
        text = (await aios())[1]
        done = rates(before, await look(Broker(redis)))
    finally:
        for process in workers:
            await process.end()

    assert status == 0
    assert document["status"] == "ready"
    assert document["problem"] is None
    assert document["version"] == 1
    assert document["dead_jobs"] == 0

    assert len(document["workers"]) == 2
    assert "2 of 2 workers ready" in text
    num_tokens = 0
    for seen in document["workers"]:
        assert seen["state"] == "ready"
        assert seen["pool"] == "default"
        assert seen["in_flight"] == 0
        assert seen["memory_bytes"] > 0
        assert seen["uptime_s"] > 0
        assert seen["id"][-6:] in text
        for load in seen["models"]:
            assert load["max_batch"] == 16
            num_tokens += load["tokens"]
    assert num_tokens == 300

    (model,) = document["models"]
    assert model["id"] == "echo"
    assert model["runner"] == "echo"
    assert model["dtype"] == "float32"
    assert model["workers"] == 2
    assert model["waiting"] == 0
    assert model["running"] == 0
    assert set(model["classes"]) == {"interactive", "default", "bulk"}

    (server,) = document["redis"]
    assert server["memory_bytes"] > 0
    assert server["clients"] > 1
    assert server["port"] == int(redis_url[:-2].split(":")[2])

    assert done is not None
    assert done.jobs > 0
    assert done.tokens == pytest.approx(50 * done.jobs)
    assert done.errors == 0


async def test_what_waits_is_told_by_class(redis: Redis, aios: Aios) -> None:
    await Presence(redis, ttl_s=ALL_DAY_S).announce(worker("w1", work_per_s=10.0))
    desk = Desk(redis)
    await desk.submit(Generate("x" * 400, Sampling(max_tokens=100, seed=0)), priority="bulk")
    await redis.xadd(keys.dead("00"), {"job": "x"})

    _, document = await aios("--json")

    assert document["dead_jobs"] == 1
    (model,) = document["models"]
    assert model["waiting"] == 1
    assert model["queue_bytes"] > 400
    assert model["classes"]["default"]["waiting"] == 0
    bulk = model["classes"]["bulk"]
    assert bulk["waiting"] == 1
    assert bulk["work_s"] == pytest.approx(20.0, rel=0.2)
    assert 0 <= bulk["oldest_s"] < 60


@pytest.mark.parametrize("state", [None, "loading", "draining"])
async def test_no_ready_worker_is_1(redis: Redis, aios: Aios, state: str | None) -> None:
    if state is not None:
        await Presence(redis, ttl_s=ALL_DAY_S).announce(worker("w1", state))

    status, document = await aios("--json")

    assert status == 1
    assert document["status"] == "not_ready"
    assert len(document["workers"]) == int(state is not None)


async def test_a_worker_without_room_in_memory_is_full(redis: Redis, aios: Aios) -> None:
    await Presence(redis, ttl_s=ALL_DAY_S).announce(
        WorkerInfo("w", "ready", (MODEL,), is_full=True)
    )

    status, document = await aios("--json")

    assert status == 0
    assert document["workers"][0]["state"] == "full"


async def test_a_model_that_could_not_be_loaded_again_is_told_with_the_reason(
    redis: Redis, aios: Aios
) -> None:
    failures = {"m": LoadFailure("config.json: not found; restore the file.")}
    await Presence(redis, ttl_s=ALL_DAY_S).announce(
        WorkerInfo("w", "ready", (MODEL,), failures=failures)
    )

    _, document = await aios("--json")
    view = View(await look(Broker(redis)))

    failures_shown = document["workers"][0]["failures"]
    assert failures_shown == {"m": "config.json: not found; restore the file."}
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
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "redis_away"
    assert document["workers"] == []
    assert "127.0.0.1" in document["problem"]


async def test_a_redis_that_does_not_answer(own_redis: RedisServer) -> None:
    async with open_unsettled(own_redis.url) as broker:
        with own_redis.hanging():
            snapshot = await look(broker, timeout_s=0.1)
    assert snapshot.status == "redis_away"
    assert snapshot.problem == "Redis did not answer in 0.1 s"


async def test_shards_are_found_and_nothing_is_settled(redis: Redis, redis_url: str) -> None:
    """The status reads the number of shards from Redis and writes nothing there."""
    async with open_unsettled(redis_url) as early:
        assert (await look(early)).status == "not_ready"
        assert await redis.keys("*") == []
        async with open_broker(redis_url, 3) as broker:
            await Presence(redis, ttl_s=ALL_DAY_S).announce(worker("w1"))
            for tenant in "abcdef":
                await Desk(broker).submit(tenant=tenant)
        assert waiting_of(await look(early)) == [6]


async def test_a_cluster_is_one_fleet(tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as cluster:
        async with open_broker(cluster.url, 8) as broker:
            await Presence(broker.client(keys.PRESENCE), ttl_s=ALL_DAY_S).announce(worker("w1"))
            for tenant in "abcdef":
                await Desk(broker).submit(tenant=tenant)
            async with open_unsettled(cluster.url) as watching:
                snapshot = await look(watching)
    assert snapshot.status == "ready"
    assert waiting_of(snapshot) == [6]
    ports = {server.port for server in snapshot.redis}
    assert ports == {node.port for node in cluster.nodes}


async def test_many_workers_and_jobs_are_as_few_round_trips(redis: Redis) -> None:
    desk = Desk(redis)
    for number in range(30):
        await Presence(redis, ttl_s=ALL_DAY_S).announce(worker(f"w{number}"))
        await desk.submit(tenant=f"t{number % 5}")
    # Redis knows the script from the first look on; the second look sends its digest alone.
    await look(Broker(redis))
    await redis.config_resetstat()

    snapshot = await look(Broker(redis))
    stats = await redis.info("commandstats")

    assert len(snapshot.workers) == 30
    assert snapshot.models[0].waiting == 30
    for command in ("get", "smembers", "mget", "evalsha", "info"):
        assert stats[f"cmdstat_{command}"]["calls"] == 1, command
    for command in ("keys", "scan", "eval", "set"):
        assert f"cmdstat_{command}" not in stats


async def test_without_info_all_else_is_told(redis: Redis, redis_url: str) -> None:
    rules = ["on", ">shy", "~*", "&*", "+@all", "-info"]
    await redis.execute_command("ACL", "SETUSER", "shy", *rules)
    shy_url = redis_url.replace("redis://", "redis://shy:shy@")
    try:
        async with open_unsettled(shy_url) as broker:
            snapshot = await look(broker)
        assert snapshot.status == "not_ready"
        assert snapshot.redis == ()

        await redis.execute_command("ACL", "SETUSER", "shy", "-smembers")
        async with open_unsettled(shy_url) as broker:
            snapshot = await look(broker)
        assert snapshot.status == "redis_away"
        assert snapshot.problem is not None
        assert "permission" in snapshot.problem
    finally:
        await redis.execute_command("ACL", "DELUSER", "shy")


def test_the_page_names_every_field() -> None:
    page = (REPO_ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    section = page.partition("## Looking at a fleet")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (\w[\w' ]+) \| (.+) \|$", section, re.MULTILINE))
    structs_by_row = {
        "the document": [Snapshot],
        "a worker": [Worker],
        "a worker's model": [WorkerModel],
        "a model": [Model, Waiting],
        "a Redis server": [Server],
    }
    for name, structs in structs_by_row.items():
        row = re.sub(r"\([^)]*\)", "", rows[name])
        documented = set(re.findall(r"`(\w+)`", row))
        # The numbers of a worker's model have a table of their own.
        if structs == [WorkerModel]:
            documented |= NUMBERS.keys()

        fields = set[str]()
        for struct in structs:
            fields.update(struct.__struct_fields__)
        assert documented == fields, name


async def test_rates_are_by_the_workers_own_clocks(redis: Redis) -> None:
    async def snapshot_with(*workers: WorkerInfo) -> Snapshot:
        for info in workers:
            await Presence(redis, ttl_s=ALL_DAY_S).announce(info)
        return await look(Broker(redis))

    def worker_at(name: str, uptime_s: float, load: ModelLoad) -> WorkerInfo:
        return WorkerInfo(name, "ready", (MODEL,), uptime_s=uptime_s, loads=(load,))

    before = await snapshot_with(
        worker_at("a", 10, ModelLoad("m", tokens=100, jobs=1)),
        worker_at("b", 5, ModelLoad("m", tokens=0, jobs=0)),
    )
    assert rates(before, before) is None

    # Worker a adds 200 tokens in 4 s and worker b 10 in 2 s; a new worker has no rate yet.
    after = await snapshot_with(
        worker_at("a", 14, ModelLoad("m", tokens=300, jobs=9, errors=2)),
        worker_at("b", 7, ModelLoad("m", tokens=10, jobs=0)),
        worker_at("new", 1, ModelLoad("m", tokens=500, jobs=5)),
    )
    assert rates(before, after) == Rates(55.0, 2.0, 0.5)
