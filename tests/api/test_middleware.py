"""Request ids, log lines, body limits, CORS, and bugs that become a 500."""

import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.submit.limits import Limits
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import in_memory
from tests.fixtures.logged import fields_of


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
    queue_ms, prefill_ms, decode_ms = (
        first.pop(f"{name}_ms") for name in ("queue", "prefill", "decode")
    )
    assert first.pop("total_ms") >= queue_ms + prefill_ms + decode_ms > 0
    assert first.pop("tokens_per_s") > 0
    assert first == {
        "request_id": answer.headers["X-Request-Id"],
        "method": "POST",
        "route": "/generate",
        "status": 200,
        "prompt_tokens": 2,
        "completion_tokens": 2,
        "tenant": "public",
        "model": "echo",
        "x_job_id": answer.headers["X-Job-Id"],
        "job_id": worker.jobs[0].id,
        "num_jobs": 1,
        "worker": "w1",
        "attempts": 1,
    }
    assert (second["status"], second["error"], "job_id" in second) == (
        400,
        "invalid_request",
        False,
    )
    assert worker.jobs[0].request_id == first["request_id"], "the worker's lines have it, too"
    assert "secret" not in caplog.text


async def test_a_stream_is_logged_when_it_has_ended(
    client: httpx.AsyncClient, worker: EchoWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await client.post("/v1/completions", json={"prompt": "a b", "stream": True})
    [line] = lines(caplog)
    assert (line["route"], line["completion_tokens"], line["num_jobs"]) == ("/v1/completions", 2, 1)
    assert line["queue_ms"] >= 0 and line["decode_ms"] >= 0


async def test_what_came_back_to_earlier_work_has_no_times_of_its_own(
    client: httpx.AsyncClient, worker: EchoWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        await client.post(
            "/generate", json={"prompts": ["a b", "c"]}, headers={"Idempotency-Key": "k"}
        )
    first, second = lines(caplog)
    assert first["num_jobs"] == second["num_jobs"] == 2
    assert first["job_id"] == second["job_id"]
    assert "queue_ms" in first and "queue_ms" not in second


async def test_one_who_leaves_is_logged_with_the_job(
    client: httpx.AsyncClient, worker: EchoWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    worker.gate.clear()
    answer = await client.post("/v1/jobs", json={"task": "generate", "prompts": ["a"]})
    await client.delete(answer.headers["Location"])
    [line, other] = lines(caplog)
    assert (line["status"], line["num_jobs"], "decode_ms" in line) == (202, 1, False)
    assert other["status"] == 200


@pytest.mark.parametrize("settings", [{"log_bodies": True}, {"log_level": "debug"}])
async def test_bodies_are_logged_on_demand_and_cut(
    redis: Redis, worker: EchoWorker, caplog: pytest.LogCaptureFixture, settings: dict[str, object]
) -> None:
    caplog.set_level(logging.INFO)
    async with in_memory(redis, **settings) as client:
        answer = await client.post("/generate", json={"prompts": ["x" * 5000]})
    begun, ended = (record for record in caplog.records if record.name == "aios.access")
    assert begun.getMessage().startswith('Processing request: {"prompts":["xxx')
    assert len(begun.getMessage()) == len("Processing request: ") + 1000
    assert begun.__dict__["fields"]["request_id"] == ended.__dict__["fields"]["request_id"]
    assert ended.__dict__["fields"]["answer"] == answer.text[:1000]
    assert fields_of(caplog, "request") == [ended.__dict__["fields"]]


async def pieces() -> AsyncIterator[bytes]:
    for _ in range(5):
        yield b" " * 50


async def test_a_body_that_is_too_large(redis: Redis, worker: EchoWorker) -> None:
    async with in_memory(redis, max_body_bytes=100) as client:
        announced = await client.post("/generate", content=b" " * 101)
        chunked = await client.post("/v1/completions", content=pieces())
        small = await client.post("/generate", json={"prompts": ["a"]})
    assert announced.status_code == chunked.status_code == 413
    assert (
        announced.json()["error"]["code"] == chunked.json()["error"]["code"] == "payload_too_large"
    )
    assert "100 bytes" in chunked.json()["error"]["message"]
    assert small.status_code == 200
    assert len(announced.headers["X-Request-Id"]) == 36


async def test_cors_only_when_enabled_and_without_credentials(redis: Redis) -> None:
    origin = {"Origin": "https://a.example"}
    async with in_memory(redis) as client:
        assert (
            "access-control-allow-origin"
            not in (await client.get("/healthz", headers=origin)).headers
        )
    async with in_memory(redis, enable_cors=True, cors_origins="https://a.example") as client:
        headers = (await client.get("/healthz", headers=origin)).headers
        other = (await client.get("/healthz", headers={"Origin": "https://b.example"})).headers
    assert headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-credentials" not in headers
    assert "access-control-allow-origin" not in other


async def test_a_bug_is_a_500_without_a_stack(
    client: httpx.AsyncClient,
    worker: EchoWorker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def boom(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(Limits, "check_count", boom)
    answer = await client.post("/v1/completions", json={"prompt": "a"})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert answer.headers["X-Request-Id"] in answer.text
    assert "secret" not in answer.text
    assert "ZeroDivisionError" in caplog.text


async def test_requests_may_go_unlogged(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="aios.access"):
        for wanted in (False, True):
            async with in_memory(redis, access_log=wanted) as client:
                await client.get("/v1/models")
            assert bool(lines(caplog)) is wanted
