"""Prompts that are too long (X3, X20).

Each dialect has its way to treat them, and its caller learns how they were treated."""

from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from shared.messages import Failed, Generate
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import in_memory

REFUSAL = Failed(
    "context_length_exceeded", "This model's maximum context length is 9 tokens.", "prompt"
)


@pytest.mark.parametrize(
    ("more", "overflow", "most"),
    [
        ({}, "clamp", None),
        ({"max_tokens": None}, "clamp", None),
        ({"max_tokens": 5}, "refuse", None),
        ({"max_tokens": 5, "truncate_prompt_tokens": -1}, "truncate", None),
        ({"truncate_prompt_tokens": 7}, "truncate", 7),
    ],
)
async def test_openai_refuses_unless_told_otherwise(
    client: httpx.AsyncClient,
    worker: EchoWorker,
    more: dict[str, Any],
    overflow: str,
    most: int | None,
) -> None:
    answer = await client.post("/v1/completions", json={"prompt": "a"} | more)
    assert answer.status_code == 200

    task = worker.jobs[0].task
    assert isinstance(task, Generate)
    assert (task.overflow, task.max_prompt_tokens) == (overflow, most)


async def test_the_seed_dialect_truncates(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    answer = await client.post("/generate", json={"prompts": ["a"], "max_tokens": 5})
    assert answer.status_code == 200

    task = worker.jobs[0].task
    assert isinstance(task, Generate)
    assert (task.overflow, task.max_prompt_tokens) == ("truncate", None)


@pytest.mark.parametrize("value", [0, -2, "5", 1.5, True, 2**31, [5]])
async def test_a_cut_to_nothing_is_refused(
    client: httpx.AsyncClient, worker: EchoWorker, value: Any
) -> None:
    answer = await client.post(
        "/v1/completions", json={"prompt": "a", "truncate_prompt_tokens": value}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "truncate_prompt_tokens"
    assert worker.jobs == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_has_openais_shape(
    client: httpx.AsyncClient, worker: EchoWorker, stream: bool
) -> None:
    worker.failure = REFUSAL
    answer = await client.post("/v1/completions", json={"prompt": "a", "stream": stream})
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": REFUSAL.message,
        "type": "invalid_request_error",
        "param": "prompt",
        "code": "context_length_exceeded",
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_openai_callers_are_told_what_gave_way(
    client: httpx.AsyncClient, worker: EchoWorker, stream: bool
) -> None:
    worker.num_truncated = 5
    worker.max_tokens = 3
    answer = await client.post("/v1/completions", json={"prompt": "a b", "stream": stream})
    assert answer.status_code == 200
    assert answer.headers["X-Truncated-Prompt-Tokens"] == "5"
    assert answer.headers["X-Effective-Max-Tokens"] == "3"


@pytest.mark.parametrize(("window", "expected"), [(None, "8"), (3, "3")])
async def test_the_smaller_limit_is_told(
    redis: Redis, worker: EchoWorker, window: int | None, expected: str
) -> None:
    """The front's cap allows 8 tokens, the context window 3; the answer has the smaller limit."""
    worker.max_tokens = window
    prompts = ["a", "b"]
    async with in_memory(redis, max_new_tokens=8) as client:
        plain = await client.post("/generate", json={"prompts": prompts, "max_tokens": 10})
        openai = await client.post("/v1/completions", json={"prompt": prompts, "max_tokens": 10})

    for answer in (plain, openai):
        assert answer.headers["X-Effective-Max-Tokens"] == expected
        assert "X-Truncated-Prompt-Tokens" not in answer.headers


async def test_a_default_over_the_cap_is_clamped_without_an_error(
    redis: Redis, worker: EchoWorker
) -> None:
    async with in_memory(redis, max_new_tokens=2, cap_policy="reject") as client:
        answer = await client.post("/v1/completions", json={"prompt": "a b c"})
        refused = await client.post("/v1/completions", json={"prompt": "a b c", "max_tokens": 3})

    assert (answer.status_code, answer.headers["X-Effective-Max-Tokens"]) == (200, "2")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")


async def test_truncation_of_a_context_is_told(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    worker.num_truncated = 4
    answer = await client.post(
        "/loglikelihood", json={"prompts": ["a", "b"], "continuations": ["c", "d"]}
    )
    # The sum over both jobs.
    assert answer.headers["X-Truncated-Prompt-Tokens"] == "8"
    assert "X-Effective-Max-Tokens" not in answer.headers


@pytest.mark.parametrize(
    "stop", [5, 1.5, True, {}, {"a": "b"}, [5], [["x"]], [{}], [None], "", ["a", ""], ["x"] * 17]
)
async def test_a_stop_of_another_kind_is_refused_in_both_dialects(
    client: httpx.AsyncClient, worker: EchoWorker, stop: Any
) -> None:
    plain = await client.post("/generate", json={"prompts": ["a"], "stop": stop})
    openai = await client.post("/v1/completions", json={"prompt": "a", "stop": stop})

    assert plain.status_code == 400
    assert plain.json()["error"]["field"] == "stop"
    assert plain.json()["error"]["message"].startswith("stop")

    assert openai.status_code == 400
    assert openai.json()["error"]["param"] == "stop"

    assert worker.jobs == []
