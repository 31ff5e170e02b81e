"""Sampling fields and choices through both dialects.

Every field reaches the worker, and several choices come back in OpenAI's order."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from redis.asyncio import Redis

from api.schemas.fields import MAX_CHOICES
from shared.messages import Generate, Sampling
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.frames import frames
from tests.fixtures.api.fronts import live

EXTRAS: dict[str, Any] = {
    "top_k": 7,
    "min_p": 0.25,
    "repetition_penalty": 1.5,
    "presence_penalty": -0.5,
    "frequency_penalty": 2,
    "logit_bias": {"5": -100, "17": 0.5},
    "stop_token_ids": [3, 4],
    "ignore_eos": True,
    "min_tokens": 2,
    "seed": 9,
}


@pytest.fixture
async def sdk(redis: Redis) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        live(redis) as (client, _),
        openai.AsyncOpenAI(api_key="none", base_url=f"{client.base_url}/v1", max_retries=0) as sdk,
    ):
        yield sdk


def sampling_of(worker: EchoWorker) -> Sampling:
    task = worker.jobs[-1].task
    assert isinstance(task, Generate)
    return task.sampling


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a b", "n": 2, "logprobs": 3}),
        ("/generate", {"prompts": ["a"]}),
    ],
)
async def test_every_field_reaches_the_worker(
    client: httpx.AsyncClient, worker: EchoWorker, path: str, body: dict[str, Any]
) -> None:
    answer = await client.post(
        path, json=body | EXTRAS | {"max_tokens": 4, "temperature": 0.5, "top_p": 0.75}
    )
    assert answer.status_code == 200

    # Only OpenAI's dialect has `n` and `logprobs`.
    is_openai = path.startswith("/v1")
    assert sampling_of(worker) == Sampling(
        max_tokens=4,
        seed=9,
        temperature=0.5,
        top_p=0.75,
        top_k=7,
        n=2 if is_openai else 1,
        min_p=0.25,
        min_tokens=2,
        ignore_eos=True,
        stop_ids=(3, 4),
        logit_bias=((5, -100.0), (17, 0.5)),
        presence_penalty=-0.5,
        frequency_penalty=2.0,
        repetition_penalty=1.5,
        logprobs=3 if is_openai else None,
    )


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/completions", {"prompt": "a b"}), ("/generate", {"prompts": ["a"]})]
)
async def test_null_is_not_given(
    client: httpx.AsyncClient, worker: EchoWorker, path: str, body: dict[str, Any]
) -> None:
    nulls = dict.fromkeys([*EXTRAS, "n", "best_of", "logprobs", "echo", "suffix"])
    assert (await client.post(path, json=body | nulls)).status_code == 200

    # All else has its default.
    sampling = sampling_of(worker)
    assert sampling == Sampling(
        max_tokens=sampling.max_tokens, seed=sampling.seed, temperature=sampling.temperature
    )


@pytest.mark.parametrize("top_k", [0, -1])
async def test_both_spellings_of_no_top_k(
    client: httpx.AsyncClient, worker: EchoWorker, top_k: int
) -> None:
    await client.post("/generate", json={"prompts": ["a"], "top_k": top_k})
    assert sampling_of(worker).top_k == 0


async def test_choices_of_a_prompt_stand_together(
    sdk: openai.AsyncOpenAI, worker: EchoWorker
) -> None:
    """A choice's index is prompt * n + choice, as OpenAI orders them.

    The tokens of a prompt count once, however many choices it has."""
    answer = await sdk.completions.create(
        model="echo", prompt=["a b c", "d e"], n=2, best_of=2, max_tokens=2
    )

    choices = [(choice.index, choice.text, choice.finish_reason) for choice in answer.choices]
    assert choices == [
        (0, "a b ", "length"),
        (1, "b c", "stop"),
        (2, "d e", "stop"),
        (3, "e", "stop"),
    ]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 7)
    assert len(worker.jobs) == 2


async def test_as_many_choices_as_are_allowed(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    answer = await client.post("/v1/completions", json={"prompt": ["a"] * 4, "n": MAX_CHOICES})
    indices = [choice["index"] for choice in answer.json()["choices"]]
    assert indices == list(range(64))


async def test_a_stream_ends_each_choice_once(sdk: openai.AsyncOpenAI, worker: EchoWorker) -> None:
    """A choice without any text ends too, although only the end of its job says so."""
    stream = await sdk.completions.create(
        model="echo", prompt=["a b c", "d"], n=2, max_tokens=2, stream=True
    )

    texts = ["", "", "", ""]
    finish_reasons: list[str | None] = [None, None, None, None]
    async for chunk in stream:
        [choice] = chunk.choices
        assert finish_reasons[choice.index] is None, "text after the end"
        texts[choice.index] += choice.text
        if choice.finish_reason:
            finish_reasons[choice.index] = choice.finish_reason

    assert texts == ["a b ", "b c", "d", ""]
    assert finish_reasons == ["length", "stop", "stop", "stop"]


async def test_logprobs_have_the_legacy_shape(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    """The chosen token is in every top list.

    Tokens that have no text, or the text of another token, are named by their ids."""
    body = {"prompt": "aa b", "logprobs": 4, "n": 2}
    choices = (await client.post("/v1/completions", json=body)).json()["choices"]
    assert choices[0]["logprobs"] == {
        "tokens": ["aa ", "b"],
        "token_logprobs": [0.0, -0.5],
        "top_logprobs": [
            {"aa ": 0.0, "!": -9.0, "token_id:100": -10.0, "token_id:101": -11.0},
            {"b": -0.5, "!": -9.0, "token_id:100": -10.0, "token_id:101": -11.0},
        ],
        "text_offset": [0, 3],
    }
    assert choices[1]["logprobs"]["tokens"] == ["b"]


async def test_logprobs_zero_tells_of_the_chosen_token_alone(
    sdk: openai.AsyncOpenAI, worker: EchoWorker
) -> None:
    answer = await sdk.completions.create(model="echo", prompt="aa b", logprobs=0)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs == [0.0, -0.5]
    assert logprobs.top_logprobs == [{"aa ": 0.0}, {"b": -0.5}]

    without = await sdk.completions.create(model="echo", prompt="aa b")
    assert without.choices[0].logprobs is None


async def test_streamed_logprobs_are_the_whole_ones_in_parts(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    body = {"prompt": ["aa b ccc", "d e"], "logprobs": 2, "n": 2}
    whole = (await client.post("/v1/completions", json=body)).json()["choices"]
    streamed = await client.post("/v1/completions", json=body | {"stream": True})

    joined: list[dict[str, list[Any]]] = [{}, {}, {}, {}]
    for frame in frames(streamed)[1:-1]:
        [choice] = frame.json["choices"]
        for name, values in choice["logprobs"].items():
            joined[choice["index"]].setdefault(name, []).extend(values)

    assert joined == [choice["logprobs"] for choice in whole]
