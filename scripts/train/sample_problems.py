"""The problems of the sample model, with the steps of their solutions.

This module does without torch, so that a test can draw held-out problems quickly. Whether a problem
is held out depends on a hash of its text: the training stream never yields such a problem, whatever
the seed.

The steps are written with one kind of block, the column sum. In `+(347+085) 12 13 04` the numbers
behind the brackets are the results of the columns, from the units up. For `+` a result is the carry
and the digit, for `-` it is the borrow and the digit. The larger number always comes first.
"""

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

KINDS = ("equation", "sum", "difference", "product")
HELD_OUT_ONE_IN = {"equation": 20, "sum": 20, "difference": 20, "product": 3}
REFUSAL = "I solve linear equations and integer arithmetic."


@dataclass(frozen=True)
class Problem:
    """A prompt and the expected response: the steps, then the answer on the last line."""

    kind: str
    prompt: str
    response: str

    @property
    def answer(self) -> str:
        """The last line of the response: `x = 3` or `= 632`."""
        return self.response.rsplit("\n", 1)[-1]


def column_sum(left: int, right: int) -> tuple[str, int]:
    """Return the signed column sum of `left + right`, and its value.

    Both numbers must lie between -999 and 999.
    """
    value = left + right
    small = min(abs(left), abs(right))
    big = max(abs(left), abs(right))
    is_addition = (left < 0) == (right < 0) or 0 in (left, right)

    columns = []
    carry = 0
    for unit in (1, 10, 100):
        a = big // unit % 10
        b = small // unit % 10
        if is_addition:
            total = a + b + carry
            carry = int(total > 9)
        else:
            total = a - b - carry
            carry = int(total < 0)
        columns.append(f"{carry}{total % 10}")

    sign = "-" if value < 0 else "+"
    operator = "+" if is_addition else "-"
    return f"{sign}({big:03d}{operator}{small:03d}) {' '.join(columns)}", value


def _sum(rng: random.Random) -> tuple[str, str]:
    a = _operand(rng)
    b = _operand(rng)
    return f"{a} + {_bracket(b)}", _arithmetic_steps(a, b)


def _difference(rng: random.Random) -> tuple[str, str]:
    a = _operand(rng)
    b = _operand(rng)
    return f"{a} - {_bracket(b)}", _arithmetic_steps(a, -b)


def _product(rng: random.Random) -> tuple[str, str]:
    a = rng.randint(-20, 20)
    b = rng.randint(-20, 20)
    tens, units = divmod(abs(b), 10)
    # The product is the sum of two parts, a * tens and a * units, which both have its sign.
    factor = abs(a)
    if a * b < 0:
        factor = -factor
    return f"{a} * {_bracket(b)}", _arithmetic_steps(factor * tens * 10, factor * units)


def _arithmetic_steps(left: int, right: int) -> str:
    """Return the response to `left + right`."""
    block, value = column_sum(left, right)
    return f"{block}\n= {value}"


def _operand(rng: random.Random) -> int:
    """Draw a number of up to three digits, negative one time in four.

    Small numbers are as likely as large ones.
    """
    size = rng.choice((9, 99, 999, 999))
    value = rng.randint(0, size)
    if rng.random() < 0.25:
        value = -value
    return value


def _bracket(value: int) -> str:
    return f"({value})" if value < 0 else str(value)


def _equation(rng: random.Random) -> tuple[str, str]:
    """Return an equation `ax + b = c`, and the steps that subtract b and divide by a."""
    a = rng.choice([n for n in range(-12, 13) if n])
    x = rng.randint(-20, 20)
    b = rng.randint(-20, 20)
    right = a * x + b
    term = {1: "x", -1: "-x"}.get(a, f"{a}x")

    lines = []
    left = term
    if b:
        left += f" {_signed(b)}"
        block, _ = column_sum(right, -b)
        lines.append(f"{term} = {right} {_signed(-b)}")
        lines.append(block)
    if a != 1:
        if b:
            lines.append(f"{term} = {a * x}")
        lines.append(f"x = {a * x} / {a}")
    lines.append(f"x = {x}")
    return f"{left} = {right}", "\n".join(lines)


def _signed(value: int) -> str:
    sign = "-" if value < 0 else "+"
    return f"{sign} {abs(value)}"


_MAKERS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "equation": _equation,
    "sum": _sum,
    "difference": _difference,
    "product": _product,
}
_TEMPLATES = {
    "equation": ("Solve for x: {}", "Solve: {}", "{}"),
    "arithmetic": ("Compute: {}", "What is {}?", "{} =", "{}"),
}


def is_held_out(kind: str, body: str) -> bool:
    """Return whether a problem is held out. `body` is its text without the wording around it."""
    return zlib.crc32(body.encode()) % HELD_OUT_ONE_IN[kind] == 0


def held_out(kind: str, count: int, seed: int = 0) -> list[Problem]:
    """Return `count` distinct held-out problems of `kind`, in the first wording of their kind.

    The same seed gives the same problems.
    """
    rng = random.Random(f"{kind}/{seed}")
    wording = _templates(kind)[0]
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        body, response = _MAKERS[kind](rng)
        if is_held_out(kind, body):
            problems[body] = Problem(kind, wording.format(body), response)
    return list(problems.values())


def _templates(kind: str) -> tuple[str, ...]:
    return _TEMPLATES["equation" if kind == "equation" else "arithmetic"]


def training_stream(seed: int) -> Iterator[Problem]:
    """Yield training problems without end, in all wordings.

    Two in a hundred are no problems, and their response declines them.
    """
    rng = random.Random(seed)
    while True:
        if rng.random() < 0.02:
            yield Problem("other", _small_talk(rng), REFUSAL)
            continue
        kind = rng.choices(KINDS, weights=(5, 2, 2, 2))[0]
        body, response = _MAKERS[kind](rng)
        if is_held_out(kind, body):
            continue
        templates = _templates(kind)
        wording = templates[0]
        if rng.random() >= 0.5:
            wording = rng.choice(templates[1:])
        yield Problem(kind, wording.format(body), response)


_WORDS = [
    "hello",
    "hi",
    "hey",
    "once",
    "upon",
    "a",
    "time",
    "the",
    "capital",
    "of",
    "France",
    "is",
    "who",
    "are",
    "you",
    "what",
    "can",
    "do",
    "tell",
    "me",
    "story",
    "about",
    "write",
    "poem",
    "in",
    "Python",
    "how",
    "weather",
    "today",
    "please",
    "help",
    "explain",
    "why",
    "sky",
    "blue",
    "good",
    "morning",
    "thanks",
    "there",
    "was",
    "little",
    "dog",
    "cat",
    "world",
    "my",
    "name",
    "define",
    "function",
    "return",
    "list",
    "translate",
    "to",
    "German",
    "summarize",
    "this",
    "text",
    "for",
]


def _small_talk(rng: random.Random) -> str:
    text = " ".join(rng.choices(_WORDS, k=rng.randint(1, 8)))
    if rng.random() < 0.7:
        text = text.capitalize()
    return text + rng.choice(("", "", "?", "!", "."))
