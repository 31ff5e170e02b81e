"""Request ids, log lines, body limits, CORS, and bugs that become a 500."""

import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.admission import Admission
from tests.api.echo_worker import EchoWorker
from tests.api.fronts import in_memory


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.__dict__["fields"] for record in caplog.records if record.name == "aios.access"]


async def test_a_sane_request_id_is_kept(client: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/nothing"):
        answer = await client.get(path, headers={"X-Request-Id": "abc-1.2:3"})
        assert answer.headers.get_list("X-Request-Id") == ["abc-1.2:3"]


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a\tb", "é"])
async def test_another_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    answer = await client.get("/healthz", headers=[(b"X-Request-Id", given.encode())])
    assert answer.headers["X-Request-Id"] != given
    assert len(answer.headers["X-Request-Id"]) == 36


async def test_one_log_line_per_request_without_its_body(
    client: httpx.AsyncClient, worker: EchoWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answer = await client.post("/generate", json={"prompts": ["secret words"]})
    await client.post("/generate", json={"prompts": "secret words"})
    first, second = lines(caplog)
    assert first.pop("ms") > 0
    assert first == {
        "request_id": answer.headers["X-Request-Id"],
        "method": "POST",
        "route": "/generate",
        "status": 200,
        "prompt_tokens": 2,
        "completion_tokens": 2,
    }
    assert (second["status"], second["error"]) == (400, "invalid_request")
    assert "secret" not in caplog.text


async def test_a_stream_is_logged_when_it_has_ended(
    client: httpx.AsyncClient, worker: EchoWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await client.post("/v1/completions", json={"prompt": "a b", "stream": True})
    [line] = lines(caplog)
    assert (line["route"], line["completion_tokens"]) == ("/v1/completions", 2)


async def test_bodies_are_logged_on_demand_and_cut(
    redis: Redis, worker: EchoWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with in_memory(redis, log_bodies=True) as client:
        await client.post("/generate", json={"prompts": ["x" * 5000]})
    [line] = lines(caplog)
    assert line["body"].startswith('{"prompts":["xxx')
    assert len(line["body"]) == 1000


async def pieces() -> AsyncIterator[bytes]:
    for _ in range(5):
        yield b" " * 50


async def test_a_body_that_is_too_large(redis: Redis, worker: EchoWorker) -> None:
    async with in_memory(redis, max_body_bytes=100) as client:
        announced = await client.post("/generate", content=b" " * 101)
        chunked = await client.post("/v1/completions", content=pieces())
        small = await client.post("/generate", json={"prompts": ["a"]})
    assert announced.status_code == chunked.status_code == 413
    assert announced.json()["error"]["code"] == chunked.json()["error"]["code"] == "payload_too_large"
    assert "100 bytes" in chunked.json()["error"]["message"]
    assert small.status_code == 200
    assert len(announced.headers["X-Request-Id"]) == 36


async def test_cors_only_when_enabled_and_without_credentials(redis: Redis) -> None:
    origin = {"Origin": "https://a.example"}
    async with in_memory(redis) as client:
        assert "access-control-allow-origin" not in (await client.get("/healthz", headers=origin)).headers
    async with in_memory(redis, enable_cors=True, cors_origins="https://a.example") as client:
        headers = (await client.get("/healthz", headers=origin)).headers
        other = (await client.get("/healthz", headers={"Origin": "https://b.example"})).headers
    assert headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-credentials" not in headers
    assert "access-control-allow-origin" not in other


async def test_a_bug_is_a_500_without_a_stack(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def boom(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(Admission, "check_count", boom)
    answer = await client.post("/v1/completions", json={"prompt": "a"})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert answer.headers["X-Request-Id"] in answer.text
    assert "secret" not in answer.text
    assert "ZeroDivisionError" in caplog.text
