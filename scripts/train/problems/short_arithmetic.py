"""Sums, differences and products of small numbers, answered at once: no steps are written."""

import random

from scripts.train.problems.problem import Maker, Problem, pick, typed_loosely

_WORDINGS = (
    "{a} {sign} {b}",
    "Compute: {a} {sign} {b}",
    "What is {a} {sign} {b}?",
    "{a} {sign} {b} =",
    "Calculate {a} {sign} {b}.",
)
_MOST = 99
_MOST_FACTOR = 12


def _problem(rng: random.Random, a: int, sign: str, b: int, value: int) -> Problem:
    prompt = typed_loosely(rng, pick(rng, _WORDINGS).format(a=a, sign=sign, b=b))
    body = f"{a} {sign} {b}"
    response = f"{body} = {value}\n\\boxed{{{value}}}"
    return Problem(
        kind={"+": "short_sum", "-": "short_difference", "*": "short_product"}[sign],
        key=f"short {body}",
        prompt=prompt,
        response=response,
        answer=str(value),
    )


def _sum(rng: random.Random) -> Problem:
    a = rng.randint(0, _MOST)
    b = rng.randint(0, _MOST)
    return _problem(rng, a, "+", b, a + b)


def _difference(rng: random.Random) -> Problem:
    a = rng.randint(0, _MOST)
    b = rng.randint(0, _MOST)
    return _problem(rng, a, "-", b, a - b)


def _product(rng: random.Random) -> Problem:
    a = rng.randint(0, _MOST)
    b = rng.randint(0, _MOST_FACTOR)
    if rng.random() < 0.5:
        a, b = b, a
    return _problem(rng, a, "*", b, a * b)


MAKERS: dict[str, Maker] = {
    "short_sum": _sum,
    "short_difference": _difference,
    "short_product": _product,
}
