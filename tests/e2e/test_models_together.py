"""One worker, every kind of model: the request's `model` picks one, the default serves the rest
(issue item 5)."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from scripts.train.train_sample import byte_tokenizer
from shared.messages import Generate, Sampling, Score
from shared.settings.settings import SAMPLE_MODEL
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
    return {"brain": brain / "actv1_student.safetensors", "gpt2": gpt2, "sample": SAMPLE_MODEL}


@pytest.fixture(scope="module")
def fleet(paths: dict[str, Path]) -> Iterator[Serving]:
    flags = [flag for name, path in paths.items() for flag in ("--model", f"{name}={path}")]
    with serving(*flags, "--model", "parrot=echo", "--default-model", "parrot") as running:
        yield running


def test_each_model_says_what_it_is(fleet: Serving) -> None:
    """B100, and what the issue calls `says clearly what it found`."""
    found = {
        model["id"]: model["description"]
        for model in httpx.get(f"{fleet.url}/v1/models").json()["data"]
    }
    assert found.keys() == {"brain", "gpt2", "sample", "parrot"}
    assert "ACTv1" in found["brain"]
    assert "2 experts" in found["brain"]
    assert "GPT2LMHeadModel" in found["gpt2"]
    assert "HRM-Text" in found["sample"]


@pytest.mark.parametrize("name", ["brain", "gpt2", "sample"])
def test_http_says_what_the_runner_says(fleet: Serving, paths: dict[str, Path], name: str) -> None:
    """Greedy text over HTTP, two prompts at once, equals the runner alone."""
    runner = load_runner("auto", RunnerOptions(path=str(paths[name]), max_batch=1))
    tasks = [Generate(text, Sampling(max_tokens=6, seed=0, temperature=0.0)) for text in PROMPTS]
    expected = [
        runner.decode([t for t in ids if t not in runner.eos_ids])
        for ids in generate_all(runner, tasks)
    ]
    body = {"model": name, "prompts": PROMPTS, "max_tokens": 6, "temperature": 0}
    assert (
        httpx.post(f"{fleet.url}/generate", json=body, timeout=60).json()["completions"] == expected
    )


@pytest.mark.parametrize("name", ["brain", "gpt2", "sample", "parrot"])
def test_scores_over_http_are_the_runners(
    fleet: Serving, paths: dict[str, Path], name: str
) -> None:
    """A35: equal prompts are one context; a text longer than every window but one is scored
    whole."""
    runner = load_runner("auto", RunnerOptions(path=str(paths.get(name, "echo")), max_batch=1))
    tails = [" world", " there", "!", " is a much longer continuation"]
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], ""]
    tasks = [Score(prompt, (tail,)) for prompt, tail in zip(prompts, tails, strict=True)]
    body = {"model": name, "prompts": prompts, "continuations": tails}
    answer = httpx.post(f"{fleet.url}/loglikelihood", json=body, timeout=60).json()
    expected = [scores[0] for scores in score_all(runner, tasks)]
    assert answer["ll"] == pytest.approx([score.log_likelihood for score in expected], abs=1e-3)
    assert answer["is_greedy"] == [score.is_greedy for score in expected]
    assert (
        answer["num_tokens"]
        == [score.num_tokens for score in expected]
        == [len(tail) for tail in tails]
    )
    texts = ["Once upon a time. " * 9, "x"]
    rolled = httpx.post(
        f"{fleet.url}/loglikelihood_rolling", json={"model": name, "prompts": texts}, timeout=60
    ).json()
    ((long,), (short,)) = score_all(runner, [Score("", (text,), rolling=True) for text in texts])
    assert rolled["num_tokens"] == [162, 1]
    assert rolled["ll"] == pytest.approx([long.log_likelihood, short.log_likelihood], abs=1e-2)


@pytest.mark.parametrize("name", ["brain", "gpt2"])
def test_what_does_not_fit_the_window_is_cut_or_refused(fleet: Serving, name: str) -> None:
    """X20: a context loses its beginning and the answer says so; a continuation is refused with
    both numbers."""
    body = {"model": name, "prompts": ["a" * 100 + "b" * 44], "continuations": ["c" * 21]}
    cut = httpx.post(f"{fleet.url}/loglikelihood", json=body, timeout=60)
    assert cut.headers["X-Truncated-Prompt-Tokens"] == "100"
    alone = httpx.post(
        f"{fleet.url}/loglikelihood", json=body | {"prompts": ["b" * 44]}, timeout=60
    )
    assert "X-Truncated-Prompt-Tokens" not in alone.headers
    assert cut.json()["ll"] == pytest.approx(alone.json()["ll"], abs=1e-3)
    refused = httpx.post(
        f"{fleet.url}/loglikelihood", json=body | {"continuations": ["c" * 65]}, timeout=60
    )
    assert refused.status_code == 400
    assert "65 tokens; at most 64" in refused.json()["error"]["message"]
    assert refused.json()["error"]["field"] == "continuations"


def test_the_default_serves_who_names_none(fleet: Serving) -> None:
    body = httpx.post(
        f"{fleet.url}/generate", json={"prompts": ["ab"], "max_tokens": 4}, timeout=60
    ).json()
    assert body["completions"] == ["abab"]
    refused = httpx.post(
        f"{fleet.url}/generate", json={"prompts": ["ab"], "model": "nobody"}, timeout=60
    )
    assert refused.status_code == 404


def test_a_condition_for_a_model_that_has_none_is_a_400(fleet: Serving) -> None:
    """What only the worker can know is still the caller's 400, with the field's name."""
    body = {"model": "gpt2", "prompts": ["ab"], "condition": "cot"}
    answer = httpx.post(f"{fleet.url}/generate", json=body, timeout=60)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "condition")
