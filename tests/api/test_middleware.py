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


def access_records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "aios.access"]


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return the fields of each line of the access log."""
    return [fields_of_record(record) for record in access_records(caplog)]


def fields_of_record(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = record.__dict__["fields"]
    return fields


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
    parts_ms = first.pop("queue_ms") + first.pop("prefill_ms") + first.pop("decode_ms")
    assert parts_ms > 0
    assert first.pop("total_ms") >= parts_ms
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
    # The job has the id too, so that the worker's lines can name it.
    assert worker.jobs[0].request_id == first["request_id"]

    assert (second["status"], second["error"]) == (400, "invalid_request")
    assert "job_id" not in second

    assert "secret" not in caplog.text


async def test_a_stream_is_logged_when_it_has_ended(
    client: httpx.AsyncClient, worker: EchoWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await client.post("/v1/completions", json={"prompt": "a b", "stream": True})

    [line] = lines(caplog)
    assert line["route"] == "/v1/completions"
    assert (line["completion_tokens"], line["num_jobs"]) == (2, 1)
    assert line["queue_ms"] >= 0
    assert line["decode_ms"] >= 0


async def test_what_came_back_to_earlier_work_has_no_times_of_its_own(
    client: httpx.AsyncClient, worker: EchoWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    body = {"prompts": ["a b", "c"]}
    key = {"Idempotency-Key": "k"}
    await client.post("/generate", json=body, headers=key)
    await client.post("/generate", json=body, headers=key)

    first, second = lines(caplog)
    assert first["num_jobs"] == 2
    assert second["num_jobs"] == 2
    assert first["job_id"] == second["job_id"]
    assert "queue_ms" in first
    assert "queue_ms" not in second


async def test_one_who_leaves_is_logged_with_the_job(
    client: httpx.AsyncClient, worker: EchoWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    worker.gate.clear()
    answer = await client.post("/v1/jobs", json={"task": "generate", "prompts": ["a"]})
    await client.delete(answer.headers["Location"])

    submission, cancellation = lines(caplog)
    assert (submission["status"], submission["num_jobs"]) == (202, 1)
    assert "decode_ms" not in submission
    assert cancellation["status"] == 200


@pytest.mark.parametrize("settings", [{"log_bodies": True}, {"log_level": "debug"}])
async def test_bodies_are_logged_on_demand_and_cut(
    redis: Redis, worker: EchoWorker, caplog: pytest.LogCaptureFixture, settings: dict[str, object]
) -> None:
    caplog.set_level(logging.INFO)
    async with in_memory(redis, **settings) as client:
        answer = await client.post("/generate", json={"prompts": ["x" * 5000]})

    begun, ended = access_records(caplog)
    assert begun.getMessage().startswith('Processing request: {"prompts":["xxx')
    assert len(begun.getMessage()) == len("Processing request: ") + 1000

    at_begin = fields_of_record(begun)
    at_end = fields_of_record(ended)
    assert at_begin["request_id"] == at_end["request_id"]
    assert at_end["answer"] == answer.text[:1000]
    assert fields_of(caplog, "request") == [at_end]


async def pieces() -> AsyncIterator[bytes]:
    for _ in range(5):
        yield b" " * 50


async def test_a_body_that_is_too_large(redis: Redis, worker: EchoWorker) -> None:
    async with in_memory(redis, max_body_bytes=100) as client:
        announced = await client.post("/generate", content=b" " * 101)
        chunked = await client.post("/v1/completions", content=pieces())
        small = await client.post("/generate", json={"prompts": ["a"]})

    for answer in (announced, chunked):
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "payload_too_large"
    assert "100 bytes" in chunked.json()["error"]["message"]
    assert len(announced.headers["X-Request-Id"]) == 36
    assert small.status_code == 200


async def test_cors_only_when_enabled_and_without_credentials(redis: Redis) -> None:
    a_origin = {"Origin": "https://a.example"}
    b_origin = {"Origin": "https://b.example"}
    async with in_memory(redis) as client:
        disabled = await client.get("/healthz", headers=a_origin)
    async with in_memory(redis, enable_cors=True, cors_origins="https://a.example") as client:
        allowed = await client.get("/healthz", headers=a_origin)
        foreign = await client.get("/healthz", headers=b_origin)

    assert "access-control-allow-origin" not in disabled.headers
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-credentials" not in allowed.headers
    assert "access-control-allow-origin" not in foreign.headers


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
        async with in_memory(redis, access_log=False) as client:
            await client.get("/v1/models")
        assert not lines(caplog)

        async with in_memory(redis, access_log=True) as client:
            await client.get("/v1/models")
        assert lines(caplog)
