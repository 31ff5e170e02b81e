"""`inputs` and `parameters`: the wire as text-generation-inference has it, and Hugging Face's own
client."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import OverloadedError, ValidationError
from redis.asyncio import Redis

from shared.errors import QueueFull
from shared.messages import Failed, Generate, Sampling
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.frames import frames, read
from tests.fixtures.api.fronts import live


def sampling_of(worker: EchoWorker) -> Sampling:
    task = worker.jobs[-1].task
    assert isinstance(task, Generate)
    return task.sampling


@pytest.fixture
async def address(redis: Redis) -> AsyncIterator[str]:
    async with live(redis) as (client, _):
        yield str(client.base_url)


async def test_a91_the_callers_shape(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    body = {
        "inputs": "Hello you",
        "parameters": {"max_new_tokens": 16, "temperature": 0.7, "top_p": 0.9},
    }
    answer = await client.post("/generate", json=body)
    assert (answer.status_code, answer.json()) == (200, {"generated_text": "Hello you"})
    sampling = sampling_of(worker)
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (16, 0.7, 0.9)
    assert sampling.logprobs is None
    assert (await client.post("/", json=body)).json() == [{"generated_text": "Hello you"}]


async def test_details_tell_of_each_token(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    given = {
        "details": True,
        "max_new_tokens": 2,
        "top_n_tokens": 1,
        "return_full_text": True,
        "seed": 5,
        "top_k": 9,
    }
    answer = await client.post("/generate", json={"inputs": "a b c", "parameters": given})
    tokens = [
        {"id": 0, "text": "a ", "logprob": 0.0, "special": False},
        {"id": 1, "text": "b ", "logprob": -0.5, "special": False},
    ]
    assert answer.json() == {
        "generated_text": "a b ca b ",
        "details": {
            "finish_reason": "length",
            "generated_tokens": 2,
            "seed": 5,
            "prefill": [],
            "tokens": tokens,
            "top_tokens": [tokens[:1], tokens[1:]],
        },
    }


@pytest.mark.parametrize(
    ("given", "temperature"),
    [
        ({}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"temperature": 0.5}, 0.5),
        ({"top_k": 5}, 1.0),
        ({"top_p": 0.5, "do_sample": False}, 0.0),
        ({"temperature": None, "top_p": None}, 0.0),
    ],
)
async def test_when_it_is_greedy(
    client: httpx.AsyncClient, worker: EchoWorker, given: dict[str, Any], temperature: float
) -> None:
    await client.post("/generate", json={"inputs": "a", "parameters": given})
    assert (sampling_of(worker).temperature, sampling_of(worker).max_tokens) == (temperature, 100)


async def test_other_parameters_reach_the_worker(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    given = {
        "stop": ["x"],
        "truncate": 3,
        "repetition_penalty": 1.5,
        "frequency_penalty": 0.5,
        "best_of": 1,
    }
    answer = await client.post("/generate", json={"inputs": "a", "parameters": given, "unknown": 1})
    assert answer.status_code == 200
    task = worker.jobs[0].task
    assert isinstance(task, Generate)
    assert (task.max_prompt_tokens, task.overflow, task.sampling.stop) == (3, "truncate", ("x",))
    assert (task.sampling.repetition_penalty, task.sampling.frequency_penalty) == (1.5, 0.5)


@pytest.mark.parametrize(
    ("path", "more"),
    [("/generate_stream", {}), ("/generate", {"stream": True}), ("/", {"stream": True})],
)
async def test_frames_of_a_stream(
    client: httpx.AsyncClient, worker: EchoWorker, path: str, more: dict[str, Any]
) -> None:
    answer = await client.post(
        path, json={"inputs": "a b", "parameters": {"do_sample": True, "seed": 3}} | more
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [frame.json for frame in frames(answer)] == [
        {
            "index": 1,
            "token": {"id": 0, "text": "a ", "logprob": 0.0, "special": False},
            "generated_text": None,
            "details": None,
        },
        {
            "index": 2,
            "token": {"id": 1, "text": "b", "logprob": -0.5, "special": False},
            "generated_text": "a b",
            "details": {
                "finish_reason": "eos_token",
                "generated_tokens": 2,
                "seed": 3,
                "input_length": 2,
            },
        },
    ]


async def test_a_reader_goes_on_behind_any_frame(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    whole = await client.post("/generate_stream", json={"inputs": "a b c"})
    told = frames(whole)
    for at, frame in enumerate(told):
        headers = {"Last-Event-ID": frame.id}
        rest = await client.get(f"/v1/jobs/{whole.headers['X-Job-Id']}/events", headers=headers)
        assert [other.json for other in frames(rest)] == [other.json for other in told[at + 1 :]]


BAD: list[tuple[Any, str]] = [
    ({"inputs": ""}, "inputs"),
    ({"inputs": 5}, "inputs"),
    ({"inputs": ["a"]}, "inputs"),
    ({"inputs": "\ud800"}, "inputs"),
    ({"inputs": "a", "parameters": 5}, "parameters"),
    ({"inputs": "a", "parameters": {"temperature": 3}}, "parameters.temperature"),
    ({"inputs": "a", "parameters": {"max_new_tokens": 0}}, "parameters.max_new_tokens"),
    ({"inputs": "a", "parameters": {"max_new_tokens": "5"}}, "parameters.max_new_tokens"),
    ({"inputs": "a", "parameters": {"best_of": 2}}, "best_of"),
    ({"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": "a"}}}, "grammar"),
    ({"inputs": "a", "parameters": {"decoder_input_details": True}}, "decoder_input_details"),
    ({"inputs": "a", "parameters": {"top_n_tokens": 6}}, "parameters.top_n_tokens"),
    ({"inputs": "a", "parameters": {"truncate": 0}}, "parameters.truncate"),
    ({"inputs": "a", "parameters": {"details": 1}}, "parameters.details"),
    ({"inputs": "a", "prompts": ["a"]}, "exactly one of prompts"),
    ({"inputs": "a", "model": "nobody"}, "model: 'nobody' does not exist"),
]


@pytest.mark.parametrize(("body", "named"), BAD)
@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_what_is_wrong_with_a_body(
    client: httpx.AsyncClient, worker: EchoWorker, path: str, body: Any, named: str
) -> None:
    answer = await client.post(
        path, content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == (404 if "model" in body else 400)
    assert set(answer.json()) == {"error", "error_type"}
    assert named in answer.json()["error"]
    assert answer.json()["error_type"] == "validation"
    assert worker.jobs == []


async def test_a_failure_in_the_middle_is_the_last_frame(redis: Redis, worker: EchoWorker) -> None:
    worker.gate.clear()
    async with (
        live(redis) as (client, front),
        client.stream("POST", "/generate_stream", json={"inputs": "a b"}) as answer,
    ):
        coming = read(answer.aiter_lines())
        assert (await anext(coming)).json["token"]["text"] == "a "
        await front.submissions.end([worker.jobs[0].id], Failed("worker_failed", "It broke."))
        assert [frame.json async for frame in coming] == [
            {"error": "It broke.", "error_type": "generation"}
        ]


@pytest.mark.parametrize("path", ["", "/generate"])
async def test_the_client_of_hugging_face(address: str, worker: EchoWorker, path: str) -> None:
    """Whole, token by token, with and without details, from the bare address and from the
    endpoint's."""

    def ask() -> list[Any]:
        client = InferenceClient(model=address.rstrip("/") + path, timeout=60)
        text = client.text_generation("a b c", max_new_tokens=2)
        whole = client.text_generation("a b c", details=True)
        pieces = list(client.text_generation("a b c", stream=True))
        *_, last = client.text_generation("a b c", stream=True, details=True)
        return [text, whole, pieces, last]

    text, whole, pieces, last = await asyncio.to_thread(ask)
    assert (text, whole.generated_text, pieces) == ("a b ", "a b c", ["a ", "b ", "c"])
    assert [token.text for token in whole.details.tokens] == pieces
    assert (whole.details.finish_reason, whole.details.generated_tokens) == ("eos_token", 3)
    assert (last.index, last.generated_text, last.details.finish_reason) == (
        3,
        "a b c",
        "eos_token",
    )


async def test_the_client_of_hugging_face_knows_the_errors(
    address: str, worker: EchoWorker
) -> None:
    client = InferenceClient(model=address, timeout=60)
    with pytest.raises(ValidationError, match=r"parameters\.temperature"):
        await asyncio.to_thread(client.text_generation, "a", temperature=9.0)
    with pytest.raises(ValidationError, match="grammar"):
        grammar: Any = {"type": "regex", "value": "a"}
        await asyncio.to_thread(client.text_generation, "a", grammar=grammar)
    worker.failure = QueueFull("Too much.").as_event()
    with pytest.raises(OverloadedError, match="Too much"):
        await asyncio.to_thread(client.text_generation, "a")


async def test_a_stream_of_what_was_not_to_be_streamed(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    """Its log-probabilities were not asked for; the text is whole all the same."""
    answer = await client.post("/generate", json={"inputs": "a b"})
    told = frames(await client.get(f"/v1/jobs/{answer.headers['X-Job-Id']}/events"))
    assert [frame.json["token"] for frame in told] == [
        {"id": 0, "text": "a ", "logprob": None, "special": False},
        {"id": 1, "text": "b", "logprob": None, "special": False},
    ]
    assert told[-1].json["generated_text"] == "a b"
