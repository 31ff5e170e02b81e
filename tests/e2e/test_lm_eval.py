"""lm-evaluation-harness runs against a fleet, offline.

It gets the texts and the scores of the engine itself.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.bench.model import causal
from shared.messages import Chat, Generate, Prompt, Sampling, Score, Turn
from shared.settings.settings import DEFAULT_MODEL
from tests.fixtures.e2e.serving import serving
from tests.fixtures.worker.stepping import generate_all, score_all
from worker.engine.runner import Runner, RunnerOptions
from worker.runners.registry import load_runner

FOLDER = Path(__file__).parent / "lm_eval"
PROBLEMS = [json.loads(line) for line in (FOLDER / "problems.jsonl").read_text().splitlines()]
MAX_TOKENS = 128


@pytest.fixture(scope="module")
def causal_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return causal(tmp_path_factory.mktemp("models"), "tiny")


@pytest.fixture(scope="module")
def results(causal_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the harness's results, by evaluation and task."""
    folder = tmp_path_factory.mktemp("lm-eval")
    flags = ["--model", f"hrm={DEFAULT_MODEL}", "--model", f"causal={causal_path}"]
    flags += ["--default-model", "hrm", "--threads", "1"]
    with serving(*flags) as fleet:
        evaluations = {
            "hrm": completions(fleet.url, "hrm", DEFAULT_MODEL, ["solve_hrm", "choose_hrm"]),
            "causal": completions(fleet.url, "causal", causal_path, ["solve", "choose"]),
            "hrm-chat": chat(fleet.url, "hrm"),
            "causal-chat": chat(fleet.url, "causal"),
            "ours": ours(fleet.url, "hrm", ["solve", "choose"]),
            "ours-chat": ours(fleet.url, "hrm", ["solve"], is_chat=True),
            "ours-causal": ours(fleet.url, "causal", ["solve", "choose", "perplexity"]),
        }
        offline = {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        subprocess.run(
            [sys.executable, str(FOLDER / "evaluate.py"), str(folder / "results.json")],
            input=json.dumps(evaluations),
            text=True,
            check=True,
            timeout=200,
            cwd=FOLDER.parents[2],
            env=os.environ | offline,
        )
    parsed: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return parsed


def completions(url: str, model: str, path: Path, tasks: list[str]) -> dict[str, Any]:
    arguments = {
        "base_url": f"{url}/v1/completions",
        "model": model,
        "tokenizer_backend": "huggingface",
        "tokenizer": str(path),
        "max_length": 512,
        "num_concurrent": 4,
    }
    return {"model": "local-completions", "model_args": arguments, "tasks": tasks}


def chat(url: str, model: str) -> dict[str, Any]:
    arguments = {"base_url": f"{url}/v1/chat/completions", "model": model, "num_concurrent": 4}
    model = "local-chat-completions"
    return {"model": model, "model_args": arguments, "tasks": ["solve"], "is_chat": True}


def ours(url: str, model: str, tasks: list[str], *, is_chat: bool = False) -> dict[str, Any]:
    """Return an evaluation by `hrm-fleet`, whose requests hold fewer texts than the tasks have."""
    arguments = {"url": url, "model": model, "batch_size": 3, "num_concurrent": 2}
    return {"model": "hrm-fleet", "model_args": arguments, "tasks": tasks, "is_chat": is_chat}


def runner(path: Path) -> Runner:
    return load_runner("auto", RunnerOptions(path=str(path), max_batch=4))


def solutions(runner: Runner, prompts: list[Prompt]) -> list[str]:
    """Return the engine's text for each prompt, without a fleet."""
    sampling = Sampling(MAX_TOKENS, seed=0, temperature=0.0, stop=("\n\n",))
    texts = []
    for ids in generate_all(runner, [Generate(prompt, sampling) for prompt in prompts]):
        texts.append(runner.decode(ids).split("\n\n")[0])
    return texts


def exact_share(texts: list[str]) -> float:
    """Return the share of texts whose last line is the answer."""
    num_right = 0
    for text, problem in zip(texts, PROBLEMS, strict=True):
        if text.rstrip().rsplit("\n")[-1] == problem["answer"]:
            num_right += 1
    return num_right / len(PROBLEMS)


def check_choices(results: Any, runner: Runner, end: str) -> None:
    """Check the harness's scores and accuracy against the engine's.

    `end` is the text that the task writes between a question and its solutions.
    """
    tasks = []
    for problem in PROBLEMS:
        tasks.append(Score(problem["question"] + end, tuple(problem["solutions"])))

    num_right = 0
    for problem, sample, scores in zip(
        PROBLEMS, results["samples"], score_all(runner, tasks), strict=True
    ):
        for (log_likelihood, is_greedy), score in zip(sample, scores, strict=True):
            assert log_likelihood == pytest.approx(score.log_likelihood, abs=1e-4)
            assert is_greedy == score.is_greedy
        values = [score.log_likelihood for score in scores]
        if values.index(max(values)) == problem["right"]:
            num_right += 1
    assert results["results"]["acc,none"] == num_right / len(PROBLEMS)


def check_solutions(results: Any, runner: Runner, prompts: list[Prompt]) -> None:
    texts = solutions(runner, prompts)
    assert results["samples"] == texts
    assert results["results"]["exact_match,last-line"] == exact_share(texts)


def test_hrm_text(results: dict[str, Any]) -> None:
    """The tasks write the model's special tokens; the engine writes them itself."""
    engine = runner(DEFAULT_MODEL)

    check_solutions(results["hrm"]["solve_hrm"], engine, questions())
    check_choices(results["hrm"]["choose_hrm"], engine, "")
    check_solutions(results["hrm-chat"]["solve"], engine, dialogues())

    # The last of the four problems is too large for the model.
    assert results["hrm"]["solve_hrm"]["results"]["exact_match,last-line"] == 0.75
    assert results["hrm"]["choose_hrm"]["samples"][2][1][1], "greedy decoding says the right sum"


def test_a_causal_model(results: dict[str, Any], causal_path: Path) -> None:
    engine = runner(causal_path)

    check_solutions(results["causal"]["solve"], engine, questions())
    check_choices(results["causal"]["choose"], engine, "\n")
    check_solutions(results["causal-chat"]["solve"], engine, dialogues())


def test_a_fleet_as_the_harness_own_model(results: dict[str, Any], causal_path: Path) -> None:
    """The texts go as they are: neither marks nor a tokenizer are needed."""
    hrm = runner(DEFAULT_MODEL)
    check_solutions(results["ours"]["solve"], hrm, questions())
    check_choices(results["ours"]["choose"], hrm, "\n")
    check_solutions(results["ours-chat"]["solve"], hrm, dialogues())

    causal = runner(causal_path)
    check_solutions(results["ours-causal"]["solve"], causal, questions())
    check_choices(results["ours-causal"]["choose"], causal, "\n")
    num_bytes = 0
    total = 0.0
    for problem in PROBLEMS:
        text = problem["solutions"][0]
        num_bytes += len(text.encode())
        [[score]] = score_all(causal, [Score("", (text,), rolling=True)])
        total += score.log_likelihood
    bits = results["ours-causal"]["perplexity"]["results"]["bits_per_byte,none"]
    assert bits == pytest.approx(-total / num_bytes / math.log(2), rel=1e-5)


def questions() -> list[Prompt]:
    return [problem["question"] for problem in PROBLEMS]


def dialogues() -> list[Prompt]:
    return [Chat((Turn("user", question),)) for question in questions()]
