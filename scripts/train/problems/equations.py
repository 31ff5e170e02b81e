"""Linear equations in one variable, solved one small step a line."""

import math
import random
from fractions import Fraction

from scripts.train.problems.calculation import bracket, calculation, working
from scripts.train.problems.problem import Maker, Problem, boxed, pick, typed_loosely

_WORDINGS = (
    "Solve for {v}: {e}",
    "Solve: {e}",
    "Solve {e}.",
    "Solve {e} for {v}.",
    "Find {v} if {e}.",
    "What is {v} if {e}?",
    "{e}",
    "{e}, {v} = ?",
    "Find {v}: {e}",
    "Find {v} such that {e}.",
    "Find the value of {v}: {e}",
    "Determine {v}: {e}",
    "Solve the equation {e}",
    "Solve the equation: {e}",
    "Solve the equation {e} for {v}.",
    "If {e}, what is {v}?",
    "If {e}, find {v}.",
    "Given {e}, find {v}.",
    "What value of {v} satisfies {e}?",
    "For which {v} is {e}?",
    "Calculate {v}: {e}",
    "Solve this equation: {e}",
    "Can you solve {e}?",
    "Please solve {e}",
    "Solve {e} and give {v}.",
    "What does {v} equal if {e}?",
    "Work out {v} when {e}.",
    "Which number {v} makes {e} true?",
    "{e}. Find {v}.",
    "{e}. What is {v}?",
    "{e}, find {v}",
    "Solve for {v} in {e}.",
    "Solve for {v}. {e}",
    "Solve step by step: {e}",
    "Isolate {v}: {e}",
    "Please find {v}: {e}",
    "Let {e}. What is {v}?",
    "Equation: {e}",
    "I need {v} from {e}.",
)
# x is drawn in more than half of the cases.
_VARIABLES = "x" * 26 + "yyynnnttaabckmpqrsuwz"

_SLASHES = ("/", "/", "/", " / ")

# The signed terms of one side: a coefficient, and a variable or "" for the constant.
Terms = list[tuple[int, str]]


class _Style:
    """A way to type equations: with or without spaces and signs of multiplication."""

    def __init__(self, *, times: str = "", space: str = " ") -> None:
        self._times = times
        self._plus = f"{space}+{space}"
        self._minus = f"{space}-{space}"
        self._equals = f"{space}={space}"

    def term(self, coefficient: int, symbol: str) -> str:
        """Return a term without its sign: `3`, `x`, `3x` or `3 * x`."""
        size = abs(coefficient)
        if not symbol:
            return str(size)
        if size == 1:
            return symbol
        return f"{size}{self._times}{symbol}"

    def side(self, terms: Terms) -> str:
        text = ""
        for coefficient, symbol in terms:
            if coefficient == 0:
                continue
            sign = self._minus if coefficient < 0 else self._plus
            if not text:
                sign = sign.strip().removeprefix("+")
            text += sign + self.term(coefficient, symbol)
        return text or "0"

    def equation(self, left: str, right: str) -> str:
        return left + self._equals + right


_PLAIN = _Style()
_STYLES = (
    (_PLAIN,) * 12
    + (_Style(space=""),) * 4
    + (_Style(times=" * "), _Style(times="*"), _Style(times="*"), _Style(times="*", space=""))
)


def side(*terms: tuple[int, str]) -> str:
    """Return signed terms as text. Those with a coefficient of 0 are left out."""
    return _PLAIN.side(list(terms))


def fraction_text(value: Fraction) -> str:
    """Return `-7/3`, or `4` if the value is whole."""
    if value.denominator == 1:
        return str(value.numerator)
    return f"{value.numerator}/{value.denominator}"


def _move(v: str, a: int, b: int, c: int) -> list[str]:
    """Return the lines that bring `av + b = c` to `av = c - b`."""
    term = side((a, v))
    if b > 0:
        lines = [f"Subtract {b} from both sides: {term} = {c} - {b}"]
    else:
        lines = [f"Add {-b} to both sides: {term} = {c} + {-b}"]
    lines += working(c, "-", b)
    lines.append(f"{term} = {c - b}")
    return lines


def linear_steps(v: str, a: int, b: int, c: int) -> list[str]:
    """Return the lines that solve `av + b = c`, which itself is already written."""
    lines = []
    if b:
        lines += _move(v, a, b, c)
    right = c - b
    if a == 1:
        return lines

    lines.append(f"Divide both sides by {a}: {v} = {right} / {bracket(a)}")
    quotient, remainder = divmod(right, a)
    if remainder == 0:
        lines += working(right, "/", a)
        lines.append(f"{v} = {quotient}")
        return lines
    common = math.gcd(right, a)
    if common > 1:
        top = abs(right)
        bottom = abs(a)
        lines.append(
            f"{top} / {common} = {top // common}, {bottom} / {common} = {bottom // common}"
        )
    lines.append(f"{v} = {fraction_text(Fraction(right, a))}")
    return lines


def two_sided_steps(v: str, a: int, b: int, c: int, d: int) -> list[str]:
    """Return the lines that solve `av + b = cv + d`, which itself is already written."""
    if c == 0:
        return linear_steps(v, a, b, d)
    if c > 0:
        verb = f"Subtract {side((c, v))} from both sides"
    else:
        verb = f"Add {side((-c, v))} to both sides"
    lines = [
        f"{verb}: {side((a, v), (-c, v), (b, ''))} = {d}",
        f"{side((a - c, v), (b, ''))} = {d}",
    ]
    return lines + linear_steps(v, a - c, b, d)


def _coefficient(rng: random.Random, *, limit: int = 20) -> int:
    """Draw a coefficient, seldom a large or a negative one."""
    size = int(rng.random() * 9) + 1
    if rng.random() < 0.2:
        size = int(rng.random() * limit) + 1
    if rng.random() < 0.15:
        return -size
    return size


def _constant(rng: random.Random) -> int:
    size = int(rng.random() * 20) + 1
    if rng.random() < 0.4:
        return -size
    return size


def _solution(rng: random.Random) -> int:
    limit = 12 if rng.random() < 0.75 else 50
    value = int(rng.random() * (limit + 1))
    if rng.random() < 0.25:
        return -value
    return value


class Equation:
    """An equation as it is asked, and the lines that solve it."""

    def __init__(self, rng: random.Random) -> None:
        self.v = _VARIABLES[int(rng.random() * len(_VARIABLES))]
        self.style = _STYLES[int(rng.random() * len(_STYLES))]
        self.steps: list[str] = []
        self.value = Fraction(0)
        self.left = ""
        self.right = ""
        self.key = ""
        self._rng = rng

    def shuffled(self, *terms: tuple[int, str]) -> str:
        """Return the terms of a side in the equation's style, now and then in another order.

        A side that begins with a minus is turned more often: `9 - 2x`.
        """
        parts = [term for term in terms if term[0]]
        chance = 0.6 if parts[0][0] < 0 else 0.25
        if self._rng.random() < chance:
            parts.reverse()
        return self.style.side(parts)

    def ask(self, left: str, right: int) -> None:
        """Set the sides, one time in five the other way round. The steps then swap them first."""
        self.left = left
        self.right = str(right)
        if self._rng.random() < 0.2:
            self.left = str(right)
            self.right = left
            self.steps.insert(0, f"Swap the sides: {self.key.replace('x', self.v)}")


def _draw_one_sided(rng: random.Random) -> Equation:
    a = _coefficient(rng)
    b = _constant(rng)
    if a != 1 and rng.random() < 0.06:
        b = 0
    c = a * _solution(rng) + b
    if abs(c) > 300 or rng.random() < 0.1:
        c = _constant(rng)
    return one_sided(rng, a, b, c)


def one_sided(rng: random.Random, a: int, b: int, c: int) -> Equation:
    """Return `ax + b = c` in a random variable and style."""
    equation = Equation(rng)
    v = equation.v
    equation.value = Fraction(c - b, a)
    equation.key = f"{side((a, 'x'), (b, ''))} = {c}"
    equation.steps = linear_steps(v, a, b, c)
    equation.ask(equation.shuffled((a, v), (b, "")), c)
    return equation


def _two_sided(rng: random.Random) -> Equation:
    """Return `ax + b = cx + d`."""
    equation = Equation(rng)
    v = equation.v
    a = _coefficient(rng)
    c = _coefficient(rng)
    while c == a:
        c = _coefficient(rng)
    b = _constant(rng)
    d = (a - c) * _solution(rng) + b
    if abs(d) > 150 or rng.random() < 0.1:
        d = _constant(rng)
    equation.value = Fraction(d - b, a - c)
    equation.key = f"{side((a, 'x'), (b, ''))} = {side((c, 'x'), (d, ''))}"
    equation.steps = two_sided_steps(v, a, b, c, d)
    equation.left = equation.shuffled((a, v), (b, ""))
    equation.right = equation.shuffled((c, v), (d, ""))
    return equation


def _sum_text(b: int) -> str:
    """Return the bracket of a key: `(x + b)`."""
    return f"({side((1, 'x'), (b, ''))})"


def _bracketed(equation: Equation, a: int, b: int) -> str:
    """Return `a(x + b)` in the equation's style."""
    inner = f"({equation.shuffled((1, equation.v), (b, ''))})"
    return equation.style.side([(a, inner)])


def _product_form(rng: random.Random) -> Equation:
    """Return `a(x + b) = c`."""
    equation = Equation(rng)
    v = equation.v
    a = _coefficient(rng, limit=12)
    while a in (1, -1):
        a = _coefficient(rng, limit=12)
    b = rng.choice((-1, 1)) * (int(rng.random() * 12) + 1)
    c = a * (_solution(rng) + b)
    if abs(c) > 200 or rng.random() < 0.1:
        c = _constant(rng)
    equation.value = Fraction(c, a) - b
    equation.key = f"{a}{_sum_text(b)} = {c}"
    expanded = f"{side((a, v), (a * b, ''))} = {c}"
    equation.steps = [f"Expand: {expanded}", *linear_steps(v, a, a * b, c)]
    equation.ask(_bracketed(equation, a, b), c)
    return equation


def _combined(product: int, number: int) -> list[str]:
    """Return the lines that add up the two constants of an expanded side."""
    if number < 0:
        return calculation(product, "-", -number)
    return calculation(product, "+", number)


def _product_and_number(rng: random.Random) -> Equation:
    """Return `a(x + b) + c = d`."""
    equation = Equation(rng)
    v = equation.v
    a = int(rng.random() * 11) + 2
    b = rng.choice((-1, 1)) * (int(rng.random() * 9) + 1)
    c = _constant(rng)
    d = a * (_solution(rng) + b) + c
    if abs(d) > 200:
        d = _constant(rng)
    constant = a * b + c
    equation.value = Fraction(d - constant, a)
    equation.key = f"{side((a, _sum_text(b)), (c, ''))} = {d}"
    equation.steps = [
        f"Expand: {side((a, v), (a * b, ''), (c, ''))} = {d}",
        *_combined(a * b, c),
        f"{side((a, v), (constant, ''))} = {d}",
        *linear_steps(v, a, constant, d),
    ]
    inner = f"({equation.shuffled((1, v), (b, ''))})"
    equation.ask(equation.shuffled((a, inner), (c, "")), d)
    return equation


def _two_terms(rng: random.Random) -> Equation:
    """Return `ax + bx + c = d`."""
    equation = Equation(rng)
    v = equation.v
    a = int(rng.random() * 12) + 1
    b = _coefficient(rng, limit=12)
    while a + b == 0:
        b = _coefficient(rng, limit=12)
    c = _constant(rng)
    if rng.random() < 0.3:
        c = 0
    d = (a + b) * _solution(rng) + c
    if abs(d) > 200:
        d = _constant(rng)
    equation.value = Fraction(d - c, a + b)
    equation.key = f"{side((a, 'x'), (b, 'x'), (c, ''))} = {d}"
    equation.steps = [
        f"Collect: {side((a + b, v), (c, ''))} = {d}",
        *linear_steps(v, a + b, c, d),
    ]
    equation.ask(equation.style.side([(a, v), (b, v), (c, "")]), d)
    return equation


def _two_products(rng: random.Random) -> Equation:
    """Return `a(x + b) + c = d(x + e)`."""
    equation = Equation(rng)
    v = equation.v
    a = int(rng.random() * 8) + 2
    b = rng.choice((-1, 1)) * (int(rng.random() * 9) + 1)
    c = _constant(rng)
    d = int(rng.random() * 8) + 2
    while d == a:
        d = int(rng.random() * 8) + 2
    # e is drawn until the solution is whole, or for the last of a few tries.
    for _ in range(6):
        e = rng.choice((-1, 1)) * (int(rng.random() * 9) + 1)
        equation.value = Fraction(d * e - a * b - c, a - d)
        if equation.value.denominator == 1:
            break
    equation.key = f"{side((a, _sum_text(b)), (c, ''))} = {side((d, _sum_text(e)))}"
    constant = a * b + c
    right = side((d, v), (d * e, ""))
    equation.steps = [
        f"Expand: {side((a, v), (a * b, ''), (c, ''))} = {right}",
        *_combined(a * b, c),
        f"{side((a, v), (constant, ''))} = {right}",
        *two_sided_steps(v, a, constant, d, d * e),
    ]
    inner = f"({equation.shuffled((1, v), (b, ''))})"
    equation.left = equation.shuffled((a, inner), (c, ""))
    equation.right = _bracketed(equation, d, e)
    return equation


def _quotient_form(rng: random.Random) -> Equation:
    """Return `x/a + b = c`."""
    equation = Equation(rng)
    v = equation.v
    a = int(rng.random() * 11) + 2
    b = _constant(rng)
    quotient = _solution(rng)
    if abs(quotient * a) > 120:
        quotient = int(rng.random() * 10)
    if rng.random() < 0.15:
        b = 0
    c = quotient + b
    equation.value = Fraction(quotient * a)
    equation.key = f"{side((1, f'x/{a}'), (b, ''))} = {c}"
    equation.steps = [
        *linear_steps(f"{v}/{a}", 1, b, c),
        f"Multiply both sides by {a}: {v} = {quotient} * {a}",
        *working(quotient, "*", a),
        f"{v} = {quotient * a}",
    ]
    slash = rng.choice(_SLASHES)
    equation.ask(equation.shuffled((1, f"{v}{slash}{a}"), (b, "")), c)
    return equation


def _sum_over_number(rng: random.Random) -> Equation:
    """Return `(x + b)/a = c`."""
    equation = Equation(rng)
    v = equation.v
    a = int(rng.random() * 11) + 2
    b = _constant(rng)
    c = int(rng.random() * 13)
    if rng.random() < 0.2:
        c = -c
    equation.value = Fraction(a * c - b)
    equation.key = f"{_sum_text(b)}/{a} = {c}"
    inner = side((1, v), (b, ""))
    equation.steps = [
        f"Multiply both sides by {a}: {inner} = {c} * {a}",
        *working(c, "*", a),
        f"{inner} = {a * c}",
        *linear_steps(v, 1, b, a * c),
    ]
    slash = rng.choice(_SLASHES)
    left = f"({equation.shuffled((1, v), (b, ''))}){slash}{a}"
    equation.ask(left, c)
    return equation


_FORMS = (
    (_draw_one_sided,) * 9
    + (_two_sided,) * 4
    + (_product_form,) * 3
    + (_two_products,) * 2
    + (_quotient_form, _quotient_form, _sum_over_number)
    + (_product_and_number, _two_terms)
)


def make_equation(rng: random.Random) -> Problem:
    """Return a linear equation with one solution."""
    make = _FORMS[int(rng.random() * len(_FORMS))]
    return equation_problem(rng, make(rng))


def equation_problem(rng: random.Random, equation: Equation) -> Problem:
    """Return the question for the solution in a random wording.

    The key is the equation in x, with its sides and terms in the usual order.
    """
    shown = equation.style.equation(equation.left, equation.right)
    prompt = pick(rng, _WORDINGS).format(e=shown, v=equation.v)
    answer = fraction_text(equation.value)
    response = boxed(equation.steps, answer)
    return Problem("equation", equation.key, typed_loosely(rng, prompt), response, answer)


MAKERS: dict[str, Maker] = {"equation": make_equation}
