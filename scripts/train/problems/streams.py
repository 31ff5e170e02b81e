"""All kinds of problems, in the mix on which the sample model is trained."""

import random
from collections.abc import Iterator
from itertools import accumulate

from scripts.train.problems import (
    arithmetic,
    derivatives,
    equations,
    fractions,
    other,
    word_problems,
)
from scripts.train.problems.problem import Maker, Problem, is_held_out

MAKERS: dict[str, Maker] = {
    **arithmetic.MAKERS,
    **equations.MAKERS,
    **fractions.MAKERS,
    **derivatives.MAKERS,
    **word_problems.MAKERS,
    **other.MAKERS,
}

# How often each kind is drawn. A small network needs most examples of carries, equations and texts.
WEIGHTS: dict[str, int] = {
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
    "other": 6,
}


def training_stream(seed: int) -> Iterator[Problem]:
    """Yield training problems without end, none of which is held out."""
    rng = random.Random(f"training/{seed}")
    makers = [MAKERS[kind] for kind in WEIGHTS]
    cumulative = list(accumulate(WEIGHTS.values()))
    while True:
        make = rng.choices(makers, cum_weights=cumulative)[0]
        problem = make(rng)
        if not is_held_out(problem.key):
            yield problem


def held_out(kind: str, count: int, seed: int = 0) -> list[Problem]:
    """Return `count` held-out problems of `kind` with distinct keys.

    The same seed gives the same problems.
    """
    rng = random.Random(f"held out/{kind}/{seed}")
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        problem = MAKERS[kind](rng)
        if is_held_out(problem.key):
            problems.setdefault(problem.key, problem)
    return list(problems.values())
