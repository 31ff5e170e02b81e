"""The shipped sample model: exact on held-out problems, honest about what was held out."""

import itertools
import re

import pytest

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
from worker.engine.runner import Runner, RunnerOptions
from worker.runners.registry import load_runner

NUM_PROBLEMS = 40
"""Of each kind; `python -m scripts.train.eval_sample` does the 500 that the model card quotes."""


@pytest.fixture(scope="module")
def runner() -> Runner:
    return load_runner("auto", RunnerOptions(path=str(SAMPLE_MODEL), max_batch=32))


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_problems_are_solved(runner: Runner, kind: str) -> None:
    """Issue bar: >= 90 % exact on held-out problems of each kind."""
    assert exact_share(runner, held_out(kind, NUM_PROBLEMS)) >= 0.9


def body_of(problem: Problem) -> str:
    return re.sub(r"^(Solve for x:|Solve:|Compute:|What is) | =$|\?$", "", problem.prompt)


def test_training_never_sees_a_held_out_problem() -> None:
    for problem in itertools.islice(training_stream(0), 20_000):
        if problem.kind != "other":
            assert not is_held_out(problem.kind, body_of(problem)), problem.prompt
    for kind in KINDS:
        assert all(is_held_out(kind, body_of(problem)) for problem in held_out(kind, 50))


def test_every_generated_answer_is_true() -> None:
    """The oracle is Python's own arithmetic: the generator cannot have taught the model something
    false."""
    checked = 0
    for problem in itertools.islice(training_stream(3), 5_000):
        if problem.kind == "equation":
            left, right = body_of(problem).split("=")
            x = int(problem.answer.removeprefix("x = "))
            assert eval(re.sub(r"(\d)x", r"\1*x", left), {"x": x}) == int(right), problem
        elif problem.kind != "other":
            assert eval(body_of(problem)) == int(problem.answer.removeprefix("= ")), problem
        checked += problem.kind != "other"
    assert checked > 4_500


def test_the_readmes_example_and_small_talk(runner: Runner) -> None:
    asked = [
        Problem("equation", "Solve for x: 2x + 3 = 9", "x = 3"),
        Problem("other", "Hello", REFUSAL),
    ]
    solved, hello = answers(runner, asked)
    assert solved.endswith("\nx = 3")
    assert hello == REFUSAL


def test_the_sample_is_small_enough_to_ship() -> None:
    """At most 12 MB in all."""
    assert sum(file.stat().st_size for file in SAMPLE_MODEL.iterdir()) <= 12_000_000
