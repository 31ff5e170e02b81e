"""Local inference: every task by its name, named events under one id, and the status routes."""

import json
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from shared.fleet.popularity import Popularity
from shared.fleet.presence import Presence
from shared.messages import Classify, Embed, Failed, Generate, WorkerInfo
from shared.queue.broker import Broker
from tests.fixtures.api.echo_worker import EchoWorker, announce
from tests.fixtures.api.fronts import live, states
from tests.fixtures.polling import until

PATH = "/api/inference"
STREAM = "/api/inference/stream"
TEXT = {"task": "text-generation", "inputs": "a b"}
NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def events(text: str) -> list[tuple[str, Any]]:
    """Return the names and payloads of a stream's events."""
    parsed = []
    for block in text.split("\n\n"):
        fields = {}
        for line in block.splitlines():
            # A line that begins with a colon is a comment.
            if line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value
        if "data" in fields:
            parsed.append((fields["event"], json.loads(fields["data"])))
    return parsed


def names_of(parsed_events: list[tuple[str, Any]]) -> list[str]:
    return [name for name, _ in parsed_events]


def first_event_id(text: str) -> str:
    """Return the id of a stream's first event."""
    for line in text.splitlines():
        if line.startswith("id: "):
            return line.removeprefix("id: ")
    raise AssertionError("the stream has no event with an id")


async def is_served(client: httpx.AsyncClient, name: str) -> bool:
    status = await client.get(f"/api/models/status/{name}")
    return bool(status.json().get("status") == "ready")


async def is_cancelled(redis: Redis) -> bool:
    return await states(redis) == ["cancelled"]


async def test_a_text_is_generated(client: httpx.AsyncClient, able: EchoWorker) -> None:
    request = {
        "task": "text-generation",
        "inputs": "a b c",
        "options": {"max_new_tokens": 2, "temperature": 0.5, "top_p": 0.8},
    }
    answer = await client.post(PATH, json=request)

    body = answer.json()
    assert body.pop("metrics").keys() == {
        "runtime_ms",
        "first_token_latency_ms",
        "tokens_per_second",
    }
    assert body == {
        "correlation_id": answer.headers["X-Job-Id"],
        "model_id": "echo",
        "task": "text-generation",
        "result": {"text": "a b ", "finish_reason": "length"},
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }

    task = able.jobs[0].task
    assert isinstance(task, Generate)
    assert task.sampling.temperature == 0.5
    assert task.sampling.top_p == 0.8
    assert task.sampling.n == 1


async def test_the_familys_defaults(client: httpx.AsyncClient, able: EchoWorker) -> None:
    """X2: 50 tokens at temperature 1.0 and top_p 1.0."""
    assert (await client.post(PATH, json=TEXT)).status_code == 200

    task = able.jobs[0].task
    assert isinstance(task, Generate)
    assert task.sampling.max_tokens == 50
    assert task.sampling.temperature == 1.0
    assert task.sampling.top_p == 1.0


@pytest.mark.parametrize(
    ("body", "task", "result"),
    [
        (
            {"task": "text-classification"},
            Classify("a b"),
            {"labels": [{"label": "short", "score": 0.75}, {"label": "long", "score": 0.25}]},
        ),
        (
            {"pipeline_tag": "sentiment-analysis", "options": {"top_k": 1}},
            Classify("a b", 1),
            {"labels": [{"label": "short", "score": 0.75}]},
        ),
        ({"task": "feature-extraction"}, Embed("a b"), {"embedding": [2.0, 1.0], "dimensions": 2}),
        (
            {"pipeline_tag": "feature-extraction", "options": {"normalize": False}},
            Embed("a b", normalize=False),
            {"embedding": [2.0, 0.0], "dimensions": 2},
        ),
    ],
)
async def test_other_tasks(
    client: httpx.AsyncClient, able: EchoWorker, body: Any, task: Any, result: Any
) -> None:
    answer = (await client.post(PATH, json={"inputs": "a b"} | body)).json()
    assert answer["result"] == result
    assert able.jobs[0].task == task

    streamed = await client.post(STREAM, json={"inputs": "a b"} | body)
    [(name, payload)] = events(streamed.text)
    assert name == "done"
    assert payload["result"] == result


@pytest.mark.parametrize("body", [{}, {"task": "echo"}, {"pipeline_tag": "echo"}, {"task": None}])
async def test_x24_without_a_task_the_inputs_come_back(
    client: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    """The front answers by itself: there is no worker in this test."""
    answer = await client.post(PATH, json={"inputs": "a b", "model_id": "any"} | body)
    assert answer.json() == {
        "correlation_id": answer.headers["X-Request-Id"],
        "model_id": "any",
        "task": "echo",
        "result": {"echo": "a b"},
        "usage": NO_USAGE,
        "metrics": {"runtime_ms": 0.0, "first_token_latency_ms": None, "tokens_per_second": None},
    }

    streamed = await client.post(STREAM, json={"inputs": "a b"} | body)
    [(first_name, token), (last_name, done)] = events(streamed.text)
    assert first_name == "token"
    assert token["token"] == "a b"
    assert last_name == "done"
    assert done["result"] == {"echo": "a b"}
    assert token["correlation_id"] == done["correlation_id"] == streamed.headers["X-Request-Id"]


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (STREAM, {}),
        (PATH, {"stream": True}),
        (PATH, {"options": {"_stream": True}}),
        (STREAM, {"options": {}}),
    ],
)
async def test_d27_to_d32_events(
    client: httpx.AsyncClient, able: EchoWorker, path: str, more: dict[str, Any]
) -> None:
    answer = await client.post(path, json={"task": "text-generation", "input": "a b c"} | more)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "[DONE]" not in answer.text

    parsed = events(answer.text)
    assert names_of(parsed) == ["token", "token", "token", "done"]
    for _, payload in parsed:
        assert payload["correlation_id"] == answer.headers["X-Job-Id"]

    for index, token in enumerate(("a ", "b ", "c")):
        _, payload = parsed[index]
        assert payload["index"] == index
        assert payload["token"] == token

    _, done = parsed[3]
    assert done["result"] == {"text": "a b c", "finish_reason": "stop"}
    metrics = done["metrics"]
    assert 0 < metrics["first_token_latency_ms"] <= metrics["runtime_ms"] < 10_000
    assert metrics["tokens_per_second"] > 0


async def test_a_reader_goes_on_behind_any_event(
    client: httpx.AsyncClient, able: EchoWorker
) -> None:
    """A reader that has the first token gets the second one and the end, from either route."""
    answer = await client.post(STREAM, json=TEXT)
    last_seen = {"Last-Event-ID": first_event_id(answer.text)}

    rest = await client.get(f"/v1/jobs/{answer.headers['X-Job-Id']}/events", headers=last_seen)
    parsed = events(rest.text)
    assert names_of(parsed) == ["token", "done"]
    _, token = parsed[0]
    _, done = parsed[1]
    assert token["token"] == "b"
    assert done.get("token") is None

    again = await client.post(STREAM, json=TEXT, headers=last_seen)
    assert names_of(events(again.text)) == ["token", "done"]


async def test_an_error_in_the_middle_is_an_event(redis: Redis, able: EchoWorker) -> None:
    able.gate.clear()
    failure = Failed("worker_failed", "It broke.")

    async with (
        live(redis) as (client, front),
        client.stream("POST", STREAM, json=TEXT) as answer,
    ):
        text = ""
        is_ended = False
        async for part in answer.aiter_text():
            text += part
            if "event: token" in text and not is_ended:
                is_ended = True
                await front.submissions.end([able.jobs[0].id], failure)

    parsed = events(text)
    assert names_of(parsed) == ["token", "error"]
    _, payload = parsed[1]
    assert payload == {
        "correlation_id": answer.headers["X-Job-Id"],
        "error": {"code": "worker_failed", "message": "It broke.", "details": {}},
    }


async def test_d77_the_correlation_id_cancels(redis: Redis, able: EchoWorker) -> None:
    able.gate.clear()

    async with live(redis) as (client, _), client.stream("POST", STREAM, json=TEXT) as answer:
        parts = answer.aiter_text()
        text = ""
        while "event: token" not in text:
            text += await anext(parts)

        [(_, token)] = events(text)
        cancelled = await client.post(f"/api/inference/cancel/{token['correlation_id']}")
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")

        async for part in parts:
            text += part

    name, payload = events(text)[-1]
    assert name == "error"
    assert payload["error"]["code"] == "cancelled"


async def test_who_hangs_up_cancels(redis: Redis, able: EchoWorker) -> None:
    able.gate.clear()
    async with live(redis) as (client, _):
        async with client.stream("POST", STREAM, json=TEXT) as answer:
            await anext(answer.aiter_raw())
        await until(lambda: is_cancelled(redis), "the job is cancelled")


async def test_d78_a_deadline_is_a_structured_error(redis: Redis, able: EchoWorker) -> None:
    able.gate.clear()
    async with live(redis, request_timeout_s=0.2) as (client, _):
        answer = await client.post(PATH, json=TEXT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


BAD: list[tuple[Any, str, str]] = [
    ({}, "inputs", "required"),
    ({"inputs": ""}, "inputs", "at least 1 character"),
    ({"inputs": 5}, "inputs", "valid string"),
    ({"inputs": ["a"]}, "inputs", "valid string"),
    (
        {"inputs": "a", "task": "mask-generation"},
        "task",
        "expected one of echo, text-generation",
    ),
    ({"inputs": "a", "task": 5}, "task", "name of a task"),
    (
        {"inputs": "a", "pipeline_tag": "mask-generation"},
        "pipeline_tag",
        "expected one of text-generation",
    ),
    ({"inputs": "a", "pipeline_tag": []}, "pipeline_tag", "name of a task"),
    ({"inputs": "a", "stream": "yes"}, "stream", "valid boolean"),
    ({"inputs": "a", "options": 5}, "options", "expected an object"),
    (
        TEXT | {"options": {"temperature": 3}},
        "options",
        "options.temperature: expected less than or equal to 2",
    ),
    (TEXT | {"options": {"max_new_tokens": 0}}, "options", "options.max_new_tokens: "),
    (TEXT | {"options": {"n": 2}}, "n", "not supported"),
    (
        {"inputs": "a", "task": "text-classification", "options": {"top_k": 0}},
        "options",
        "options.top_k: ",
    ),
    (
        {"inputs": "a", "task": "feature-extraction", "options": {"normalize": 1}},
        "options",
        "options.normalize: ",
    ),
    ([], "", "JSON object"),
]


@pytest.mark.parametrize(("body", "field", "expected"), BAD)
@pytest.mark.parametrize("path", [PATH, STREAM])
async def test_what_is_wrong_with_a_body(
    client: httpx.AsyncClient, able: EchoWorker, path: str, body: Any, field: str, expected: str
) -> None:
    """X7: a bad body is refused with 422 and an error of code, message and details."""
    answer = await client.post(
        path, content=json.dumps(body), headers={"Content-Type": "application/json"}
    )

    assert answer.status_code == 422
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "details"}
    assert error["code"] == "invalid_request"
    assert error["details"].get("field", "") == field
    assert expected in error["message"]
    assert able.jobs == []


async def test_a_model_that_is_not_there_or_cannot(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    unknown = await client.post(PATH, json=TEXT | {"model_id": "nobody"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")

    unable = await client.post(PATH, json={"inputs": "a", "task": "text-classification"})
    assert unable.status_code == 400
    assert unable.json()["error"]["message"] == (
        "model: 'echo' does not serve the task 'classify'; it serves 'generate', 'score', 'read'."
    )


async def test_d6_a_model_without_its_device(
    client: httpx.AsyncClient, worker: EchoWorker, redis: Redis
) -> None:
    """X23: a model that lacks its device is refused with 400, the code and the remedy.

    It is served once a worker has the device.
    """
    remedy = "model: 'big' requires a GPU; find one."
    lacking = WorkerInfo("cpu", "ready", (), obstacles={"big": remedy})
    await Presence(redis, ttl_s=60).announce(lacking)

    for path in (PATH, STREAM):
        answer = await client.post(path, json=TEXT | {"model_id": "big"})
        assert answer.status_code == 400
        assert answer.json()["error"] == {
            "code": "device_unavailable",
            "message": remedy,
            "details": {"field": "model"},
        }
    status = (await client.get("/api/models/status/big")).json()
    assert status["error"]["code"] == "device_unavailable"
    completion = await client.post("/v1/completions", json={"prompt": "a", "model": "big"})
    assert completion.status_code == 400

    await announce(redis, "big")
    await until(lambda: is_served(client, "big"), "a worker that has it is seen")


async def test_d91_d93_status(client: httpx.AsyncClient, worker: EchoWorker, redis: Redis) -> None:
    await announce(redis, "echo", "some/other", state="loading")
    expected = {
        "model_id": "echo",
        "status": "ready",
        "runner": "echo",
        "description": "echo for tests",
        "tasks": ["generate", "score", "read"],
        "context_window": 2048,
        "acceleration": {"device": "", "dtype": ""},
        "workers": 1,
        "loaded": 1,
        "in_flight": 0,
        "popularity": 0.0,
    }
    assert (await client.get("/api/models/status/echo")).json() == expected

    other = (await client.get("/api/models/status/some/other")).json()
    assert other == expected | {
        "model_id": "some/other",
        "status": "unavailable",
        "description": "some/other for tests",
        "workers": 0,
        "loaded": 0,
    }
    assert (await client.get("/api/models/status")).json() == {"models": [expected, other]}
    assert (await client.get("/api/models/status/nobody")).status_code == 404

    health = await client.get("/api/health")
    assert health.status_code == 200
    assert health.json() == {
        "status": "ok",
        "workers": {"loading": 1, "ready": 1, "draining": 0},
        "models": {"known": 2, "served": 1},
        "devices": [],
        "memory_bytes": 0,
        "in_flight": 0,
    }


async def test_d79_the_status_tells_how_popular_a_model_is(
    client: httpx.AsyncClient, worker: EchoWorker, redis: Redis
) -> None:
    # 10 jobs with a half-life of a minute: a job adds 0.693 a minute.
    await Popularity(Broker(redis), half_life_s=60).add({"echo": 10})
    status = (await client.get("/api/models/status/echo")).json()
    assert 6.5 < status["popularity"] <= 6.932


async def test_health_without_a_worker(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")


async def test_the_schema_describes_every_body(client: httpx.AsyncClient) -> None:
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    for name in (
        "TextGenerationRequest",
        "ClassificationRequest",
        "FeatureRequest",
        "EchoRequest",
        "InferenceResponse",
        "ModelStatus",
        "ModelStatuses",
        "ApiHealth",
        "TgiRequest",
    ):
        assert name in schemas
