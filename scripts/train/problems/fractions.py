"""Calculations with fractions, and percentages."""

import math
import random

from scripts.train.problems.calculation import (
    TIMES_SIGN,
    calculation,
    compute,
    hundredths,
    percent_steps,
    working,
)
from scripts.train.problems.problem import Maker, Problem, boxed, pick, typed_loosely

_WORDINGS = (
    "Compute: {}",
    "What is {}?",
    "{}",
    "{} = ?",
    "{} =",
    "Calculate {}.",
    "Calculate: {}",
    "Evaluate {}.",
    "Work out {}.",
    "Find {} in lowest terms.",
    "Compute {} and reduce the result.",
    "What is {} as a reduced fraction?",
    "Give {} as a fraction.",
    "What's {}?",
    "How much is {}?",
    "Please compute {}.",
    "Solve: {}",
    "Compute step by step: {}",
)
_SIMPLIFY_WORDINGS = (
    "Simplify {}.",
    "Simplify: {}",
    "Reduce {}.",
    "Reduce {} to lowest terms.",
    "Write {} in lowest terms.",
    "What is {} in lowest terms?",
    "Simplify the fraction {}.",
    "Cancel {} as far as possible.",
)
_WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
_SIGNS = {"*": ("*", "*", TIMES_SIGN, "x"), "/": ("/", "÷", ":")}


def _text(top: int, bottom: int) -> str:
    """Return a fraction whose denominator is positive, or the whole number that it is."""
    return str(top) if bottom == 1 else f"{top}/{bottom}"


def _reduction(top: int, bottom: int) -> tuple[list[str], str]:
    """Return the lines that reduce a fraction, and what it is then.

    Each step divides by the smallest common factor, which is easier to see than the greatest.
    """
    lines = []
    common = math.gcd(top, bottom)
    factor = 2
    while common > 1:
        if common % factor:
            factor += 1
            continue
        size = abs(top)
        reduced = _text(top // factor, bottom // factor)
        lines.append(
            f"Divide by {factor}: {size} / {factor} = {size // factor}, "
            f"{bottom} / {factor} = {bottom // factor}"
        )
        lines.append(f"{top}/{bottom} = {reduced}")
        common //= factor
        top //= factor
        bottom //= factor
    return lines, _text(top, bottom)


def _proper(rng: random.Random, limit: int) -> tuple[int, int]:
    """Draw a reduced fraction. Its denominator is 2 to `limit`, and it is seldom over one."""
    bottom = int(rng.random() * (limit - 1)) + 2
    top = int(rng.random() * (bottom - 1)) + 1
    if rng.random() < 0.15:
        top += bottom
    common = math.gcd(top, bottom)
    return top // common, bottom // common


def _added(a: int, b: int, operator: str, c: int, d: int) -> tuple[list[str], str]:
    """Return the lines of `a/b + c/d` or `a/b - c/d`, and the result."""
    common = math.lcm(b, d)
    left = a * (common // b)
    right = c * (common // d)
    lines = []
    if b != d:
        lines.append(f"common denominator: {common}")
        for top, bottom, scaled in ((a, b, left), (c, d, right)):
            if bottom != common:
                lines.append(
                    f"{common} / {bottom} = {common // bottom}, "
                    f"{top} * {common // bottom} = {scaled}, {top}/{bottom} = {scaled}/{common}"
                )
    top = compute(left, operator, right)
    lines += calculation(left, operator, right)
    if top == 0:
        lines.append(f"0/{common} = 0")
        return lines, "0"
    lines.append(f"{a}/{b} {operator} {c}/{d} = {top}/{common}")
    reduced_lines, answer = _reduction(top, common)
    return lines + reduced_lines, answer


def _multiplied(a: int, b: int, c: int, d: int) -> tuple[list[str], str]:
    """Return the lines of `a/b * c/d`, and the result."""
    lines = calculation(a, "*", c) + calculation(b, "*", d)
    lines.append(f"{a}/{b} * {c}/{d} = {a * c}/{b * d}")
    reduced_lines, answer = _reduction(a * c, b * d)
    return lines + reduced_lines, answer


def make_fraction(rng: random.Random) -> Problem:
    """Return two fractions that are added, subtracted, multiplied or divided, or one to reduce."""
    draw = rng.random()
    if draw < 0.18:
        return _simplification(rng)
    if draw < 0.26:
        return _part_of_number(rng)
    if draw < 0.65:
        operator = rng.choice("+-")
        limit = rng.choice((12, 12, 20))
        a, b = _proper(rng, limit)
        c, d = _proper(rng, limit)
        if rng.random() < 0.2:
            # The same denominator, maybe not reduced.
            d = b
            c = int(rng.random() * b) + 1
        while math.lcm(b, d) > 120:
            c, d = _proper(rng, 12)
        lines, answer = _added(a, b, operator, c, d)
    else:
        operator = rng.choice("*/")
        a, b = _proper(rng, 12)
        c, d = _proper(rng, 12)
        while max(a, b) * max(c, d) > 150:
            c, d = _proper(rng, 12)
        if operator == "*":
            lines, answer = _multiplied(a, b, c, d)
        else:
            lines, answer = _multiplied(a, b, d, c)
            lines.insert(0, f"Flip the second fraction: {a}/{b} * {d}/{c}")

    key = f"{a}/{b} {operator} {c}/{d}"
    shown = key
    draw = rng.random()
    if draw < 0.15:
        shown = f"{a}/{b} {_WORDS[operator]} {c}/{d}"
    elif operator == "/":
        sign = rng.choice(_SIGNS["/"])
        shown = f"{a}/{b} {sign} {c}/{d}"
        if sign == "/" and draw < 0.5:
            shown = f"({a}/{b}) / ({c}/{d})"
    elif operator == "*":
        shown = f"{a}/{b} {rng.choice(_SIGNS['*'])} {c}/{d}"
    elif draw < 0.3:
        shown = key.replace(" ", "")
    prompt = typed_loosely(rng, pick(rng, _WORDINGS).format(shown))
    return Problem("fraction", key, prompt, boxed(lines, answer), answer)


def _simplification(rng: random.Random) -> Problem:
    a, b = _proper(rng, 20)
    common = int(rng.random() * 12) + 1
    a *= common
    b *= common
    lines, answer = _reduction(a, b)
    if not lines:
        lines.append(f"{a} and {b} have no common factor")
    prompt = typed_loosely(rng, pick(rng, _SIMPLIFY_WORDINGS).format(f"{a}/{b}"))
    return Problem("fraction", f"simplify {a}/{b}", prompt, boxed(lines, answer), answer)


def _part_of_number(rng: random.Random) -> Problem:
    """Return a fraction of a number that its denominator divides."""
    a, b = _proper(rng, 12)
    n = b * (int(rng.random() * 12) + 1)
    part = n // b
    key = f"{a}/{b} of {n}"
    lines = calculation(n, "/", b) + calculation(part, "*", a)
    answer = str(part * a)
    lines.append(f"{key} = {answer}")
    prompt = typed_loosely(rng, pick(rng, _WORDINGS[:9]).format(key))
    return Problem("fraction", key, prompt, boxed(lines, answer), answer)


_PART_WORDINGS = (
    "What is {p}% of {n}?",
    "{p}% of {n}",
    "{p}% of {n} = ?",
    "Find {p}% of {n}.",
    "Calculate {p}% of {n}.",
    "Compute: {p}% of {n}",
    "What is {p} percent of {n}?",
    "How much is {p}% of {n}?",
    "Take {p}% of {n}.",
    "Work out {p} percent of {n}.",
)
_RATE_WORDINGS = (
    "What percent of {n} is {k}?",
    "What percentage of {n} is {k}?",
    "{k} is what percent of {n}?",
    "How many percent of {n} is {k}?",
    "Express {k} as a percentage of {n}.",
    "{k} out of {n} is what percent?",
    "{k} of {n} in percent?",
)
_CHANGE_WORDINGS = {
    "increase": (
        "Increase {n} by {p}%.",
        "What is {n} increased by {p}%?",
        "What is {n} plus {p}%?",
        "{n} grows by {p}%. What is the new value?",
        "Raise {n} by {p} percent.",
        "Add {p}% to {n}.",
    ),
    "decrease": (
        "Decrease {n} by {p}%.",
        "What is {n} decreased by {p}%?",
        "What is {n} minus {p}%?",
        "{n} falls by {p}%. What is the new value?",
        "Reduce {n} by {p} percent.",
        "Take {p}% off {n}.",
    ),
}
# Multiples of 10 are drawn twice as often as the others.
_PERCENTS = (*range(1, 10), *range(10, 100, 5), *range(10, 100, 10), 12, 25, 75)


def make_percentage(rng: random.Random) -> Problem:
    """Return a part of a number, a rate, or a change by some percent."""
    draw = rng.random()
    if draw < 0.3:
        return _rate(rng)

    p = _PERCENTS[int(rng.random() * len(_PERCENTS))]
    n = int(rng.random() * 99) + 2
    if rng.random() < 0.6:
        n = 10 * (int(rng.random() * 50) + 1)
    if draw < 0.7:
        key = f"{p}% of {n}"
        prompt = pick(rng, _PART_WORDINGS).format(p=p, n=n)
        answer = hundredths(n * p)
        lines = percent_steps(p, n)
    else:
        verb = "increase" if draw < 0.85 else "decrease"
        # The part is a whole number, so that the last step is a sum of integers, and the product
        # has a factor of one digit.
        while n * p % 100 or (p % 10 and n % 100 and n > 90):
            n = 10 * (int(rng.random() * 50) + 1)
            p = 5 * (int(rng.random() * 19) + 1)
        part = n * p // 100
        key = f"{verb} {n} by {p}%"
        prompt = pick(rng, _CHANGE_WORDINGS[verb]).format(p=p, n=n)
        operator = "+" if verb == "increase" else "-"
        lines = percent_steps(p, n) + calculation(n, operator, part)
        answer = str(compute(n, operator, part))
    return Problem("percentage", key, typed_loosely(rng, prompt), boxed(lines, answer), answer)


def _rate(rng: random.Random) -> Problem:
    """Return the question what percent of n is k. The answer is whole."""
    if rng.random() < 0.6:
        n = 10 * (int(rng.random() * 12) + 1)
    else:
        n = rng.choice((4, 5, 8, 12, 25, 150, 200, 250, 300, 400, 500, 600, 800, 1000))
    # k is a multiple of the smallest number that is a whole percentage of n.
    unit = n // math.gcd(n, 100)
    k = unit * (int(rng.random() * (n // unit)) + 1)
    rate = 100 * k // n
    key = f"what percent of {n} is {k}"

    lines = [f"{k} * 100 = {k * 100}"]
    top = k * 100
    bottom = n
    while top % 10 == 0 and bottom % 10 == 0:
        top //= 10
        bottom //= 10
    if bottom != n:
        lines.append(f"{k * 100} / {n} = {top} / {bottom}")
    else:
        lines.append(f"{top} / {bottom}")
    lines += working(top, "/", bottom)
    lines.append(f"{k * 100} / {n} = {rate}")
    prompt = typed_loosely(rng, pick(rng, _RATE_WORDINGS).format(n=n, k=k))
    return Problem("percentage", key, prompt, boxed(lines, str(rate)), str(rate))


MAKERS: dict[str, Maker] = {"fraction": make_fraction, "percentage": make_percentage}
