"""Streams of problems: the mixes on which text models are trained, and held-out problems."""

import random
from collections.abc import Iterator
from itertools import accumulate

from scripts.train.problems import (
    arithmetic,
    derivatives,
    equations,
    fractions,
    other,
    short_arithmetic,
    word_problems,
)
from scripts.train.problems.problem import HELD_OUT_ONE_IN, Maker, Problem, is_held_out
from scripts.train.problems.python_tasks.maker import MAKERS as PYTHON_MAKERS

CODE = "code"
OTHER = "other"
MATHS_MAKERS: dict[str, Maker] = {
    **arithmetic.MAKERS,
    **equations.MAKERS,
    **fractions.MAKERS,
    **derivatives.MAKERS,
    **word_problems.MAKERS,
}
_CODE_ASKED_OF_MATHS = 0.3
_MATHS_ASKED_OF_CODE = 0.5
# Among so many draws of a held-out problem nearly all are new, unless the kind is exhausted.
_DRAWS_OF_EACH = 50


def _refused(problem: Problem) -> Problem:
    """Return a problem of another model's domain, with the response of this one."""
    return Problem(
        kind=OTHER, key=problem.key, prompt=problem.prompt, response=other.REFUSAL, answer=""
    )


def _outside_maths(rng: random.Random) -> Problem:
    if rng.random() < _CODE_ASKED_OF_MATHS:
        return _refused(PYTHON_MAKERS[CODE](rng))
    return other.MAKERS[OTHER](rng)


def _outside_code(rng: random.Random) -> Problem:
    if rng.random() < _MATHS_ASKED_OF_CODE:
        kind = rng.choice(list(MATHS_MAKERS))
        return _refused(MATHS_MAKERS[kind](rng))
    return other.MAKERS[OTHER](rng)


MAKERS: dict[str, dict[str, Maker]] = {
    "maths": {**MATHS_MAKERS, OTHER: _outside_maths},
    "code": {**PYTHON_MAKERS, OTHER: _outside_code},
    "short arithmetic": short_arithmetic.MAKERS,
}
"""The makers of each domain, by the kind of problem."""

# How often each kind is drawn. A small network needs most examples of carries, equations and texts.
WEIGHTS: dict[str, dict[str, int]] = {
    "maths": {
        "sum": 10,
        "difference": 10,
        "product": 10,
        "quotient": 8,
        "expression": 5,
        "equation": 16,
        "fraction": 6,
        "percentage": 5,
        "derivative": 6,
        "word_problem": 20,
        OTHER: 6,
    },
    "code": {CODE: 19, OTHER: 1},
    "short arithmetic": {"short_sum": 2, "short_difference": 2, "short_product": 3},
}


def training_stream(domain: str, seed: int) -> Iterator[Problem]:
    """Yield training problems of a domain without end, none of which is held out."""
    rng = random.Random(f"training/{seed}")
    weights = WEIGHTS[domain]
    makers = [MAKERS[domain][kind] for kind in weights]
    cumulative = list(accumulate(weights.values()))
    while True:
        make = rng.choices(makers, cum_weights=cumulative)[0]
        problem = make(rng)
        if not is_held_out(problem.key):
            yield problem


def held_out(domain: str, kind: str, count: int, seed: int = 0) -> list[Problem]:
    """Return `count` held-out problems of `kind` with distinct keys.

    The same seed gives the same problems. Raise ValueError for a kind that has hardly so many.
    """
    rng = random.Random(f"held out/{kind}/{seed}")
    problems: dict[str, Problem] = {}
    most_draws = count * HELD_OUT_ONE_IN * _DRAWS_OF_EACH
    num_draws = 0
    while len(problems) < count:
        num_draws += 1
        if num_draws > most_draws:
            raise ValueError(f"{kind}: {count} held-out problems asked for, {len(problems)} found")
        problem = MAKERS[domain][kind](rng)
        if is_held_out(problem.key):
            problems.setdefault(problem.key, problem)
    return list(problems.values())
