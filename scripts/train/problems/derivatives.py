"""Derivatives of polynomials, one term a line."""

import random

from scripts.train.problems.problem import Maker, Problem, boxed, pick, typed_loosely

# {p} is the polynomial, {f} the function and {v} the variable.
_FUNCTION_WORDINGS = (
    "Find the derivative of {f}({v}) = {p}",
    "Find the derivative of {f}({v}) = {p}.",
    "Differentiate {f}({v}) = {p}.",
    "Differentiate: {f}({v}) = {p}",
    "{f}({v}) = {p}. Find {f}'({v}).",
    "{f}({v}) = {p}. What is {f}'({v})?",
    "What is the derivative of {f}({v}) = {p}?",
    "Compute the derivative of {f}({v}) = {p}.",
    "Compute {f}'({v}) for {f}({v}) = {p}.",
    "If {f}({v}) = {p}, what is {f}'({v})?",
    "If {f}({v}) = {p}, find {f}'({v}).",
    "Let {f}({v}) = {p}. Find {f}'({v}).",
    "Given {f}({v}) = {p}, compute {f}'({v}).",
    "Calculate {f}'({v}): {f}({v}) = {p}",
    "Derive {f}({v}) = {p}.",
    "{f}({v}) = {p}, {f}'({v}) = ?",
)
_Y_WORDINGS = (
    "Find dy/d{v} if y = {p}.",
    "Differentiate y = {p}.",
    "Find the derivative of y = {p}.",
    "y = {p}. Find dy/d{v}.",
    "y = {p}. What is y'?",
    "What is dy/d{v} for y = {p}?",
    "If y = {p}, find y'.",
    "Compute y' for y = {p}.",
)
_BARE_WORDINGS = (
    "What is d/d{v} of {p}?",
    "Differentiate {p}.",
    "Find the derivative of {p}.",
    "What is the derivative of {p}?",
    "d/d{v} ({p})",
    "d/d{v}({p}) = ?",
    "Differentiate {p} with respect to {v}.",
    "Compute the derivative of {p}.",
    "Compute d/d{v} of {p}.",
    "Take the derivative of {p}.",
    "derivative of {p}",
    "Give the derivative of {p}.",
)
_FUNCTIONS = "ffffffgghpqru"

# Coefficients by degree, the highest first. Those of 0 are left out.
Polynomial = list[tuple[int, int]]


def _monomial(size: int, degree: int, v: str) -> str:
    """Return a term without its sign."""
    if degree == 0:
        return str(size)
    power = v if degree == 1 else f"{v}^{degree}"
    return power if size == 1 else f"{size}{power}"


def polynomial_text(polynomial: Polynomial, v: str) -> str:
    """Return `3x^2 + 4x - 5`, with the terms in the order given."""
    text = ""
    for coefficient, degree in polynomial:
        if text:
            text += " - " if coefficient < 0 else " + "
        elif coefficient < 0:
            text = "-"
        text += _monomial(abs(coefficient), degree, v)
    return text or "0"


def derivative_of(polynomial: Polynomial) -> Polynomial:
    derivative = []
    for coefficient, degree in polynomial:
        if degree:
            derivative.append((coefficient * degree, degree - 1))
    return derivative


def draw_polynomial(rng: random.Random) -> Polynomial:
    """Draw a polynomial of one to five terms and degree up to 5, the highest degree first."""
    count = (1, 2, 2, 3, 3, 3, 4, 4, 5)[int(rng.random() * 9)]
    highest = max(count - 1, int(rng.random() * 5) + 1)
    degrees = rng.sample(range(highest + 1), count)
    degrees.sort(reverse=True)
    polynomial = []
    for degree in degrees:
        coefficient = int(rng.random() * 12) + 1
        draw = rng.random()
        if draw < 0.2:
            coefficient = 1
        elif draw > 0.6:
            coefficient = -coefficient
        polynomial.append((coefficient, degree))
    return polynomial


def make_derivative(rng: random.Random) -> Problem:
    """Return a polynomial to differentiate."""
    return derivative_problem(rng, draw_polynomial(rng))


def derivative_problem(rng: random.Random, polynomial: Polynomial) -> Problem:
    """Return the question for a derivative in a random wording.

    The key is the polynomial in x, in the usual order.
    """
    v = "x"
    draw = rng.random()
    if draw < 0.1:
        v = "t"
    elif draw < 0.14:
        v = rng.choice("zusnw")

    shown_terms = polynomial
    if rng.random() < 0.12:
        shown_terms = rng.sample(polynomial, len(polynomial))
    shown = polynomial_text(shown_terms, v)
    draw = rng.random()
    if draw < 0.1:
        shown = shown.replace(" ", "")
    elif draw < 0.15:
        shown = shown.replace("^", "**")

    result = polynomial_text(derivative_of(polynomial), v)
    draw = rng.random()
    name = ""
    if draw < 0.55:
        name = _FUNCTIONS[int(rng.random() * len(_FUNCTIONS))]
        while name == v:
            name = "f"
        prompt = pick(rng, _FUNCTION_WORDINGS).format(f=name, v=v, p=shown)
        last = f"{name}'({v}) = {result}"
    elif draw < 0.7:
        prompt = pick(rng, _Y_WORDINGS).format(v=v, p=shown)
        last = f"y' = {result}"
    else:
        prompt = pick(rng, _BARE_WORDINGS).format(v=v, p=shown)
        last = f"derivative = {result}"

    lines = []
    for term in polynomial:
        text = polynomial_text([term], v)
        lines.append(f"{text} -> {polynomial_text(derivative_of([term]), v)}")
    lines.append(last)
    key = polynomial_text(polynomial, "x")
    response = boxed(lines, result)
    return Problem("derivative", key, typed_loosely(rng, prompt), response, result)


MAKERS: dict[str, Maker] = {"derivative": make_derivative}
