"""Nothing secret gets into any line that a front or a worker logs, whatever the level and wherever
it came in."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from shared.fleet.presence import Presence
from tests.fixtures.e2e.roles import running
from tests.fixtures.polling import until
from tests.fixtures.redis_server import RedisServer, free_port

KEY = "hush-known-key"
WRONG = "hush-wrong-key"
IN_QUERY = "hush-in-query"
REDIS = "hush-redis"
ASK = {"prompt": "a b c", "max_tokens": 4}


@pytest.fixture
async def secret_url(redis: Redis, redis_server: RedisServer) -> AsyncIterator[str]:
    """Of a user of Redis with a password."""
    await redis.execute_command("ACL", "SETUSER", "logged", "on", f">{REDIS}", "~*", "&*", "+@all")
    yield f"redis://logged:{REDIS}@127.0.0.1:{redis_server.port}/0"
    await redis.execute_command("ACL", "DELUSER", "logged")


async def asked(port: int) -> list[int]:
    """The statuses of calls with keys everywhere a key may come."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        calls = [
            ("/v1/completions", {"Authorization": f"Bearer {KEY}"}),
            ("/v1/completions", {"X-API-Key": KEY}),
            (f"/v1/completions?api_key={IN_QUERY}&token={IN_QUERY}", {"X-API-Key": KEY}),
            (f"/nothing?api_key={IN_QUERY}", {}),
            ("/v1/completions", {"Authorization": f"Bearer {WRONG}"}),
            ("/v1/completions", {"Authorization": f"Basic {WRONG}"}),
        ]
        return [
            (await http.post(path, json=ASK, headers=headers)).status_code
            for path, headers in calls
        ]


async def test_no_line_tells_a_secret(redis: Redis, secret_url: str) -> None:
    """A95: bodies are logged here, as the level is debug; keys and passwords are not."""
    port = free_port()
    env = {"AIOS_REDIS_URL": secret_url}

    async def is_ready() -> bool:
        return any(worker.state == "ready" for worker in (await Presence(redis).fleet()).workers)

    async with running(
        "worker", "--log-level", "debug", "--model", "echo=echo", **env
    ) as worker_lines:
        flags = ("--log-level", "debug", "--host", "127.0.0.1", "--port", str(port))
        async with running("api", *flags, AIOS_API_KEYS=f"ann:{KEY}", **env) as front_lines:
            await until(is_ready, "the worker is ready")
            await until(lambda: '"front ready"' in "".join(front_lines), "the front listens")
            assert await asked(port) == [200, 200, 200, 404, 401, 401]
    lines = [*front_lines, *worker_lines]
    assert [line for line in lines if "hush" in line] == []
    front, worker = ([told(line) for line in some] for some in (front_lines, worker_lines))
    assert [line["status"] for line in front if line["message"] == "request"] == [
        200,
        200,
        200,
        404,
        401,
        401,
    ]
    assert not [line for line in front if line["logger"] == "uvicorn.access"], (
        "each request is told of once"
    )
    assert len([line for line in front if line["message"] == "caller refused"]) == 2
    done = [line for line in worker if line["message"] == "job done"]
    ids = [(line["job_id"], line["request_id"]) for line in front if line.get("job_id")]
    assert [(line["job_id"], line["request_id"]) for line in done] == ids
    life = [line["message"] for line in worker if line["logger"] == "aios.worker"]
    assert [event for event in life if event.startswith("worker")] == [
        "worker starting",
        "worker ready",
        "worker draining",
        "worker stopped",
    ]


def told(line: str) -> dict[str, Any]:
    """A line, which is one JSON object by default."""
    parsed: dict[str, Any] = json.loads(line)
    return parsed
