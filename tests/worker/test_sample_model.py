"""The shipped sample model, its held-out problems and its training data."""

import itertools
import re
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from scripts.train.eval_sample import answers, exact_share
from scripts.train.sample_problems import (
    KINDS,
    REFUSAL,
    Problem,
    held_out,
    is_held_out,
    training_stream,
)
from shared.settings.settings import SAMPLE_MODEL
from tests.fixtures.polling import DEADLINE_S
from worker.engine.runner import Runner, RunnerOptions
from worker.models.weights import load_tokenizer
from worker.runners.registry import load_runner

NUM_PROBLEMS = 40
"""Problems of each kind. The model card quotes 500, which `python -m scripts.train.eval_sample` does."""


@pytest.fixture(scope="module")
def runner() -> Runner:
    return load_runner("auto", RunnerOptions(path=str(SAMPLE_MODEL), max_batch=32))


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_problems_are_solved(runner: Runner, kind: str) -> None:
    """At least 90 % of the answers to held-out problems of each kind are exact."""
    assert exact_share(runner, held_out(kind, NUM_PROBLEMS)) >= 0.9


def body_of(problem: Problem) -> str:
    """Return the formula of a problem, without the words around it."""
    return re.sub(r"^(Solve for x:|Solve:|Compute:|What is) | =$|\?$", "", problem.prompt)


def test_training_never_sees_a_held_out_problem() -> None:
    """No problem of the training stream is held out, and every held-out problem is."""
    for problem in itertools.islice(training_stream(0), 20_000):
        if problem.kind != "other":
            assert not is_held_out(problem.kind, body_of(problem)), problem.prompt

    for kind in KINDS:
        for problem in held_out(kind, 50):
            assert is_held_out(kind, body_of(problem)), problem.prompt


def test_every_generated_answer_is_true() -> None:
    """Every answer that the model is trained on is true by Python's own arithmetic."""
    num_checked = 0
    for problem in itertools.islice(training_stream(3), 5_000):
        if problem.kind == "other":
            continue
        formula = body_of(problem)
        if problem.kind == "equation":
            left, right = formula.split("=")
            x = int(problem.answer.removeprefix("x = "))
            # Python writes 2x as 2*x.
            python_left = re.sub(r"(\d)x", r"\1*x", left)
            assert eval(python_left, {"x": x}) == int(right), problem
        else:
            assert eval(formula) == int(problem.answer.removeprefix("= ")), problem
        num_checked += 1
    assert num_checked > 4_500


def test_the_readmes_example_and_small_talk(runner: Runner) -> None:
    """The equation of the README is solved, and small talk is refused."""
    problems = [
        Problem("equation", "Solve for x: 2x + 3 = 9", "x = 3"),
        Problem("other", "Hello", REFUSAL),
    ]

    solved, hello = answers(runner, problems)

    assert solved.endswith("\nx = 3")
    assert hello == REFUSAL


_LOAD = """
import sys
from worker.engine.runner import RunnerOptions
from worker.host.loading import warm_up
from worker.runners.registry import load_sequence_runner

runner = load_sequence_runner("auto", RunnerOptions(path=sys.argv[1]))
warm_up(runner)
slow = {"torch._dynamo", "torch._inductor", "transformers.generation.utils"}
print("imported:", sorted(slow & sys.modules.keys()))
"""


def test_it_starts_without_torchs_compiler() -> None:
    """Modules that take a second to import, and that no HRM on a CPU uses, are not imported."""
    run = subprocess.run(
        [sys.executable, "-c", _LOAD, str(SAMPLE_MODEL)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert run.stdout.strip() == "imported: []", run.stdout


def test_its_tokenizer_is_that_of_transformers() -> None:
    ours = load_tokenizer(SAMPLE_MODEL)
    theirs = AutoTokenizer.from_pretrained(SAMPLE_MODEL)
    assert type(ours) is type(theirs)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.model_max_length == theirs.model_max_length


def test_the_sample_is_small_enough_to_ship() -> None:
    """All files of the sample model together have at most 12 MB."""
    assert sum(file.stat().st_size for file in SAMPLE_MODEL.iterdir()) <= 12_000_000
