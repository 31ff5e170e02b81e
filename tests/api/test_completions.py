"""`/v1/models` and `/v1/completions`, by the bytes on the wire and by the real `openai` client."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from redis.asyncio import Redis

from shared.messages import Failed, Generate
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.frames import frames, read
from tests.fixtures.api.fronts import live
from tests.fixtures.polling import DEADLINE_S, until


def openai_client(client: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="none", base_url=f"{client.base_url}/v1", max_retries=0)


@pytest.fixture
async def sdk(redis: Redis) -> AsyncIterator[openai.AsyncOpenAI]:
    async with live(redis) as (client, _), openai_client(client) as sdk:
        yield sdk


async def open_stream(client: httpx.AsyncClient, prompt: str) -> httpx.Response:
    """Send a completion request and return the answer as soon as its headers have come."""
    body = {"prompt": prompt, "stream": True}
    request = client.build_request("POST", "/v1/completions", json=body)
    return await client.send(request, stream=True)


async def test_models(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    model = {
        "id": "echo",
        "object": "model",
        "created": 0,
        "owned_by": "aios",
        "description": "echo for tests",
        "max_model_len": worker.model.context_window,
    }
    assert (await client.get("/v1/models")).json() == {"object": "list", "data": [model]}
    for name in ("echo", "local"):
        assert (await client.get(f"/v1/models/{name}")).json() == model

    unknown = await client.get("/v1/models/some/other")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_completion_has_the_shape_of_openai(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    worker.num_cached = 1
    body = {"prompt": "one two", "model": "local", "user": "u"}

    answer = (await client.post("/v1/completions", json=body)).json()

    assert answer.pop("id").startswith("cmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "text_completion",
        "model": "echo",
        "choices": [{"index": 0, "text": "one two", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 2,
            "total_tokens": 4,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    }

    # OpenAI's defaults.
    task = worker.jobs[0].task
    assert isinstance(task, Generate)
    assert task.sampling.max_tokens == 16
    assert task.sampling.temperature == 1.0
    assert task.sampling.top_p == 1.0


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a b", ["a b"]),
        (["a", "b"], ["a", "b"]),
        ([7, 8], ["#7 #8 "]),
        ([[7], [8, 9]], ["#7 ", "#8 #9 "]),
    ],
)
async def test_all_forms_of_a_prompt(
    client: httpx.AsyncClient, worker: EchoWorker, prompt: Any, texts: list[str]
) -> None:
    answer = (await client.post("/v1/completions", json={"prompt": prompt})).json()
    assert [choice["text"] for choice in answer["choices"]] == texts


async def test_what_a_stream_looks_like(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    body = {
        "prompt": "a b c",
        "max_tokens": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = await client.post("/v1/completions", json=body)

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "content-length" not in answer.headers
    assert answer.text.startswith("retry: 1000\nid: ")

    opening, first, second, usage, done = frames(answer)
    for frame, text, finish_reason in (
        (opening, "", None),
        (first, "a ", None),
        (second, "b ", "length"),
    ):
        assert frame.text == text
        assert frame.json["choices"][0]["finish_reason"] == finish_reason
        assert frame.json["usage"] is None
    assert usage.json["choices"] == []
    assert usage.json["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert done.data == "[DONE]"

    id = f"cmpl-{answer.headers['X-Job-Id']}"
    for frame in (opening, first, second, usage):
        assert frame.json["id"] == id


async def test_a_stream_of_several_prompts_is_told_apart_by_index(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    prompts = ["a b c", "d", "e f"]

    answer = await client.post("/v1/completions", json={"prompt": prompts, "stream": True})

    texts = ["", "", ""]
    for frame in frames(answer)[:-1]:
        [choice] = frame.json["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == prompts
    assert "usage" not in answer.text


async def test_a_failure_before_the_first_token_decides_the_status(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    worker.failure = Failed("invalid_request", "The prompt is too long.", "prompt")
    answer = await client.post("/v1/completions", json={"prompt": "a", "stream": True})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt"


async def test_a_failure_in_mid_stream_is_an_event_and_then_the_end(
    redis: Redis, worker: EchoWorker
) -> None:
    worker.gate.clear()
    async with live(redis, request_timeout_s=5) as (client, _):
        answer = await client.post("/v1/completions", json={"prompt": "a b", "stream": True})

    opening, first, error, done = frames(answer)
    assert opening.text == ""
    assert first.text == "a "
    assert error.json["error"]["code"] == "deadline_exceeded"
    assert done.data == "[DONE]"


async def test_keep_alives_while_nothing_comes(redis: Redis, worker: EchoWorker) -> None:
    worker.gate.clear()
    async with live(redis, keepalive_s=0.05) as (client, _):
        answer = await open_stream(client, "a b")
        lines = answer.aiter_lines()

        num_keepalives = 0
        while num_keepalives < 3:
            if await anext(lines) == ": keep-alive":
                num_keepalives += 1

        worker.gate.set()
        assert "data: [DONE]" in [line async for line in lines]


async def test_openai_client_sync(sdk: openai.AsyncOpenAI, worker: EchoWorker) -> None:
    assert [model.id async for model in sdk.models.list()] == ["echo"]

    answer = await sdk.completions.create(
        model="echo", prompt=["one two", "three"], max_tokens=5, seed=1, stop=["x"]
    )
    first, second = answer.choices
    assert first.text == "one two"
    assert second.text == "three"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 6


async def test_openai_client_stream(sdk: openai.AsyncOpenAI, worker: EchoWorker) -> None:
    stream = await sdk.completions.create(
        model="echo", prompt="one two three", stream=True, stream_options={"include_usage": True}
    )

    text = ""
    chunks = []
    async for chunk in stream:
        chunks.append(chunk)
        # The last chunk has the usage and no choice.
        if chunk.choices:
            text += chunk.choices[0].text

    assert text == "one two three"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


async def test_openai_client_errors(sdk: openai.AsyncOpenAI, worker: EchoWorker) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await sdk.completions.create(model="other", prompt="a")
    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"

    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.completions.create(model="echo", prompt="a", n=17)
    assert refused.value.param == "n"


async def test_openai_client_gets_an_error_in_mid_stream(redis: Redis, worker: EchoWorker) -> None:
    worker.gate.clear()
    async with live(redis, request_timeout_s=5) as (client, _), openai_client(client) as sdk:
        stream = await sdk.completions.create(model="echo", prompt="a b", stream=True)
        with pytest.raises(openai.APIError, match="took longer"):
            async for _chunk in stream:
                pass


async def test_tokens_are_sent_as_they_come(redis: Redis, worker: EchoWorker) -> None:
    worker.gate.clear()
    async with live(redis) as (client, _):
        answer = await open_stream(client, "a b")
        reader = read(answer.aiter_lines())

        # These frames come while the worker is held at its gate.
        opening = await asyncio.wait_for(anext(reader), DEADLINE_S)
        first = await asyncio.wait_for(anext(reader), DEADLINE_S)
        assert opening.text == ""
        assert first.text == "a "

        await until(lambda: len(worker.jobs) == 1, "the job is taken")
        worker.gate.set()
        rest = [frame async for frame in reader]
        assert rest[-1].data == "[DONE]"
