"""Sums, differences, products, quotients and short expressions of integers."""

import random

from scripts.train.problems.calculation import (
    TABLE,
    TIMES_SIGN,
    bracket,
    calculation,
    compute,
    difference_columns,
    division_steps,
    long_product,
    product_columns,
    sum_columns,
)
from scripts.train.problems.problem import Maker, Problem, boxed, pick, typed_loosely
from scripts.train.problems.step_engine import parse_steps, solve

PLACES = ("ones", "tens", "hundreds", "thousands", "ten thousands")

# Both numbers of a calculation below this are added and subtracted in one line.
_SMALL = 20

_WORDINGS = (
    "Compute: {}",
    "What is {}?",
    "{}",
    "{} = ?",
    "{} =",
    "Calculate {}.",
    "Calculate: {}",
    "Compute {}.",
    "Evaluate {}.",
    "Evaluate: {}",
    "Work out {}.",
    "Find {}.",
    "Find the value of {}.",
    "How much is {}?",
    "What does {} equal?",
    "What do you get for {}?",
    "Please compute {}.",
    "Can you calculate {}?",
    "Tell me what {} is.",
    "Solve: {}",
    "I need to know {}.",
    "{} equals what?",
    "Give the result of {}.",
    "Give me the answer to {}.",
    "Compute step by step: {}",
    "Please calculate: {}",
    "Answer: {}",
    "Do the sum: {}",
    "Result of {}?",
    "{} is how much?",
    "What's {}?",
    "how much is {}",
    "Quick: {}",
    "Show me how to compute {}.",
)
_SUM_WORDINGS = (
    "Add {a} and {b}.",
    "What is the sum of {a} and {b}?",
    "Find the sum of {a} and {b}.",
    "Add {b} to {a}.",
    "What is {a} added to {b}?",
    "Compute the sum of {a} and {b}.",
    "How much do {a} and {b} make together?",
)
_DIFFERENCE_WORDINGS = (
    "Subtract {b} from {a}.",
    "What is the difference of {a} and {b}?",
    "Take {b} away from {a}.",
    "What is {a} less {b}?",
    "What remains if {b} is taken from {a}?",
    "Find the difference: {a} and {b}",
)
_PRODUCT_WORDINGS = (
    "Multiply {a} by {b}.",
    "What is the product of {a} and {b}?",
    "Find the product of {a} and {b}.",
    "Multiply {a} and {b}.",
    "What is {a} multiplied by {b}?",
)
_QUOTIENT_WORDINGS = (
    "Divide {a} by {b}.",
    "What is {a} divided by {b}?",
    "How many times does {b} go into {a}?",
    "Find the quotient of {a} and {b}.",
    "Work out {a} divided by {b}.",
)
_REMAINDER_WORDINGS = (
    "Divide {a} by {b} with remainder.",
    "What is {a} divided by {b}, with remainder?",
    "Find the quotient and the remainder of {a} / {b}.",
    "Compute {a} / {b} with remainder.",
    "How many times does {b} go into {a}, and what remains?",
)
_WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
_SIGNS = {"*": ("*", "*", "x", TIMES_SIGN), "/": ("/", "/", "÷")}


def _number(rng: random.Random, *, max_digits: int = 4) -> int:
    """Draw a number of up to `max_digits` digits, negative one time in ten."""
    size = 10 ** rng.randint(1, max_digits) - 1
    value = int(rng.random() * (size + 1))
    if rng.random() < 0.1:
        value = -value
    return value


def _written(rng: random.Random, a: int, operator: str, b: int) -> str:
    """Return `a operator b` in one of the ways people write it."""
    draw = rng.random()
    if draw < 0.15:
        return f"{a} {_WORDS[operator]} {b}"
    sign = operator
    if operator in _SIGNS:
        signs = _SIGNS[operator]
        sign = signs[int(rng.random() * len(signs))]
    right = bracket(b)
    if draw < 0.35:
        return f"{a}{sign}{right}"
    return f"{a} {sign} {right}"


def _prompt(rng: random.Random, a: int, operator: str, b: int, *, special: tuple[str, ...]) -> str:
    """Return a prompt for `a operator b`. One in five is worded for the operation."""
    if rng.random() < 0.2:
        prompt = special[int(rng.random() * len(special))].format(a=a, b=b)
    else:
        prompt = pick(rng, _WORDINGS).format(_written(rng, a, operator, b))
    return typed_loosely(rng, prompt)


def _added(a: int, b: int) -> list[str]:
    """Return the lines of `a + b`, neither of which is negative: one a column, then the result."""
    lines = []
    if max(a, b) >= _SMALL:
        columns = sum_columns(a, b)
        for place, (text, total) in enumerate(columns):
            line = f"{PLACES[place]}: {text}"
            if total > 9 and place < len(columns) - 1:
                line += f", write {total - 10}, carry 1"
            lines.append(line)
    lines.append(f"{a} + {b} = {a + b}")
    return lines


def _subtracted(a: int, b: int) -> list[str]:
    """Return the lines of `a - b`, where `0 <= b <= a`: one a column, then the result."""
    lines = []
    if a >= _SMALL:
        for place, (text, borrows) in enumerate(difference_columns(a, b)):
            line = f"{PLACES[place]}: {text}"
            if borrows:
                line += ", borrow 1"
            lines.append(line)
    lines.append(f"{a} - {b} = {a - b}")
    return lines


def _signed_steps(text: str, a: int, b: int) -> list[str]:
    """Return the lines of `text`, whose value is `a + b`, by a calculation without signs."""
    value = a + b
    big = max(abs(a), abs(b))
    small = min(abs(a), abs(b))
    if (a < 0) == (b < 0):
        inner = f"{abs(a)} + {abs(b)}"
        lines = _added(abs(a), abs(b))
    else:
        inner = f"{big} - {small}"
        lines = _subtracted(big, small)
    if inner == text:
        return lines

    if value < 0:
        inner = f"-({inner})"
    return [f"{text} = {inner}", *lines, f"{text} = {value}"]


def _chain(rng: random.Random, kind: str) -> Problem:
    """Return a problem of three terms. Its kind is that of the first operator."""
    max_digits = rng.choice((2, 2, 3))
    a = abs(_number(rng, max_digits=max_digits))
    b = abs(_number(rng, max_digits=max_digits))
    c = abs(_number(rng, max_digits=max_digits))
    first = "+" if kind == "sum" else "-"
    second = rng.choice("+-")
    subtotal = compute(a, first, b)
    value = compute(subtotal, second, c)

    key = f"{a} {first} {b} {second} {c}"
    text = key
    draw = rng.random()
    if draw < 0.2:
        text = key.replace(" ", "")
    elif draw < 0.3:
        text = f"{a} {_WORDS[first]} {b} {_WORDS[second]} {c}"
    prompt = typed_loosely(rng, pick(rng, _WORDINGS).format(text))
    lines = calculation(a, first, b) + calculation(subtotal, second, c)
    return Problem(kind, key, prompt, boxed(lines, str(value)), str(value))


def make_sum(rng: random.Random) -> Problem:
    """Return a sum of two integers of up to four digits, or a chain of three terms."""
    if rng.random() < 0.15:
        return _chain(rng, "sum")
    return sum_problem(rng, _number(rng), _number(rng))


def sum_problem(rng: random.Random, a: int, b: int) -> Problem:
    """Return `a + b` in a random wording."""
    key = f"{a} + {bracket(b)}"
    prompt = _prompt(rng, a, "+", b, special=_SUM_WORDINGS)
    answer = str(a + b)
    return Problem("sum", key, prompt, boxed(_signed_steps(key, a, b), answer), answer)


def make_difference(rng: random.Random) -> Problem:
    """Return a difference of two integers of up to four digits, or a chain of three terms.

    Three in four have a result that is not negative.
    """
    if rng.random() < 0.15:
        return _chain(rng, "difference")
    a = _number(rng)
    b = _number(rng)
    if a < b and rng.random() < 0.5:
        a, b = b, a
    key = f"{a} - {bracket(b)}"
    prompt = _prompt(rng, a, "-", b, special=_DIFFERENCE_WORDINGS)
    answer = str(a - b)
    return Problem("difference", key, prompt, boxed(_signed_steps(key, a, -b), answer), answer)


def _product_steps(a: int, b: int) -> list[str]:
    """Return the lines of `a * b`, neither of which is negative, except for the result."""
    if max(a, b) <= TABLE:
        return []
    lines = []
    if a < 10:
        lines.append(f"{a} * {b} = {b} * {a}")
        a, b = b, a
    if b >= 10:
        return lines + long_product(a, b)

    columns = product_columns(a, b)
    for place, (text, total) in enumerate(columns):
        line = f"{PLACES[place]}: {text}"
        if total > 9 and place < len(columns) - 1:
            line += f", write {total % 10}, carry {total // 10}"
        lines.append(line)
    return lines


def make_product(rng: random.Random) -> Problem:
    """Return a product of up to 2 x 2 digits, or of 3 or 4 digits x 1 digit."""
    draw = rng.random()
    if draw < 0.25:
        a = rng.randint(0, 12)
        b = rng.randint(0, 12)
    elif draw < 0.5:
        a = rng.randint(10, 99)
        b = rng.randint(2, 9)
    elif draw < 0.8:
        a = rng.randint(10, 99)
        b = rng.randint(10, 99)
    else:
        a = rng.randint(100, rng.choice((999, 9999)))
        b = rng.randint(2, 9)
    if rng.random() < 0.3:
        a, b = b, a
    product = a * b
    plain = f"{a} * {b}"
    lines = _product_steps(a, b)
    lines.append(f"{plain} = {product}")

    if product and rng.random() < 0.08:
        a = -a
        inner = f"-({plain})"
        if rng.random() < 0.4:
            b = -b
            inner = plain
        product = a * b
        lines.insert(0, f"{a} * {bracket(b)} = {inner}")
        lines.append(f"{a} * {bracket(b)} = {product}")
    prompt = _prompt(rng, a, "*", b, special=_PRODUCT_WORDINGS)
    key = f"{a} * {bracket(b)}"
    return Problem("product", key, prompt, boxed(lines, str(product)), str(product))


def make_quotient(rng: random.Random) -> Problem:
    """Return a division of up to four digits by 1 to 12: exact, or with a remainder."""
    divisor = rng.randint(1, 12)
    is_exact = rng.random() < 0.65
    if is_exact:
        most = min(rng.choice((12, 99, 999, 999)), 9999 // divisor)
        dividend = divisor * rng.randint(1, most)
    else:
        divisor = max(divisor, 2)
        dividend = rng.randint(divisor, rng.choice((99, 999, 999, 9999)))
        is_exact = dividend % divisor == 0
    quotient, remainder = divmod(dividend, divisor)
    key = f"{dividend} / {divisor}"
    special = _QUOTIENT_WORDINGS
    if not is_exact and rng.random() < 0.7:
        special = _REMAINDER_WORDINGS
    prompt = _prompt(rng, dividend, "/", divisor, special=special)

    lines = []
    if quotient > TABLE and divisor > 1:
        for part, digit, rest in division_steps(dividend, divisor):
            lines.append(_division_line(part, divisor, digit, rest))
    elif divisor > 1:
        lines.append(_division_line(dividend, divisor, quotient, remainder))
    answer = str(quotient)
    if not is_exact:
        answer += f" remainder {remainder}"
    lines.append(f"{key} = {answer}")
    return Problem("quotient", key, prompt, boxed(lines, answer), answer)


def _division_line(part: int, divisor: int, digit: int, rest: int) -> str:
    """Return a step of a division, in which the product comes before the remainder."""
    product = divisor * digit
    return f"{part} / {divisor}: {divisor} * {digit} = {product}, {part} - {product} = {rest}"


# A form of expression, and the steps that compute it.
_FORMS = tuple(
    (text, parse_steps(steps))
    for text, steps in (
        ("{a} + {b} * {c}", "p = b * c; r = a + p"),
        ("{a} - {b} * {c}", "p = b * c; r = a - p"),
        ("{a} * {b} + {c}", "p = a * b; r = p + c"),
        ("{a} * {b} - {c}", "p = a * b; r = p - c"),
        ("({a} + {b}) * {c}", "p = a + b; r = p * c"),
        ("({a} - {b}) * {c}", "p = a - b; r = p * c"),
        ("{a} * ({b} + {c})", "p = b + c; r = a * p"),
        ("{a} * ({b} - {c})", "p = b - c; r = a * p"),
        ("{a} - ({b} - {c})", "p = b - c; r = a - p"),
        ("{a} - ({b} + {c})", "p = b + c; r = a - p"),
        ("{a} * {b} + {c} * {d}", "p = a * b; q = c * d; r = p + q"),
        ("{a} * {b} - {c} * {d}", "p = a * b; q = c * d; r = p - q"),
        ("({a} + {b}) * ({c} - {d})", "p = a + b; q = c - d; r = p * q"),
        ("({a} + {b}) * {c} - {d}", "p = a + b; q = p * c; r = q - d"),
        ("{a} + {b} * ({c} - {d})", "p = c - d; q = b * p; r = a + q"),
        ("{b} * {e} * {f}", "p = b * e; r = p * f"),
        ("{m} / {c} + {a}", "p = m / c; r = p + a"),
        ("{a} + {m} / {c}", "p = m / c; r = a + p"),
        ("{a} - {m} / {c}", "p = m / c; r = a - p"),
        ("{m} / {c} - {a}", "p = m / c; r = p - a"),
        ("{m} / {c} * {a}", "p = m / c; r = p * a"),
        ("{a} * ({m} / {c})", "p = m / c; r = a * p"),
        ("{m} / ({e} + {f})", "p = e + f; r = m / p"),
        ("{a} + {m} / ({e} + {f})", "p = e + f; q = m / p; r = a + q"),
    )
)


def make_expression(rng: random.Random) -> Problem:
    """Return an expression of three or four small numbers, with precedence and brackets."""
    text, steps = _FORMS[int(rng.random() * len(_FORMS))]
    c = int(rng.random() * 11) + 2
    values = {
        "a": int(rng.random() * 20) + 1,
        "b": int(rng.random() * 12) + 1,
        "c": c,
        "d": int(rng.random() * 12) + 1,
        "m": c * (int(rng.random() * 11) + 2),
        "e": int(rng.random() * (c - 1)) + 1,
    }
    values["f"] = c - values["e"]
    key = text.format(**values)
    lines = solve(steps, values, labelled=False)
    answer = str(values["r"])

    shown = key
    draw = rng.random()
    if draw < 0.2:
        shown = key.replace(" ", "")
    elif draw < 0.3:
        shown = key.replace("*", TIMES_SIGN)
    elif draw < 0.35:
        shown = key.replace("*", "x")
    prompt = typed_loosely(rng, pick(rng, _WORDINGS).format(shown))
    return Problem("expression", key, prompt, boxed(lines, answer), answer)


MAKERS: dict[str, Maker] = {
    "sum": make_sum,
    "difference": make_difference,
    "product": make_product,
    "quotient": make_quotient,
    "expression": make_expression,
}
