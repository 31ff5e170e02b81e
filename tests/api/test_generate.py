"""`/generate`: answers in order, usage, the token cap, seeds, options that reach the worker."""

from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from shared.messages import Generate
from tests.fixtures.api.echo_worker import EchoWorker, model_info
from tests.fixtures.api.fronts import in_memory


def task_of(worker: EchoWorker, number: int = 0) -> Generate:
    task = worker.jobs[number].task
    assert isinstance(task, Generate)
    return task


async def test_completions_come_in_the_order_of_the_prompts(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    prompts = [f"prompt number {number}" for number in range(20)]

    answer = await client.post("/generate", json={"prompts": prompts})

    assert answer.status_code == 200
    assert answer.json() == {
        "completions": prompts,
        "usage": {"prompt_tokens": 60, "completion_tokens": 60, "total_tokens": 120},
    }


async def test_defaults_of_shape_a(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    answer = await client.post("/generate", json={"prompts": ["a b"], "unknown": 1, "stop": None})

    assert "X-Effective-Max-Tokens" not in answer.headers
    task = task_of(worker)
    assert task.sampling.max_tokens == 128
    assert task.sampling.temperature == 0.7
    assert task.sampling.top_p == 1.0
    assert task.sampling.stop == ()
    assert task.condition is None
    assert worker.jobs[0].request_id == answer.headers["X-Request-Id"]


async def test_everything_given_reaches_the_worker(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    body = {
        "prompts": ["a", "b"],
        "max_tokens": 3,
        "temperature": 0,
        "top_p": 0.5,
        "seed": 7,
        "stop": "X",
        "model": "echo",
        "condition": "cot",
    }
    assert (await client.post("/generate", json=body)).status_code == 200

    for number in (0, 1):
        task = task_of(worker, number)
        assert task.sampling.max_tokens == 3
        assert task.sampling.temperature == 0.0
        assert task.sampling.top_p == 0.5
        assert task.sampling.seed == 7
        assert task.sampling.stop == ("X",)
        assert task.condition == "cot"


async def test_a_missing_seed_is_drawn_for_each_prompt(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    await client.post("/generate", json={"prompts": ["a", "a"]})

    first = task_of(worker, 0).sampling.seed
    second = task_of(worker, 1).sampling.seed
    assert first != second
    assert 0 <= first < 2**63
    assert 0 <= second < 2**63


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/generate_stream"])
async def test_a_fleet_may_have_a_seed_for_requests_that_name_none(
    path: str, redis: Redis, worker: EchoWorker
) -> None:
    without_seed: dict[str, Any]
    with_seed: dict[str, Any]
    if path == "/generate":
        without_seed = {"prompts": ["a"]}
        with_seed = {"prompts": ["a"], "seed": 5}
    elif path == "/v1/completions":
        without_seed = {"prompt": "a"}
        with_seed = {"prompt": "a", "seed": 5}
    else:
        without_seed = {"inputs": "a", "parameters": {"do_sample": True}}
        with_seed = {"inputs": "a", "parameters": {"do_sample": True, "seed": 5}}

    async with in_memory(redis, seed=41) as client:
        for body in (without_seed, without_seed, with_seed):
            assert (await client.post(path, json=body)).status_code == 200

    assert [task_of(worker, number).sampling.seed for number in range(3)] == [41, 41, 5]


async def test_an_explicit_max_tokens_over_the_cap_is_clamped(
    redis: Redis, worker: EchoWorker
) -> None:
    async with in_memory(redis, max_new_tokens=2) as client:
        answer = await client.post("/generate", json={"prompts": ["a b c"], "max_tokens": 10})

    assert answer.json()["completions"] == ["a b "]
    assert answer.headers["X-Effective-Max-Tokens"] == "2"


async def test_an_explicit_max_tokens_over_the_cap_is_refused_by_policy(
    redis: Redis, worker: EchoWorker
) -> None:
    async with in_memory(redis, max_new_tokens=2, cap_policy="reject") as client:
        answer = await client.post("/generate", json={"prompts": ["a b c"], "max_new_tokens": 10})
        default = await client.post("/generate", json={"prompts": ["a b c"]})

    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "max_tokens: expected at most 2, got 10."
    # The default is over the cap too, but nobody asked for it: it is clamped.
    assert default.status_code == 200
    assert default.headers["X-Effective-Max-Tokens"] == "2"


async def test_the_models_own_cap_counts_too(redis: Redis, redis_url: str) -> None:
    async with EchoWorker(redis_url, model_info(max_new_tokens=1)), in_memory(redis) as client:
        answer = await client.post("/generate", json={"prompts": ["a b c"]})

    assert answer.json()["completions"] == ["a "]
    assert answer.headers["X-Effective-Max-Tokens"] == "1"


async def test_truncation_is_told(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    # The worker cuts so many tokens off each prompt.
    worker.num_truncated = 5

    answer = await client.post("/generate", json={"prompts": ["a", "b"]})
    assert answer.headers["X-Truncated-Prompt-Tokens"] == "10"
