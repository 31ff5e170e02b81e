"""OpenAI's own Python client against real processes: a fleet of front, worker and Redis with the
sample model."""

import math
from collections.abc import Iterator

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from redis.asyncio import Redis

from shared.settings.settings import SAMPLE_MODEL
from tests.fixtures.e2e.aios_keys import aios_keys
from tests.fixtures.e2e.fleet import front, start_worker
from tests.fixtures.e2e.serving import serving
from tests.fixtures.polling import wait_until

QUESTION = "Solve for x: 4x - 2 = 10"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A worker with two places for each model, so that a choice which is not freed would be
    missed."""
    models = (
        "--model",
        f"sample={SAMPLE_MODEL}",
        "--model",
        "echo=echo",
        "--default-model",
        "sample",
    )
    with serving(
        *models, "--threads", "1", "--max-batch-size", "2", "--max-new-tokens", "400"
    ) as fleet:
        yield fleet.url


@pytest.fixture
def sdk(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_models(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["echo", "sample"]
    assert sdk.models.retrieve("sample").owned_by == "aios"


def test_a_completion_with_choices_and_logprobs(sdk: openai.OpenAI) -> None:
    """The first choice says what one alone says; the logprob of a token is among its likeliest."""
    asked = {"model": "sample", "prompt": QUESTION, "max_tokens": 12, "seed": 3, "logprobs": 2}
    one = sdk.completions.create(**asked)  # type: ignore[call-overload]
    two = sdk.completions.create(**asked, n=2)  # type: ignore[call-overload]
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[0].text == one.choices[0].text
    logprobs = two.choices[0].logprobs
    assert "".join(logprobs.tokens) == two.choices[0].text
    for token, value, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert top[token] == value <= 0
        assert sum(math.exp(other) for other in top.values()) <= 1 + 1e-9
    assert two.usage.completion_tokens == 24 and two.usage.prompt_tokens == one.usage.prompt_tokens


def test_a_chat_whole_and_streamed(sdk: openai.OpenAI) -> None:
    """The stream adds up to the whole answer, its log-probabilities and its usage."""
    asked = {
        "model": "sample",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 100,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 1,
        "n": 2,
    }
    whole = sdk.chat.completions.create(**asked)  # type: ignore[call-overload]
    chunks = list(
        sdk.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )  # type: ignore[call-overload]
    assert whole.choices[0].message.content.endswith("x = 3")
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    for choice in whole.choices:
        assert choice.finish_reason == "stop"
        assert streamed(chunks, choice.index) == choice.message.content
        assert tokens(chunks, choice.index) == [
            (item.token, item.logprob) for item in choice.logprobs.content
        ]


def streamed(chunks: list[ChatCompletionChunk], index: int) -> str:
    parts = [part for chunk in chunks for part in chunk.choices if part.index == index]
    assert parts[0].delta.role == "assistant" and parts[-1].finish_reason == "stop"
    return "".join(part.delta.content or "" for part in parts)


def tokens(chunks: list[ChatCompletionChunk], index: int) -> list[tuple[str, float]]:
    """Those that a choice's chunks tell of, with their log-probabilities."""
    logprobs = [
        part.logprobs
        for chunk in chunks
        for part in chunk.choices
        if part.index == index and part.logprobs
    ]
    return [(item.token, item.logprob) for found in logprobs for item in found.content or ()]


def test_embeddings_come_as_base64_unless_told_otherwise(sdk: openai.OpenAI) -> None:
    """The client asks for base64 by itself, and makes numbers of it."""
    texts = ["two and two", "four"]
    packed = [item.embedding for item in sdk.embeddings.create(model="sample", input=texts).data]
    plain = [
        item.embedding
        for item in sdk.embeddings.create(model="sample", input=texts, encoding_format="float").data
    ]
    assert packed == plain
    assert [len(vector) for vector in packed] == [128, 128]
    assert [sum(value * value for value in vector) for vector in packed] == pytest.approx(
        [1, 1], abs=1e-5
    )


def test_a_closed_stream_frees_its_places(sdk: openai.OpenAI, url: str) -> None:
    """Both places of the worker are taken by one request; what the client hangs up on is called
    off."""
    stream = sdk.completions.create(
        model="sample",
        prompt="Once",
        max_tokens=400,
        n=2,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    chunk = next(chunk for chunk in stream if chunk.choices[0].text)
    stream.close()
    job = f"{url}/v1/jobs/{chunk.id.removeprefix('cmpl-')}"
    wait_until(lambda: httpx.get(job).json()["state"] not in ("queued", "running"), "the job ends")
    told = httpx.get(job).json()
    assert told["state"] == "cancelled" and told["usage"]["completion_tokens"] < 2 * 400
    after = sdk.completions.create(model="sample", prompt=QUESTION, n=2, max_tokens=8)
    assert len(after.choices) == 2


def test_wrong_requests_raise_what_the_client_has_for_them(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        sdk.chat.completions.create(
            model="sample", messages=[{"role": "user", "content": "a"}], top_logprobs=2
        )
    assert (wrong.value.param, wrong.value.code) == ("top_logprobs", "invalid_request")
    with pytest.raises(openai.BadRequestError) as long:
        sdk.completions.create(model="sample", prompt="a" * 600, max_tokens=8)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.embeddings.create(model="nobody", input="a")
    assert (missing.value.param, missing.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("nobody")


async def test_refused_callers_get_the_right_exceptions(redis_url: str, redis: Redis) -> None:
    """401, 403, 429 and 503 with keys required: nobody serves, then a worker with two models
    comes."""
    async with front(redis_url, "--require-key", "yes") as running:
        base = f"{running.url}/v1"
        key = await aios_keys(redis_url, "create", "ann", "--models", "echo", "--rate", "3/600")
        async with openai.AsyncOpenAI(base_url=base, api_key=key, max_retries=0) as sdk:
            with pytest.raises(openai.InternalServerError) as nobody:
                await sdk.completions.create(model="echo", prompt="a")
            assert (nobody.value.status_code, nobody.value.code) == (503, "no_worker")
            worker = await start_worker(redis_url, redis, "--model", "other=echo")
            try:
                await running.ready()
                with pytest.raises(openai.AuthenticationError) as unknown:
                    await sdk.with_options(api_key="wrong").completions.create(
                        model="echo", prompt="a"
                    )
                assert unknown.value.code == "invalid_api_key"
                with pytest.raises(openai.PermissionDeniedError) as denied:
                    await sdk.completions.create(model="other", prompt="a")
                assert (denied.value.code, denied.value.param) == ("permission_denied", "model")
                assert [model.id async for model in sdk.models.list()] == ["echo"]
                assert (
                    (await sdk.completions.create(model="echo", prompt="abc"))
                    .choices[0]
                    .text.startswith("abc")
                )
                with pytest.raises(openai.RateLimitError) as often:
                    await sdk.completions.create(model="echo", prompt="a")
                assert often.value.code == "rate_limited"
                assert 0 < int(often.value.response.headers["retry-after"]) <= 600
            finally:
                await worker.end()
