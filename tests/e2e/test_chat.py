"""Chats, embeddings and token ids from HTTP to a worker and back, by the bytes on the wire."""

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
    async with fleet_inside(
        redis, {"echo": Echo(RunnerOptions("echo", name="echo", max_batch=4))}
    ) as client:
        yield client


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def told(client: httpx.AsyncClient, messages: list[dict[str, Any]]) -> str:
    """What the model reads, by its own tokens."""
    ids = (await post(client, "/tokenize", messages=messages))["tokens"]
    return str((await post(client, "/detokenize", tokens=ids))["prompt"])


async def test_a_chat_has_the_shape_of_openai(client: httpx.AsyncClient) -> None:
    """B20, B25, B27: the echo answers with the dialogue as its template writes it."""
    read = await told(client, HELLO)
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
                "message": {"role": "assistant", "content": (read * 5)[:5], "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {
            "prompt_tokens": len(read),
            "completion_tokens": 5,
            "total_tokens": len(read) + 5,
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
    split = [{"role": "developer", "content": "s"}, {"role": "user", "content": parts}, plain[2]]
    assert await told(client, split) == await told(client, plain)


async def test_a_streamed_chat_is_the_whole_one_in_parts(client: httpx.AsyncClient) -> None:
    """B22: the first delta of each choice names the role, the last chunk of each has an empty
    one."""
    body = {
        "messages": HELLO,
        "max_tokens": 4,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 1,
        "seed": 1,
    }
    whole = await post(client, "/v1/chat/completions", **body)
    stream = await client.post(
        "/v1/chat/completions",
        json=body | {"stream": True, "stream_options": {"include_usage": True}},
    )
    *chunks, last = [frame.json for frame in frames(stream)[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    for index in range(2):
        own = [part for chunk in chunks for part in chunk["choices"] if part["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert all("role" not in part["delta"] for part in own[1:])
        assert own[-1]["delta"] == {} and own[-1]["finish_reason"] == "length"
        assert all(part["finish_reason"] is None for part in own[:-1])
        choice = whole["choices"][index]
        assert (
            "".join(part["delta"].get("content", "") for part in own)
            == choice["message"]["content"]
        )
        logprobs = [
            item for part in own if part["logprobs"] for item in part["logprobs"]["content"]
        ]
        assert logprobs == choice["logprobs"]["content"]
        assert [item["token"] for item in logprobs] == list(choice["message"]["content"])
        assert logprobs[0]["top_logprobs"] == [
            {name: logprobs[0][name] for name in ("token", "logprob", "bytes")}
        ]


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
    """B51."""
    answer = await client.post("/v1/chat/completions", json={"messages": HELLO} | extra)
    assert answer.status_code == (404 if "model" in extra else 400)
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
    """B55: the echo's states are ones among zeros, so its vectors can be told beforehand."""
    numbers = await post(client, "/v1/embeddings", input=["ab", [97, 98]])
    packed = await post(client, "/v1/embeddings", input="ab", encoding_format="base64")
    [first, second] = [item["embedding"] for item in numbers["data"]]
    assert first == second == unpack(base64.b64decode(packed["data"][0]["embedding"]))
    assert sum(value * value for value in first) == pytest.approx(1, abs=1e-6)
    assert [item["index"] for item in numbers["data"]] == [0, 1]
    assert numbers["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    refused = await client.post("/v1/embeddings", json={"input": ""})
    assert refused.status_code == 400 and "input" in refused.json()["error"]["message"]


async def test_tokens_and_back(client: httpx.AsyncClient) -> None:
    found = await post(client, "/tokenize", prompt="héy", return_token_strs=True)
    assert found == {
        "count": 3,
        "max_model_len": 4096,
        "tokens": [104, 233, 121],
        "token_strs": ["h", "é", "y"],
    }
    assert await post(client, "/detokenize", tokens=[104, 233]) == {"prompt": "hé"}
    for body in ({}, {"prompt": "a", "messages": HELLO}):
        refused = await client.post("/tokenize", json=body)
        assert refused.status_code == 400 and "prompt" in refused.json()["error"]["message"]
