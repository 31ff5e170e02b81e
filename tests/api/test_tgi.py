"""The dialect of text-generation-inference, with `inputs` and `parameters`.

It is tested on the wire and with Hugging Face's client."""

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
from tests.fixtures.api.frames import Frame, frames, read
from tests.fixtures.api.fronts import live


def sampling_of(worker: EchoWorker) -> Sampling:
    task = worker.jobs[-1].task
    assert isinstance(task, Generate)
    return task.sampling


def bodies_of(events: list[Frame]) -> list[Any]:
    return [frame.json for frame in events]


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
    assert answer.status_code == 200
    assert answer.json() == {"generated_text": "Hello you"}

    sampling = sampling_of(worker)
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (16, 0.7, 0.9)
    assert sampling.logprobs is None
    assert (await client.post("/", json=body)).json() == [{"generated_text": "Hello you"}]


async def test_details_tell_of_each_token(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    parameters = {
        "details": True,
        "max_new_tokens": 2,
        "top_n_tokens": 1,
        "return_full_text": True,
        "seed": 5,
        "top_k": 9,
    }
    answer = await client.post("/generate", json={"inputs": "a b c", "parameters": parameters})

    first = {"id": 0, "text": "a ", "logprob": 0.0, "special": False}
    second = {"id": 1, "text": "b ", "logprob": -0.5, "special": False}
    assert answer.json() == {
        "generated_text": "a b ca b ",
        "details": {
            "finish_reason": "length",
            "generated_tokens": 2,
            "seed": 5,
            "prefill": [],
            "tokens": [first, second],
            "top_tokens": [[first], [second]],
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
    sampling = sampling_of(worker)
    assert (sampling.temperature, sampling.max_tokens) == (temperature, 100)


async def test_other_parameters_reach_the_worker(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    parameters = {
        "stop": ["x"],
        "truncate": 3,
        "repetition_penalty": 1.5,
        "frequency_penalty": 0.5,
        "best_of": 1,
    }
    body = {"inputs": "a", "parameters": parameters, "unknown": 1}
    assert (await client.post("/generate", json=body)).status_code == 200

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
    body = {"inputs": "a b", "parameters": {"do_sample": True, "seed": 3}}
    answer = await client.post(path, json=body | more)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert bodies_of(frames(answer)) == [
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
    answer = await client.post("/generate_stream", json={"inputs": "a b c"})
    location = f"/v1/jobs/{answer.headers['X-Job-Id']}/events"
    whole = frames(answer)
    for num_seen, frame in enumerate(whole, start=1):
        rest = await client.get(location, headers={"Last-Event-ID": frame.id})
        assert bodies_of(frames(rest)) == bodies_of(whole[num_seen:])


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
    status = 404 if "model" in body else 400
    assert answer.status_code == status

    problem = answer.json()
    assert set(problem) == {"error", "error_type"}
    assert named in problem["error"]
    assert problem["error_type"] == "validation"
    assert worker.jobs == []


async def test_a_failure_in_the_middle_is_the_last_frame(redis: Redis, worker: EchoWorker) -> None:
    worker.gate.clear()
    async with (
        live(redis) as (client, front),
        client.stream("POST", "/generate_stream", json={"inputs": "a b"}) as answer,
    ):
        events = read(answer.aiter_lines())
        first = await anext(events)
        assert first.json["token"]["text"] == "a "

        await front.submissions.end([worker.jobs[0].id], Failed("worker_failed", "It broke."))
        rest = [frame async for frame in events]
        assert bodies_of(rest) == [{"error": "It broke.", "error_type": "generation"}]


@pytest.mark.parametrize("path", ["", "/generate"])
async def test_the_client_of_hugging_face(address: str, worker: EchoWorker, path: str) -> None:
    """The client reads whole answers and streams, with and without details.

    It may be given the bare address or that of the endpoint."""

    def generate() -> tuple[Any, Any, list[Any], list[Any]]:
        client = InferenceClient(model=address.rstrip("/") + path, timeout=60)
        return (
            client.text_generation("a b c", max_new_tokens=2),
            client.text_generation("a b c", details=True),
            list(client.text_generation("a b c", stream=True)),
            list(client.text_generation("a b c", stream=True, details=True)),
        )

    text, detailed, pieces, detailed_pieces = await asyncio.to_thread(generate)

    assert text == "a b "
    assert pieces == ["a ", "b ", "c"]

    assert detailed.generated_text == "a b c"
    assert [token.text for token in detailed.details.tokens] == pieces
    assert detailed.details.finish_reason == "eos_token"
    assert detailed.details.generated_tokens == 3

    last = detailed_pieces[-1]
    assert (last.index, last.generated_text) == (3, "a b c")
    assert last.details.finish_reason == "eos_token"


async def test_the_client_of_hugging_face_knows_the_errors(
    address: str, worker: EchoWorker
) -> None:
    client = InferenceClient(model=address, timeout=60)
    with pytest.raises(ValidationError, match=r"parameters\.temperature"):
        await asyncio.to_thread(client.text_generation, "a", temperature=9.0)

    grammar: Any = {"type": "regex", "value": "a"}
    with pytest.raises(ValidationError, match="grammar"):
        await asyncio.to_thread(client.text_generation, "a", grammar=grammar)

    worker.failure = QueueFull("Too much.").as_event()
    with pytest.raises(OverloadedError, match="Too much"):
        await asyncio.to_thread(client.text_generation, "a")


async def test_a_stream_of_what_was_not_to_be_streamed(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    """The events of a whole answer have its text, but no log-probabilities."""
    answer = await client.post("/generate", json={"inputs": "a b"})
    events = await client.get(f"/v1/jobs/{answer.headers['X-Job-Id']}/events")

    first, last = bodies_of(frames(events))
    assert first["token"] == {"id": 0, "text": "a ", "logprob": None, "special": False}
    assert last["token"] == {"id": 1, "text": "b", "logprob": None, "special": False}
    assert last["generated_text"] == "a b"
