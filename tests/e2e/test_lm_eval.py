"""lm-evaluation-harness against a running fleet, offline: it finds what the engine itself says and
scores."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.bench.model import causal
from shared.messages import Chat, Generate, Prompt, Sampling, Score, Turn
from shared.settings.settings import SAMPLE_MODEL
from tests.fixtures.e2e.serving import serving
from tests.fixtures.worker.stepping import generate_all, score_all
from worker.engine.runner import Runner, RunnerOptions
from worker.runners.registry import load_runner

FOLDER = Path(__file__).parent / "lm_eval"
PROBLEMS = [json.loads(line) for line in (FOLDER / "problems.jsonl").read_text().splitlines()]
MAX_TOKENS = 80


@pytest.fixture(scope="module")
def causal_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return causal(tmp_path_factory.mktemp("models"), "tiny")


@pytest.fixture(scope="module")
def told(causal_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the harness found, by evaluation and task."""
    folder = tmp_path_factory.mktemp("lm-eval")
    models = (
        "--model",
        f"hrm={SAMPLE_MODEL}",
        "--model",
        f"causal={causal_path}",
        "--default-model",
        "hrm",
    )
    with serving(*models, "--threads", "1") as fleet:
        asked = {
            "hrm": completions(fleet.url, "hrm", SAMPLE_MODEL, ["solve_hrm", "choose_hrm"]),
            "causal": completions(fleet.url, "causal", causal_path, ["solve", "choose"]),
            "hrm-chat": chat(fleet.url, "hrm"),
            "causal-chat": chat(fleet.url, "causal"),
        }
        offline = {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        subprocess.run(
            [sys.executable, str(FOLDER / "evaluate.py"), str(folder / "told.json")],
            input=json.dumps(asked),
            text=True,
            check=True,
            timeout=200,
            cwd=FOLDER.parents[2],
            env=os.environ | offline,
        )
    found: dict[str, Any] = json.loads((folder / "told.json").read_text())
    return found


def completions(url: str, model: str, path: Path, tasks: list[str]) -> dict[str, Any]:
    how = {
        "tokenizer_backend": "huggingface",
        "tokenizer": str(path),
        "max_length": 512,
        "num_concurrent": 4,
    }
    where = {"base_url": f"{url}/v1/completions", "model": model}
    return {"model": "local-completions", "model_args": where | how, "tasks": tasks}


def chat(url: str, model: str) -> dict[str, Any]:
    where = {"base_url": f"{url}/v1/chat/completions", "model": model, "num_concurrent": 4}
    return {"model": "local-chat-completions", "model_args": where, "tasks": ["solve"]}


def runner(path: Path) -> Runner:
    return load_runner("auto", RunnerOptions(path=str(path), max_batch=4))


def solutions(runner: Runner, prompts: list[Prompt]) -> list[str]:
    """What the engine says to each prompt, without a fleet."""
    stops = Sampling(MAX_TOKENS, seed=0, temperature=0.0, stop=("\n\n",))
    return [
        runner.decode(ids).split("\n\n")[0]
        for ids in generate_all(runner, [Generate(p, stops) for p in prompts])
    ]


def exact_share(texts: list[str]) -> float:
    right = [
        text.rstrip().rsplit("\n")[-1] == item["answer"]
        for text, item in zip(texts, PROBLEMS, strict=True)
    ]
    return sum(right) / len(right)


def check_choices(found: Any, runner: Runner, end: str) -> None:
    """`end` is what the task writes between a question and its solutions."""
    tasks = [Score(item["question"] + end, tuple(item["solutions"])) for item in PROBLEMS]
    picked = []
    for problem, own in zip(found["samples"], score_all(runner, tasks), strict=True):
        assert [ll for ll, _ in problem] == pytest.approx(
            [score.log_likelihood for score in own], abs=1e-4
        )
        assert [is_greedy for _, is_greedy in problem] == [score.is_greedy for score in own]
        scores = [score.log_likelihood for score in own]
        picked.append(scores.index(max(scores)))
    right = [place == item["right"] for place, item in zip(picked, PROBLEMS, strict=True)]
    assert found["results"]["acc,none"] == sum(right) / len(right)


def check_solutions(found: Any, runner: Runner, prompts: list[Prompt]) -> None:
    own = solutions(runner, prompts)
    assert found["samples"] == own
    assert found["results"]["exact_match,last-line"] == exact_share(own)


def test_hrm_text(told: dict[str, Any]) -> None:
    """The tasks write the model's marks; the engine writes them itself."""
    own = runner(SAMPLE_MODEL)
    questions = [item["question"] for item in PROBLEMS]
    check_solutions(told["hrm"]["solve_hrm"], own, questions)
    check_choices(told["hrm"]["choose_hrm"], own, "")
    assert told["hrm"]["solve_hrm"]["results"]["exact_match,last-line"] == 0.75, (
        "the last problem is too large for it"
    )
    assert told["hrm"]["choose_hrm"]["samples"][2][1][1], "greedy decoding says the right sum"
    check_solutions(told["hrm-chat"]["solve"], own, dialogues())


def test_a_causal_model(told: dict[str, Any], causal_path: Path) -> None:
    own = runner(causal_path)
    questions = [item["question"] for item in PROBLEMS]
    check_solutions(told["causal"]["solve"], own, questions)
    check_choices(told["causal"]["choose"], own, "\n")
    check_solutions(told["causal-chat"]["solve"], own, dialogues())


def dialogues() -> list[Prompt]:
    return [Chat((Turn("user", item["question"]),)) for item in PROBLEMS]
