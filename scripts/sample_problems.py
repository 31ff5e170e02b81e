"""The sample model's world: generated problems, their written steps, and which of them are held
out.

Torch-free, so that a test can draw held-out problems without training anything. A problem is held
out by a hash of its text: the training stream never yields one, whatever the seed.

The written steps rest on one block, the column sum: `+(347+085) 12 13 04` lists, from the units up,
what each column gives. For `+` a column is carry and digit; for `-` it is borrow and digit (the
larger number always comes first).
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
    """One prompt, the full response expected (steps, then the answer) and the answer alone."""

    kind: str
    prompt: str
    response: str

    @property
    def answer(self) -> str:
        """The last line of the response: `x = 3` or `= 632`."""
        return self.response.rsplit("\n", 1)[-1]


def column_sum(left: int, right: int) -> tuple[str, int]:
    """Write `left + right` (each within +-999) as one signed column block; return the block and the
    value."""
    value = left + right
    big, small = sorted((abs(left), abs(right)), reverse=True)
    adding = (left < 0) == (right < 0) or 0 in (left, right)
    columns, carry = [], 0
    for place in (1, 10, 100):
        a, b = big // place % 10, small // place % 10
        total = a + b + carry if adding else a - b - carry
        carry = int(total > 9 if adding else total < 0)
        columns.append(f"{carry}{total % 10}")
    sign = "-" if value < 0 else "+"
    return f"{sign}({big:03d}{'+' if adding else '-'}{small:03d}) {' '.join(columns)}", value


def _sum(rng: random.Random) -> tuple[str, str]:
    a, b = _operand(rng), _operand(rng)
    return f"{a} + {_bracket(b)}", _arithmetic_steps(a, b)


def _difference(rng: random.Random) -> tuple[str, str]:
    a, b = _operand(rng), _operand(rng)
    return f"{a} - {_bracket(b)}", _arithmetic_steps(a, -b)


def _product(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(-20, 20), rng.randint(-20, 20)
    tens, units = divmod(abs(b), 10)
    sign = -1 if a * b < 0 else 1
    return f"{a} * {_bracket(b)}", _arithmetic_steps(
        sign * abs(a) * tens * 10, sign * abs(a) * units
    )


def _arithmetic_steps(left: int, right: int) -> str:
    block, value = column_sum(left, right)
    return f"{block}\n= {value}"


def _operand(rng: random.Random) -> int:
    """A number to three digits, small ones as likely as large ones, negative one time in four."""
    size = rng.choice((9, 99, 999, 999))
    value = rng.randint(0, size)
    return -value if rng.random() < 0.25 else value


def _bracket(value: int) -> str:
    return f"({value})" if value < 0 else str(value)


def _equation(rng: random.Random) -> tuple[str, str]:
    a = rng.choice([n for n in range(-12, 13) if n])
    x, b = rng.randint(-20, 20), rng.randint(-20, 20)
    right = a * x + b
    term = {1: "x", -1: "-x"}.get(a, f"{a}x")
    lines = []
    left = term
    if b:
        left += f" {_signed(b)}"
        block, _ = column_sum(right, -b)
        lines += [f"{term} = {right} {_signed(-b)}", block]
    if a != 1:
        lines += [f"{term} = {a * x}"] if b else []
        lines += [f"x = {a * x} / {a}"]
    return f"{left} = {right}", "\n".join([*lines, f"x = {x}"])


def _signed(value: int) -> str:
    return f"{'-' if value < 0 else '+'} {abs(value)}"


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
    """Whether the problem `body` (without its wording) is kept from training."""
    return zlib.crc32(body.encode()) % HELD_OUT_ONE_IN[kind] == 0


def held_out(kind: str, count: int, seed: int = 0) -> list[Problem]:
    """`count` distinct held-out problems of `kind`, in the first wording of their kind; the same
    for the same seed."""
    rng = random.Random(f"{kind}/{seed}")
    found: dict[str, Problem] = {}
    wording = _TEMPLATES["equation" if kind == "equation" else "arithmetic"][0]
    while len(found) < count:
        body, response = _MAKERS[kind](rng)
        if is_held_out(kind, body):
            found[body] = Problem(kind, wording.format(body), response)
    return list(found.values())


def training_stream(seed: int) -> Iterator[Problem]:
    """Endless training problems in every wording, with two in a hundred that lie outside the
    domain."""
    rng = random.Random(seed)
    while True:
        if rng.random() < 0.02:
            yield Problem("other", _small_talk(rng), REFUSAL)
            continue
        kind = rng.choices(KINDS, weights=(5, 2, 2, 2))[0]
        body, response = _MAKERS[kind](rng)
        if is_held_out(kind, body):
            continue
        templates = _TEMPLATES["equation" if kind == "equation" else "arithmetic"]
        wording = templates[0] if rng.random() < 0.5 else rng.choice(templates[1:])
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
    text = text.capitalize() if rng.random() < 0.7 else text
    return text + rng.choice(("", "", "?", "!", "."))
