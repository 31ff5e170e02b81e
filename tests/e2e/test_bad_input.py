"""A caller with bad input or of a broken model gets a status and a sentence.

The worker is real, and there are two dialects.
"""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from shared.errors import FleetError
from tests.fixtures.e2e.inside import fleet_inside
from tests.fixtures.worker.broken_models import SICK, sick_row, write_model
from worker.engine.runner import OutOfMemory, RunnerOptions
from worker.engine.sequence import Slice, StepResult
from worker.runners.echo import Echo
from worker.runners.registry import load_runner

WINDOW = 32


class Cramped(Echo):
    """An echo without memory for a prompt of more than five tokens."""

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        for part in slices:
            if len(part.sequence.encoded.prompt_ids) > 5:
                raise OutOfMemory("room for no more")
        return super().step(slices)


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    return sick_row("causal", write_model("causal", folder / "whole"), folder / "sick")


@pytest.fixture
async def fleet(redis: Redis, sick: Path) -> AsyncIterator[httpx.AsyncClient]:
    options = RunnerOptions(str(sick), name="sick", max_batch=4, page_size=4)
    runners = {
        "parrot": Echo(RunnerOptions("echo", context_window=WINDOW)),
        "sick": load_runner("auto", options),
        "cramped": Cramped(RunnerOptions("echo", name="cramped")),
    }
    async with fleet_inside(redis, runners) as client:
        yield client


async def complete(fleet: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await fleet.post("/v1/completions", json=body)


@pytest.mark.parametrize("stream", [False, True])
async def test_openai_callers_are_refused_what_does_not_fit(
    fleet: httpx.AsyncClient, stream: bool
) -> None:
    """X20: the refusal has the lengths and OpenAI's code, and a stream gets a status too."""
    answer = await complete(fleet, prompt="p" * 40, max_tokens=5, stream=stream)

    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "prompt"
    for words in ("32 tokens", "45", "40 in the prompt", "5 for the completion"):
        assert words in error["message"]


async def test_an_explicit_max_tokens_must_fit_and_a_default_gives_way(
    fleet: httpx.AsyncClient,
) -> None:
    """X3: a default alone is never an error, and its effective value is in the header."""
    refused = await complete(fleet, prompt="p" * 30, max_tokens=3)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "max_tokens"

    exact = await complete(fleet, prompt="p" * 30, max_tokens=2)
    assert exact.status_code == 200
    assert exact.json()["choices"][0]["text"] == "pp"
    assert "X-Effective-Max-Tokens" not in exact.headers

    for stream in (False, True):
        default = await complete(fleet, prompt="p" * 30, stream=stream)
        assert default.status_code == 200
        assert default.headers["X-Effective-Max-Tokens"] == "2"


async def test_openai_callers_may_have_the_prompt_cut(fleet: httpx.AsyncClient) -> None:
    prompt = "a" * 30 + "0123456789"
    for keep, kept in ((-1, prompt[-27:]), (4, "6789"), (1000, prompt[-27:])):
        for stream in (False, True):
            answer = await complete(
                fleet, prompt=prompt, max_tokens=5, truncate_prompt_tokens=keep, stream=stream
            )
            assert answer.status_code == 200
            assert answer.headers["X-Truncated-Prompt-Tokens"] == str(40 - len(kept))
        whole = await complete(fleet, prompt=prompt, max_tokens=5, truncate_prompt_tokens=keep)
        assert whole.json()["choices"][0]["text"] == (kept * 5)[:5]
        assert whole.json()["usage"]["prompt_tokens"] == len(kept)


async def test_the_seed_dialect_cuts_and_tells(fleet: httpx.AsyncClient) -> None:
    prompts = ["a" * 30 + "0123456789", "b"]
    answer = await fleet.post("/generate", json={"prompts": prompts, "max_tokens": 5})
    assert answer.status_code == 200
    assert answer.headers["X-Truncated-Prompt-Tokens"] == "13"
    assert answer.json()["completions"] == ["aaaaa", "bbbbb"]

    greedy = await fleet.post("/generate", json={"prompts": ["a" * 40], "max_tokens": 60})
    assert greedy.status_code == 200
    assert greedy.headers["X-Truncated-Prompt-Tokens"] == "24"
    assert greedy.headers["X-Effective-Max-Tokens"] == "16"

    body = {"prompts": ["a" * 40], "continuations": ["b" * 20]}
    scored = await fleet.post("/loglikelihood", json=body)
    assert scored.json() == {"ll": [-20.0], "is_greedy": [False], "num_tokens": [20]}
    assert int(scored.headers["X-Truncated-Prompt-Tokens"]) >= 40 + 20 - WINDOW - 1


async def test_continuations_that_cannot_be_scored(fleet: httpx.AsyncClient) -> None:
    empty = await fleet.post("/loglikelihood", json={"prompts": ["a"], "continuations": [""]})
    long = await fleet.post("/loglikelihood", json={"prompts": ["a"], "continuations": ["b" * 50]})
    for answer in (empty, long):
        assert answer.status_code == 400
        assert answer.json()["error"]["field"] == "continuations"
    assert "50 tokens" in long.json()["error"]["message"]


async def test_ids_out_of_the_vocabulary(fleet: httpx.AsyncClient) -> None:
    answer = await complete(fleet, model="sick", prompt=[20, 264], max_tokens=2)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt"
    assert "263" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_breaks_the_model_is_a_500_with_a_sentence(
    fleet: httpx.AsyncClient, stream: bool
) -> None:
    """NaN in the logits is an error with the model's name, never garbage.

    The worker lives, and the answers to others are as before.
    """
    sound = await complete(fleet, model="sick", prompt=[20, 21], max_tokens=4, temperature=0)
    broken = await complete(fleet, model="sick", prompt=[20, SICK], max_tokens=4, stream=stream)
    assert broken.status_code == 500
    error = broken.json()["error"]
    assert error["type"] == "server_error"
    assert error["code"] == "worker_failed"
    assert error["message"].startswith("Logits of 'sick' are not finite")
    again = await complete(fleet, model="sick", prompt=[20, 21], max_tokens=4, temperature=0)
    assert again.json()["choices"] == sound.json()["choices"]
    parrot = await complete(fleet, model="parrot", prompt="ab", max_tokens=4)
    assert parrot.json()["choices"][0]["text"] == "abab"


async def test_the_seed_dialect_gets_the_sentence_too(redis: Redis, tmp_path: Path) -> None:
    """A checkpoint that breaks after its load answers everything with NaN."""
    options = RunnerOptions(str(write_model("causal", tmp_path / "m")), name="mine")
    runner: Any = load_runner("auto", options)
    runner.net.model.lm_head.weight[7, 0] = float("nan")
    runners = {"mine": runner, "parrot": Echo(RunnerOptions("echo"))}
    async with fleet_inside(redis, runners) as client:
        generated = await client.post("/generate", json={"prompts": ["a"]})
        body = {"prompts": ["a"], "continuations": ["b"]}
        scored = await client.post("/loglikelihood", json=body)
        body = {"prompts": ["ab"], "model": "parrot", "max_tokens": 2}
        of_parrot = await client.post("/generate", json=body)

    for answer in (generated, scored):
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "worker_failed"
        assert answer.json()["error"]["message"].startswith("Logits of 'mine' are not finite")
    assert of_parrot.json()["completions"] == ["ab"]


async def test_a_lack_of_memory_is_a_503_and_the_worker_lives(fleet: httpx.AsyncClient) -> None:
    """The fault is the server's: the request may fit elsewhere or later."""
    plain = await fleet.post("/generate", json={"prompts": ["a" * 6], "model": "cramped"})
    openai = await complete(fleet, model="cramped", prompt="a" * 6)
    for answer in (plain, openai):
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "out_of_memory"
        assert "'cramped' has no memory" in answer.json()["error"]["message"]
        assert answer.headers["Retry-After"] == "1"

    body = {"prompts": ["abc"], "model": "cramped", "max_tokens": 3}
    small = await fleet.post("/generate", json=body)
    assert small.json()["completions"] == ["abc"]


async def test_the_body_of_an_error_is_json_for_streams_too(fleet: httpx.AsyncClient) -> None:
    answer = await complete(fleet, prompt="p" * 40, stream=True)
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.content)["error"]["code"] == "context_length_exceeded"
