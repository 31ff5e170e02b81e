"""One worker serves every kind of model.

A request's `model` picks one, and the default serves the rest (issue item 5).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from scripts.train.special_tokens import byte_tokenizer
from shared.messages import Generate, Sampling, Score
from shared.settings.settings import DEFAULT_MODEL
from tests.fixtures.e2e.serving import Serving, serving
from tests.fixtures.worker.act_fixtures import Net, write_bundle
from tests.fixtures.worker.stepping import generate_all, score_all
from worker.engine.runner import RunnerOptions
from worker.runners.registry import load_runner

PROMPTS = ["Hello", "Once upon a time"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    brain = tmp_path_factory.mktemp("brain")
    gpt2 = tmp_path_factory.mktemp("gpt2")
    byte_tokenizer().save_pretrained(brain / "tokenizer")
    write_bundle(brain, Net(vocab=264, max_seq_len=64, experts=2), tokenizer="tokenizer")
    GPT2LMHeadModel(
        GPT2Config(vocab_size=264, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    ).save_pretrained(gpt2)
    byte_tokenizer().save_pretrained(gpt2)
    return {"brain": brain / "actv1_student.safetensors", "gpt2": gpt2, "sample": DEFAULT_MODEL}


@pytest.fixture(scope="module")
def fleet(paths: dict[str, Path]) -> Iterator[Serving]:
    flags = ["--model", "parrot=echo", "--default-model", "parrot"]
    for name, path in paths.items():
        flags += ["--model", f"{name}={path}"]
    with serving(*flags) as running:
        yield running


def post(fleet: Serving, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{fleet.url}{path}", json=body, timeout=60)


def test_each_model_says_what_it_is(fleet: Serving) -> None:
    """B100: the description of each model names its kind, as the issue demands."""
    models = httpx.get(f"{fleet.url}/v1/models", timeout=60).json()["data"]
    descriptions = {model["id"]: model["description"] for model in models}
    assert descriptions.keys() == {"brain", "gpt2", "sample", "parrot"}
    assert "ACTv1" in descriptions["brain"]
    assert "2 experts" in descriptions["brain"]
    assert "GPT2LMHeadModel" in descriptions["gpt2"]
    assert "HRM-Text" in descriptions["sample"]


@pytest.mark.parametrize("name", ["brain", "gpt2", "sample"])
def test_http_says_what_the_runner_says(fleet: Serving, paths: dict[str, Path], name: str) -> None:
    """Greedy text over HTTP, two prompts at once, equals the runner alone."""
    runner = load_runner("auto", RunnerOptions(path=str(paths[name]), max_batch=1))
    tasks = [Generate(text, Sampling(max_tokens=6, seed=0, temperature=0.0)) for text in PROMPTS]
    expected = []
    for ids in generate_all(runner, tasks):
        text_ids = [token for token in ids if token not in runner.eos_ids]
        expected.append(runner.decode(text_ids))

    body = {"model": name, "prompts": PROMPTS, "max_tokens": 6, "temperature": 0}
    answer = post(fleet, "/generate", body)

    assert answer.json()["completions"] == expected


@pytest.mark.parametrize("name", ["brain", "gpt2", "sample", "parrot"])
def test_scores_over_http_are_the_runners(
    fleet: Serving, paths: dict[str, Path], name: str
) -> None:
    """A35: equal prompts share one context, and a text longer than most windows is scored whole."""
    runner = load_runner("auto", RunnerOptions(path=str(paths.get(name, "echo")), max_batch=1))
    pairs = [
        ("Hello", " world"),
        ("Once upon a time", " there"),
        ("Hello", "!"),
        ("", " is a much longer continuation"),
    ]
    prompts = []
    continuations = []
    tasks = []
    for prompt, continuation in pairs:
        prompts.append(prompt)
        continuations.append(continuation)
        tasks.append(Score(prompt, (continuation,)))
    expected = score_all(runner, tasks)

    body = {"model": name, "prompts": prompts, "continuations": continuations}
    answer = post(fleet, "/loglikelihood", body).json()

    for index, (score,) in enumerate(expected):
        assert answer["ll"][index] == pytest.approx(score.log_likelihood, abs=1e-3)
        assert answer["is_greedy"][index] == score.is_greedy
        assert answer["num_tokens"][index] == score.num_tokens
    assert len(answer["ll"]) == len(answer["is_greedy"]) == len(pairs)

    texts = ["Once upon a time. " * 9, "x"]
    rolled = post(fleet, "/loglikelihood_rolling", {"model": name, "prompts": texts}).json()
    long_task = Score("", (texts[0],), rolling=True)
    short_task = Score("", (texts[1],), rolling=True)
    ((long,), (short,)) = score_all(runner, [long_task, short_task])
    assert rolled["num_tokens"] == [long.num_tokens, 1]
    assert rolled["ll"] == pytest.approx([long.log_likelihood, short.log_likelihood], abs=1e-2)


@pytest.mark.parametrize("name", ["brain", "gpt2"])
def test_what_does_not_fit_the_window_is_cut_or_refused(fleet: Serving, name: str) -> None:
    """X20: a context loses its beginning and the answer says so.

    A continuation is refused with its length and the window's.
    """
    # A window of 64 takes 44 tokens of the context and all but the last of the 21.
    body = {"model": name, "prompts": ["a" * 100 + "b" * 44], "continuations": ["c" * 21]}
    cut = post(fleet, "/loglikelihood", body)
    assert cut.headers["X-Truncated-Prompt-Tokens"] == "100"

    alone = post(fleet, "/loglikelihood", body | {"prompts": ["b" * 44]})
    assert "X-Truncated-Prompt-Tokens" not in alone.headers
    assert cut.json()["ll"] == pytest.approx(alone.json()["ll"], abs=1e-3)

    refused = post(fleet, "/loglikelihood", body | {"continuations": ["c" * 65]})
    assert refused.status_code == 400
    assert "65 tokens; at most 64" in refused.json()["error"]["message"]
    assert refused.json()["error"]["field"] == "continuations"


def test_the_default_serves_who_names_none(fleet: Serving) -> None:
    answer = post(fleet, "/generate", {"prompts": ["ab"], "max_tokens": 4})
    assert answer.json()["completions"] == ["abab"]

    refused = post(fleet, "/generate", {"prompts": ["ab"], "model": "nobody"})
    assert refused.status_code == 404


def test_a_condition_for_a_model_that_has_none_is_a_400(fleet: Serving) -> None:
    """A fault that only the worker sees is a 400 too, with the field's name."""
    body = {"model": "gpt2", "prompts": ["ab"], "condition": "cot"}

    answer = post(fleet, "/generate", body)

    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == "condition"
