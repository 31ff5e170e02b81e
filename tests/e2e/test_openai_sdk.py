"""OpenAI's own Python client against real processes.

The fleet has a front, a worker and Redis, and it serves the default model.
"""

import math
from collections.abc import Iterator

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_chunk import Choice
from redis.asyncio import Redis

from shared.settings.settings import DEFAULT_MODEL
from tests.fixtures.e2e.aios_keys import aios_keys
from tests.fixtures.e2e.fleet import front, start_worker
from tests.fixtures.e2e.serving import serving
from tests.fixtures.polling import wait_until

QUESTION = "Solve for x: 4x - 2 = 10"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Serve with a batch of two for each model.

    The next request would miss a sequence that a closed stream does not free.
    """
    models = ["--model", f"sample={DEFAULT_MODEL}", "--model", "echo=echo"]
    models += ["--default-model", "sample"]
    limits = ["--threads", "1", "--max-batch-size", "2", "--max-new-tokens", "400"]
    with serving(*models, *limits) as fleet:
        yield fleet.url


@pytest.fixture
def sdk(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_models(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["echo", "sample"]
    assert sdk.models.retrieve("sample").owned_by == "aios"


def test_a_completion_with_choices_and_logprobs(sdk: openai.OpenAI) -> None:
    """The first of two choices has the text of a single choice.

    The log-probability of each token is among its likeliest ones.
    """
    request = {"model": "sample", "prompt": QUESTION, "max_tokens": 12, "seed": 3, "logprobs": 2}

    one = sdk.completions.create(**request)  # type: ignore[call-overload]
    two = sdk.completions.create(**request, n=2)  # type: ignore[call-overload]

    first, second = two.choices
    assert first.index == 0
    assert second.index == 1
    assert first.text == one.choices[0].text
    assert two.usage.completion_tokens == 24
    assert two.usage.prompt_tokens == one.usage.prompt_tokens

    logprobs = first.logprobs
    assert "".join(logprobs.tokens) == first.text
    for token, value, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert top[token] == value <= 0
        assert sum(math.exp(logprob) for logprob in top.values()) <= 1 + 1e-9


def test_a_chat_whole_and_streamed(sdk: openai.OpenAI) -> None:
    """The stream adds up to the whole answer, its log-probabilities and its usage."""
    request = {
        "model": "sample",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 100,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 1,
        "n": 2,
    }
    whole = sdk.chat.completions.create(**request)  # type: ignore[call-overload]
    stream = sdk.chat.completions.create(  # type: ignore[call-overload]
        **request, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)

    assert whole.choices[0].message.content.endswith("\\boxed{3}")
    assert chunks[-1].usage == whole.usage
    assert not chunks[-1].choices
    for choice in whole.choices:
        assert choice.finish_reason == "stop"
        parts = parts_of(chunks, choice.index)
        assert parts[0].delta.role == "assistant"
        assert parts[-1].finish_reason == "stop"
        assert text_of(parts) == choice.message.content
        assert tokens_of(parts) == token_pairs(choice.logprobs.content)


def parts_of(chunks: list[ChatCompletionChunk], index: int) -> list[Choice]:
    """Return the parts of one choice in the order of the stream."""
    parts = []
    for chunk in chunks:
        for part in chunk.choices:
            if part.index == index:
                parts.append(part)
    return parts


def text_of(parts: list[Choice]) -> str:
    text = ""
    for part in parts:
        text += part.delta.content or ""
    return text


def tokens_of(parts: list[Choice]) -> list[tuple[str, float]]:
    """Return the tokens of a choice's parts with their log-probabilities."""
    pairs = []
    for part in parts:
        if part.logprobs:
            pairs += token_pairs(part.logprobs.content or [])
    return pairs


def token_pairs(logprobs: list[ChatCompletionTokenLogprob]) -> list[tuple[str, float]]:
    return [(entry.token, entry.logprob) for entry in logprobs]


def test_embeddings_come_as_base64_unless_told_otherwise(sdk: openai.OpenAI) -> None:
    """The client asks for base64 by itself and decodes it to numbers."""
    texts = ["two and two", "four"]

    packed = sdk.embeddings.create(model="sample", input=texts)
    plain = sdk.embeddings.create(model="sample", input=texts, encoding_format="float")

    assert len(packed.data) == 2
    for decoded, as_numbers in zip(packed.data, plain.data, strict=True):
        assert decoded.embedding == as_numbers.embedding
        assert len(decoded.embedding) == 192
        squared_norm = sum(value * value for value in decoded.embedding)
        assert squared_norm == pytest.approx(1, abs=1e-5)


def test_a_closed_stream_frees_its_places(sdk: openai.OpenAI, url: str) -> None:
    """A closed stream cancels its job and frees the batch.

    One request fills the worker's whole batch.
    """
    stream = sdk.completions.create(
        model="sample",
        prompt="Once",
        max_tokens=400,
        n=2,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    for chunk in stream:
        if chunk.choices[0].text:
            break
    stream.close()
    job = f"{url}/v1/jobs/{chunk.id.removeprefix('cmpl-')}"
    wait_until(
        lambda: httpx.get(job, timeout=60).json()["state"] not in ("queued", "running"),
        "the job ends",
    )

    ended = httpx.get(job, timeout=60).json()
    assert ended["state"] == "cancelled"
    assert ended["usage"]["completion_tokens"] < 2 * 400
    after = sdk.completions.create(model="sample", prompt=QUESTION, n=2, max_tokens=8)
    assert len(after.choices) == 2


def test_wrong_requests_raise_what_the_client_has_for_them(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        sdk.chat.completions.create(
            model="sample", messages=[{"role": "user", "content": "a"}], top_logprobs=2
        )
    assert wrong.value.param == "top_logprobs"
    assert wrong.value.code == "invalid_request"

    with pytest.raises(openai.BadRequestError) as long:
        sdk.completions.create(model="sample", prompt="a" * 600, max_tokens=8)
    assert long.value.code == "context_length_exceeded"

    with pytest.raises(openai.NotFoundError) as missing:
        sdk.embeddings.create(model="nobody", input="a")
    assert missing.value.param == "model"
    assert missing.value.code == "model_not_found"

    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("nobody")


async def test_refused_callers_get_the_right_exceptions(redis_url: str, redis: Redis) -> None:
    """The client raises its own exceptions for 401, 403, 429 and 503.

    Keys are required. No worker serves at first, then one with two models starts.
    """
    async with front(redis_url, "--require-key", "yes") as running:
        base = f"{running.url}/v1"
        key = await aios_keys(redis_url, "create", "ann", "--models", "echo", "--rate", "3/600")
        async with openai.AsyncOpenAI(base_url=base, api_key=key, max_retries=0) as sdk:
            with pytest.raises(openai.InternalServerError) as nobody:
                await sdk.completions.create(model="echo", prompt="a")
            assert nobody.value.status_code == 503
            assert nobody.value.code == "no_worker"

            worker = await start_worker(redis_url, redis, "--model", "other=echo")
            try:
                await running.ready()
                stranger = sdk.with_options(api_key="wrong")
                with pytest.raises(openai.AuthenticationError) as unknown:
                    await stranger.completions.create(model="echo", prompt="a")
                assert unknown.value.code == "invalid_api_key"

                with pytest.raises(openai.PermissionDeniedError) as denied:
                    await sdk.completions.create(model="other", prompt="a")
                assert denied.value.code == "permission_denied"
                assert denied.value.param == "model"

                assert [model.id async for model in sdk.models.list()] == ["echo"]
                answer = await sdk.completions.create(model="echo", prompt="abc")
                assert answer.choices[0].text.startswith("abc")

                # The key allows three requests in ten minutes, and this is its fourth.
                with pytest.raises(openai.RateLimitError) as often:
                    await sdk.completions.create(model="echo", prompt="a")
                assert often.value.code == "rate_limited"
                assert 0 < int(often.value.response.headers["retry-after"]) <= 600
            finally:
                await worker.end()
