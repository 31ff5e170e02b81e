"""No line that a front or a worker logs holds a secret.

That is so at every level and wherever the secret came in.
"""

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
BODY = {"prompt": "a b c", "max_tokens": 4}


@pytest.fixture
async def secret_url(redis: Redis, redis_server: RedisServer) -> AsyncIterator[str]:
    """Create a user of Redis with a password, and return the URL with both."""
    rules = ["on", f">{REDIS}", "~*", "&*", "+@all"]
    await redis.execute_command("ACL", "SETUSER", "logged", *rules)
    yield f"redis://logged:{REDIS}@127.0.0.1:{redis_server.port}/0"
    await redis.execute_command("ACL", "DELUSER", "logged")


async def send_keys(port: int) -> None:
    """Send calls with keys in every part of a request where a key may come."""
    rows = [
        ("/v1/completions", {"Authorization": f"Bearer {KEY}"}, 200),
        ("/v1/completions", {"X-API-Key": KEY}, 200),
        (f"/v1/completions?api_key={IN_QUERY}&token={IN_QUERY}", {"X-API-Key": KEY}, 200),
        (f"/nothing?api_key={IN_QUERY}", {}, 404),
        ("/v1/completions", {"Authorization": f"Bearer {WRONG}"}, 401),
        ("/v1/completions", {"Authorization": f"Basic {WRONG}"}, 401),
    ]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        for path, headers, status in rows:
            answer = await http.post(path, json=BODY, headers=headers)
            assert answer.status_code == status, (path, headers)


async def rotate_webhook(port: int) -> list[str]:
    """Make a webhook endpoint, and rotate its secret. Return both secrets."""
    url = f"http://127.0.0.1:{port}/v1/webhook_endpoints"
    async with httpx.AsyncClient(headers={"X-API-Key": KEY}, timeout=60) as http:
        made = (await http.post(url, json={"url": "https://example.com/"})).json()
        rotated = (await http.post(f"{url}/{made['id']}/rotate_secret", json={})).json()
        await http.delete(f"{url}/{made['id']}")
    return [made["signing_secret"], rotated["signing_secret"]]


async def test_no_line_tells_a_secret(redis: Redis, secret_url: str) -> None:
    """A95: the debug level logs bodies, but no keys and no passwords."""
    port = free_port()
    env = {"AIOS_REDIS_URL": secret_url}

    async def is_ready() -> bool:
        fleet = await Presence(redis).fleet()
        return any(worker.state == "ready" for worker in fleet.workers)

    worker_flags = ["--log-level", "debug", "--model", "echo=echo"]
    front_flags = ["--log-level", "debug", "--host", "127.0.0.1", "--port", str(port)]
    async with (
        running("worker", *worker_flags, **env) as worker_lines,
        running("api", *front_flags, AIOS_API_KEYS=f"ann:{KEY}", **env) as front_lines,
    ):
        await until(is_ready, "the worker is ready")
        await until(lambda: '"front ready"' in "".join(front_lines), "the front listens")
        await send_keys(port)
        webhook_secrets = await rotate_webhook(port)

    for line in [*front_lines, *worker_lines]:
        assert "hush" not in line
        for secret in webhook_secrets:
            assert secret.removeprefix("whsec_") not in line

    front_log = parsed(front_lines)
    statuses = []
    accepted = []
    for record in front_log:
        assert record["logger"] != "uvicorn.access", "each request is logged once"
        if record["message"] == "request":
            statuses.append(record["status"])
        if record.get("job_id"):
            accepted.append(record)
    assert statuses == [200, 200, 200, 404, 401, 401, 200, 200, 200]
    assert len(with_message(front_log, "caller refused")) == 2

    worker_log = parsed(worker_lines)
    done = with_message(worker_log, "job done")
    assert ids_of(done) == ids_of(accepted)

    # The worker tells each step of its life.
    states = []
    for record in worker_log:
        if record["logger"] == "aios.worker" and record["message"].startswith("worker"):
            states.append(record["message"])
    assert states == ["worker starting", "worker ready", "worker draining", "worker stopped"]


def parsed(lines: list[str]) -> list[dict[str, Any]]:
    """Parse log lines: each is one JSON object by default."""
    return [json.loads(line) for line in lines]


def with_message(log: list[dict[str, Any]], message: str) -> list[dict[str, Any]]:
    return [record for record in log if record["message"] == message]


def ids_of(log: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(record["job_id"], record["request_id"]) for record in log]
