"""Wrong values of single fields.

Each is answered with a 400 and a message that names the field, and nothing reaches the queue.
Kinds of wrong bodies, on every endpoint, are in `test_wrong_input.py`."""

import json
from typing import Any

import httpx
import pytest

from tests.fixtures.api.echo_worker import EchoWorker

GENERATE: list[tuple[Any, str]] = [
    ({}, "prompts"),
    ({"prompts": []}, "prompts"),
    ({"prompts": "text"}, "prompts"),
    ({"prompts": [""]}, "prompts[0]"),
    ({"prompts": ["a", 5]}, "prompts[1]"),
    ({"prompts": ["\ud800"]}, "prompts[0]"),
    ({"prompts": ["a"] * 65}, "prompts"),
    ({"prompts": ["a"], "max_tokens": 0}, "max_tokens"),
    ({"prompts": ["a"], "max_tokens": "5"}, "max_tokens"),
    ({"prompts": ["a"], "max_tokens": True}, "max_tokens"),
    ({"prompts": ["a"], "temperature": 2.1}, "temperature"),
    ({"prompts": ["a"], "temperature": -0.1}, "temperature"),
    ({"prompts": ["a"], "temperature": float("nan")}, "temperature"),
    ({"prompts": ["a"], "temperature": "0.5"}, "temperature"),
    ({"prompts": ["a"], "top_p": 0}, "top_p"),
    ({"prompts": ["a"], "top_p": 1.1}, "top_p"),
    ({"prompts": ["a"], "seed": 1.5}, "seed"),
    ({"prompts": ["a"], "seed": 2**64}, "seed"),
    ({"prompts": ["a"], "stop": [""]}, "stop[0]"),
    ({"prompts": ["a"], "stop": ""}, "stop[0]"),
    ({"prompts": ["a"], "stop": ["x"] * 17}, "stop"),
    ({"prompts": ["a"], "stop": 5}, "stop"),
    ({"prompts": ["a"], "model": 5}, "model"),
    ({"prompts": ["a"], "condition": ""}, "condition"),
    ({"prompts": ["a"], "cycles": "2"}, "cycles"),
    ({"prompts": ["a"], "cycles": "2x0"}, "cycles"),
    ({"prompts": ["a"], "cycles": "2x3\n"}, "cycles"),
    ({"prompts": ["a"], "cycles": 2}, "cycles"),
    ({"prompts": ["a"], "max_steps": 0}, "max_steps"),
    ({"prompts": ["a"], "max_steps": "2"}, "max_steps"),
    ({"prompts": ["a"], "effort": "none"}, "effort"),
    ({"prompts": ["a"], "effort": "low", "max_steps": 1}, "at most one of cycles, max_steps"),
    ({"prompts": ["a"], "top_k": -2}, "top_k"),
    ({"prompts": ["a"], "top_k": 2**31}, "top_k"),
    ({"prompts": ["a"], "top_k": 1.5}, "top_k"),
    ({"prompts": ["a"], "min_p": 1.1}, "min_p"),
    ({"prompts": ["a"], "min_p": float("nan")}, "min_p"),
    ({"prompts": ["a"], "repetition_penalty": 0}, "repetition_penalty"),
    ({"prompts": ["a"], "repetition_penalty": float("inf")}, "repetition_penalty"),
    ({"prompts": ["a"], "min_tokens": -1}, "min_tokens"),
    ({"prompts": ["a"], "min_tokens": 6, "max_tokens": 5}, "min_tokens"),
    ({"prompts": ["a"], "min_tokens": 6, "max_new_tokens": 5}, "min_tokens"),
    ({"prompts": ["a"], "ignore_eos": 1}, "ignore_eos"),
    ({"prompts": ["a"], "stop_token_ids": 5}, "stop_token_ids"),
    ({"prompts": ["a"], "stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"prompts": ["a"], "stop_token_ids": [2, True]}, "stop_token_ids[1]"),
    ({"prompts": ["a"], "stop_token_ids": [2] * 65}, "stop_token_ids"),
    ({"prompts": ["a"], "presence_penalty": 2.5}, "presence_penalty"),
    ({"prompts": ["a"], "logit_bias": {"x": 1}}, "logit_bias"),
]

LOGLIKELIHOOD: list[tuple[Any, str]] = [
    ({"prompts": ["\ud800"], "continuations": ["a"]}, "prompts[0]"),
    ({"prompts": ["a"], "continuations": ["b"], "condition": "direct," * 20}, "condition"),
    ({"prompts": ["a"], "continuations": ["b"], "cycles": "2x"}, "cycles"),
    ({"prompts": ["a"]}, "continuations"),
    ({"prompts": [], "continuations": []}, "prompts"),
    ({"prompts": ["a", "b"], "continuations": ["c"]}, "got 2 prompts and 1 continuations"),
    ({"prompts": ["a"], "continuations": [""]}, "continuations[0]"),
    ({"prompts": ["a"], "continuations": ["b"], "scoring": "other"}, "scoring"),
]

ROLLING: list[tuple[Any, str]] = [
    ({}, "prompts"),
    ({"prompts": []}, "prompts"),
    ({"prompts": [""]}, "prompts[0]"),
    ({"prompts": ["a"] * 65}, "prompts"),
    ({"prompts": ["a"], "scoring": "other"}, "scoring"),
    ({"prompts": ["a"], "condition": ""}, "condition"),
]

COMPLETIONS: list[tuple[Any, str]] = [
    ({}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [1, True]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [[1], []]}, "prompt"),
    ({"prompt": "\udfff"}, "prompt"),
    ({"prompt": "a", "n": 0}, "n"),
    ({"prompt": "a", "n": 17}, "n"),
    ({"prompt": "a", "n": True}, "n"),
    ({"prompt": "a", "n": "2"}, "n"),
    ({"prompt": ["a"] * 5, "n": 16}, "n"),
    ({"prompt": ["a"] * 65}, "prompt"),
    ({"prompt": "a", "best_of": 2}, "best_of"),
    ({"prompt": "a", "n": 2, "best_of": 3}, "best_of"),
    ({"prompt": "a", "best_of": 1.5}, "best_of"),
    ({"prompt": "a", "echo": True, "stream": True}, "echo"),
    ({"prompt": "a", "echo": True, "n": 2}, "echo"),
    ({"prompt": "a", "echo": "yes"}, "echo"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "logprobs": -1}, "logprobs"),
    ({"prompt": "a", "logprobs": 6}, "logprobs"),
    ({"prompt": "a", "logprobs": True}, "logprobs"),
    ({"prompt": "a", "suffix": "x"}, "suffix"),
    ({"prompt": "a", "logit_bias": [5]}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"five": 1}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"-1": 1}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"99999999999": 1}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"5": 100.5}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"5": "1"}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"5": True}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"5": float("nan")}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"prompt": "a", "presence_penalty": -2.1}, "presence_penalty"),
    ({"prompt": "a", "frequency_penalty": 2.1}, "frequency_penalty"),
    ({"prompt": "a", "frequency_penalty": "1"}, "frequency_penalty"),
    ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
    ({"prompt": "a", "stream": "perhaps"}, "stream"),
    ({"prompt": "a", "stream_options": 5}, "stream_options"),
]


async def post(client: httpx.AsyncClient, path: str, body: Any) -> httpx.Response:
    return await client.post(
        path, content=json.dumps(body), headers={"Content-Type": "application/json"}
    )


@pytest.mark.parametrize(("body", "named"), GENERATE)
async def test_generate(
    client: httpx.AsyncClient, worker: EchoWorker, body: Any, named: str
) -> None:
    answer = await post(client, "/generate", body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "invalid_request"
    assert named in error["message"]
    assert worker.jobs == []


@pytest.mark.parametrize(("body", "named"), LOGLIKELIHOOD)
async def test_loglikelihood(
    client: httpx.AsyncClient, worker: EchoWorker, body: Any, named: str
) -> None:
    answer = await post(client, "/loglikelihood", body)
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]
    assert worker.jobs == []


@pytest.mark.parametrize(("body", "named"), ROLLING)
async def test_loglikelihood_rolling(
    client: httpx.AsyncClient, worker: EchoWorker, body: Any, named: str
) -> None:
    answer = await post(client, "/loglikelihood_rolling", body)
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]
    assert worker.jobs == []


@pytest.mark.parametrize(("body", "param"), COMPLETIONS)
async def test_completions(
    client: httpx.AsyncClient, worker: EchoWorker, body: Any, param: str
) -> None:
    answer = await post(client, "/v1/completions", body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert param in error["message"]
    assert worker.jobs == []


async def test_unknown_paths_and_methods(client: httpx.AsyncClient) -> None:
    assert (await client.get("/nothing")).json()["error"]["code"] == "not_found"
    answer = await client.get("/v1/completions")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert answer.json()["error"]["type"] == "invalid_request_error"
