"""Chats, embeddings and token ids go from HTTP to a worker and back, by the bytes on the wire."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from shared.tasks.vectors import unpack
from tests.fixtures.api.frames import frames
from tests.fixtures.e2e.inside import fleet_inside
from worker.engine.runner import RunnerOptions
from worker.runners.echo import Echo

HELLO = [{"role": "user", "content": "abc"}]


@pytest.fixture
async def client(redis: Redis) -> AsyncIterator[httpx.AsyncClient]:
    echo = Echo(RunnerOptions("echo", name="echo", max_batch=4))
    async with fleet_inside(redis, {"echo": echo}) as client:
        yield client


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def rendered(client: httpx.AsyncClient, messages: list[dict[str, Any]]) -> str:
    """Return the prompt that the model reads, by its own tokens."""
    ids = (await post(client, "/tokenize", messages=messages))["tokens"]
    return str((await post(client, "/detokenize", tokens=ids))["prompt"])


async def test_a_chat_has_the_shape_of_openai(client: httpx.AsyncClient) -> None:
    """B20, B25, B27: the echo answers with the dialogue as its template writes it."""
    prompt = await rendered(client, HELLO)

    answer = await post(
        client, "/v1/chat/completions", messages=HELLO, max_completion_tokens=5, user="u"
    )

    assert answer.pop("id").startswith("chatcmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "chat.completion",
        "model": "echo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": (prompt * 5)[:5], "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {
            "prompt_tokens": len(prompt),
            "completion_tokens": 5,
            "total_tokens": len(prompt) + 5,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


async def test_every_role_and_content_in_parts(client: httpx.AsyncClient) -> None:
    parts = [{"type": "text", "text": "de"}, {"type": "text", "text": "f"}]
    plain = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "def"},
        {"role": "assistant", "content": ""},
    ]
    split = [
        {"role": "developer", "content": "s"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": ""},
    ]
    assert await rendered(client, split) == await rendered(client, plain)


async def test_a_streamed_chat_is_the_whole_one_in_parts(client: httpx.AsyncClient) -> None:
    """B22: the first delta of each choice names the role, and the last delta is empty."""
    body = {
        "messages": HELLO,
        "max_tokens": 4,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 1,
        "seed": 1,
    }
    whole = await post(client, "/v1/chat/completions", **body)
    streaming = {"stream": True, "stream_options": {"include_usage": True}}
    stream = await client.post("/v1/chat/completions", json=body | streaming)

    *chunks, last = [frame.json for frame in frames(stream)[:-1]]
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    for chunk in chunks:
        assert chunk["object"] == "chat.completion.chunk"
    for index in range(2):
        check_choice(parts_of(chunks, index), whole["choices"][index])


def parts_of(chunks: list[dict[str, Any]], index: int) -> list[dict[str, Any]]:
    """Return the parts of one choice in the order of the stream."""
    parts = []
    for chunk in chunks:
        for part in chunk["choices"]:
            if part["index"] == index:
                parts.append(part)
    return parts


def check_choice(parts: list[dict[str, Any]], choice: dict[str, Any]) -> None:
    """Check that the streamed parts add up to the whole choice."""
    assert parts[0]["delta"]["role"] == "assistant"
    for part in parts[1:]:
        assert "role" not in part["delta"]
    assert parts[-1]["delta"] == {}
    assert parts[-1]["finish_reason"] == "length"
    for part in parts[:-1]:
        assert part["finish_reason"] is None

    text = ""
    logprobs = []
    for part in parts:
        text += part["delta"].get("content", "")
        if part["logprobs"]:
            logprobs += part["logprobs"]["content"]
    assert text == choice["message"]["content"]
    assert logprobs == choice["logprobs"]["content"]
    assert [entry["token"] for entry in logprobs] == list(text)

    first = dict(logprobs[0])
    assert first.pop("top_logprobs") == [first]


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user"}]}, "content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "image_url",
        ),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_"),
        ({"temperature": 3}, "temperature"),
        ({"model": "nobody"}, "nobody"),
    ],
)
async def test_what_is_wrong_or_not_served_is_named(
    client: httpx.AsyncClient, extra: dict[str, Any], named: str
) -> None:
    """B51: the message of a refusal names the field."""
    answer = await client.post("/v1/chat/completions", json={"messages": HELLO} | extra)
    if "model" in extra:
        assert answer.status_code == 404
    else:
        assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]


async def test_what_asks_for_nothing_is_accepted(client: httpx.AsyncClient) -> None:
    await post(
        client,
        "/v1/chat/completions",
        messages=HELLO,
        max_tokens=1,
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        stop=None,
    )


async def test_embeddings_as_numbers_and_as_base64(client: httpx.AsyncClient) -> None:
    """B55: a text and its tokens have one vector of length one, as numbers and as base64."""
    numbers = await post(client, "/v1/embeddings", input=["ab", [97, 98]])
    packed = await post(client, "/v1/embeddings", input="ab", encoding_format="base64")

    first, second = numbers["data"]
    vector = first["embedding"]
    assert vector == second["embedding"]
    assert vector == unpack(base64.b64decode(packed["data"][0]["embedding"]))
    assert sum(value * value for value in vector) == pytest.approx(1, abs=1e-6)
    assert first["index"] == 0
    assert second["index"] == 1
    assert numbers["usage"] == {"prompt_tokens": 4, "total_tokens": 4}

    refused = await client.post("/v1/embeddings", json={"input": ""})
    assert refused.status_code == 400
    assert "input" in refused.json()["error"]["message"]


async def test_tokens_and_back(client: httpx.AsyncClient) -> None:
    tokenized = await post(client, "/tokenize", prompt="héy", return_token_strs=True)
    assert tokenized == {
        "count": 3,
        "max_model_len": 4096,
        "tokens": [104, 233, 121],
        "token_strs": ["h", "é", "y"],
    }
    assert await post(client, "/detokenize", tokens=[104, 233]) == {"prompt": "hé"}
    for body in ({}, {"prompt": "a", "messages": HELLO}):
        refused = await client.post("/tokenize", json=body)
        assert refused.status_code == 400
        assert "prompt" in refused.json()["error"]["message"]
