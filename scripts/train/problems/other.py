"""Questions outside the domain, which the model declines.

Half of them are far from it: small talk, general knowledge, requests to write or translate. The
others look like problems that are solved, but are not: integrals, quadratic equations, numbers too
large, word problems that ask nothing. Their wordings are those of problems, so that the wording
alone does not give the answer.

Some sentences come from the documentation in Python's standard library. So a seed gives the same
questions on the same version of Python only.
"""

import importlib
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from scripts.train.problems import outside_words as words
from scripts.train.problems.derivatives import draw_polynomial, polynomial_text
from scripts.train.problems.problem import Maker, Problem, typed_loosely
from scripts.train.problems.word_problems import make_word_problem

REFUSAL = "This is outside what I know."

_SENTENCE_LENGTHS = range(16, 150)

_COMPUTE = (
    "Compute: {}",
    "What is {}?",
    "{}",
    "{} = ?",
    "Calculate {}.",
    "Evaluate {}.",
    "Work out {}.",
    "Find {}.",
    "{} =",
    "Solve: {}",
)
_SOLVE = (
    "Solve for x: {}",
    "Solve: {}",
    "Solve {}.",
    "{}",
    "Find x if {}.",
    "What is x if {}?",
    "Find x: {}",
    "Solve the equation {}",
    "Determine x: {}",
    "Given {}, find x.",
)


def _pick(rng: random.Random, items: Sequence[str]) -> str:
    return items[int(rng.random() * len(items))]


def _signed(rng: random.Random, limit: int) -> str:
    """Return a term that follows another: ` + 5` or ` - 5`."""
    return f" {_pick(rng, '+-')} {rng.randint(2, limit)}"


def _coefficient(rng: random.Random) -> str:
    value = rng.randint(1, 12)
    return "" if value == 1 else str(value)


def _polynomial(rng: random.Random) -> str:
    return polynomial_text(draw_polynomial(rng), "x")


# Near the domain.


def _integral(rng: random.Random) -> str:
    wording = _pick(rng, words.INTEGRALS)
    low = rng.randint(-3, 5)
    return wording.format(p=_polynomial(rng), a=low, b=low + rng.randint(1, 9))


def _quadratic(rng: random.Random) -> str:
    power = _pick(rng, ("^2", "^2", "^2", "²", "^3", "**2"))
    middle = _pick(rng, ("", _signed(rng, 20) + "x", _signed(rng, 12) + "x"))
    right = rng.choice((0, 0, rng.randint(1, 60)))
    equation = f"{_coefficient(rng)}x{power}{middle}{_signed(rng, 60)} = {right}"
    if rng.random() < 0.2:
        return _pick(rng, words.FACTOR).format(equation.split(" = ", maxsplit=1)[0])
    return _pick(rng, _SOLVE).format(equation)


def _system(rng: random.Random) -> str:
    first = f"{_coefficient(rng)}x{_signed(rng, 9)}y = {rng.randint(-20, 40)}"
    if rng.random() < 0.3:
        return _pick(rng, _SOLVE).format(first)
    second = f"{_coefficient(rng)}x{_signed(rng, 9)}y = {rng.randint(-20, 40)}"
    return _pick(rng, words.SYSTEMS).format(a=first, b=second)


def _limit(rng: random.Random) -> str:
    a = rng.randint(0, 9)
    expression = _pick(rng, words.LIMIT_EXPRESSIONS).format(a=a, p=_polynomial(rng))
    target = _pick(rng, (str(a), "0", "infinity"))
    return _pick(rng, words.LIMITS).format(e=expression, a=target)


def _matrix(rng: random.Random) -> str:
    numbers = [rng.randint(-9, 12) for _ in range(4)]
    rows = f"[[{numbers[0]}, {numbers[1]}], [{numbers[2]}, {numbers[3]}]]"
    other = f"[{rng.randint(-9, 9)}, {rng.randint(-9, 9)}]"
    return _pick(rng, words.MATRICES).format(m=rows, v=other)


def _inequality(rng: random.Random) -> str:
    sign = _pick(rng, ("<", ">", "<=", ">=", "≤", "≥", "≠"))
    left = f"{_coefficient(rng)}x{_signed(rng, 20)}"
    return _pick(rng, _SOLVE).format(f"{left} {sign} {rng.randint(-20, 60)}")


def _hard_derivative(rng: random.Random) -> str:
    function = _pick(rng, words.FUNCTIONS).format(
        a=rng.randint(2, 9), b=rng.randint(1, 9), p=_polynomial(rng)
    )
    return _pick(rng, words.DERIVATIVES).format(f=_pick(rng, "fghy"), p=function)


def _nonlinear(rng: random.Random) -> str:
    equation = _pick(rng, words.NONLINEAR).format(
        a=rng.randint(2, 12), b=rng.randint(1, 20), c=rng.randint(1, 100)
    )
    return _pick(rng, _SOLVE).format(equation)


def _hard_value(rng: random.Random) -> str:
    expression = _pick(rng, words.VALUES).format(
        a=rng.randint(2, 20), b=rng.randint(2, 99), c=rng.randint(100, 999)
    )
    return _pick(rng, _COMPUTE).format(expression)


def _large_numbers(rng: random.Random) -> str:
    a = rng.randint(10_000, 10 ** rng.randint(5, 10))
    b = rng.randint(10_000, 10 ** rng.randint(5, 9))
    sign = _pick(rng, "+-*/")
    if rng.random() < 0.3:
        sign = "*"
        a = rng.randint(100, 9999)
        b = rng.randint(100, 9999)
    return _pick(rng, _COMPUTE).format(f"{a} {sign} {b}")


def _decimals(rng: random.Random) -> str:
    a = f"{rng.randint(0, 99)}.{rng.randint(1, 999)}"
    b = f"{rng.randint(0, 99)}.{rng.randint(1, 999)}"
    return _pick(rng, _COMPUTE).format(f"{a} {_pick(rng, '+-*/')} {b}")


def _nonsense_equation(rng: random.Random) -> str:
    equation = _pick(rng, words.NONSENSE).format(
        a=rng.randint(2, 12), b=rng.randint(1, 20), c=rng.randint(1, 60)
    )
    return _pick(rng, _SOLVE).format(equation)


def _proof(rng: random.Random) -> str:
    claim = _pick(rng, words.CLAIMS).format(n=rng.randint(2, 40))
    return _pick(rng, words.PROOFS).format(claim)


def _about_mathematics(rng: random.Random) -> str:
    topic = _pick(rng, words.MATHEMATICS)
    return _pick(rng, words.ABOUT).format(topic)


def _story_without_question(rng: random.Random) -> str:
    """Return a word problem without its question, or with one that it does not answer."""
    while True:
        prompt = make_word_problem(rng).prompt
        story, separator, _ = prompt.rpartition(". ")
        if separator and len(story) > 20:
            break
    draw = rng.random()
    if draw < 0.3:
        return _without_a_number(prompt)
    if draw < 0.6:
        return f"{story}."
    return f"{story}. {_pick(rng, words.UNRELATED)}"


def _without_a_number(prompt: str) -> str:
    """Return a word problem that says "some" for its first number."""
    before = prompt.split(" ")
    for index, word in enumerate(before):
        if word.isdigit():
            before[index] = "some"
            return " ".join(before)
    return "How many are there?"


def _other_code(rng: random.Random) -> str:
    return _pick(rng, words.CODE).format(
        language=_pick(rng, words.LANGUAGES_OF_CODE), task=_pick(rng, words.CODE_TASKS)
    )


_NEAR: tuple[Callable[[random.Random], str], ...] = (
    _integral,
    _integral,
    _quadratic,
    _quadratic,
    _quadratic,
    _system,
    _system,
    _limit,
    _matrix,
    _inequality,
    _inequality,
    _hard_derivative,
    _hard_derivative,
    _nonlinear,
    _nonlinear,
    _hard_value,
    _hard_value,
    _large_numbers,
    _large_numbers,
    _decimals,
    _nonsense_equation,
    _nonsense_equation,
    _proof,
    _about_mathematics,
    _story_without_question,
    _story_without_question,
    _story_without_question,
    _other_code,
)


# Far from the domain.


def _small_talk(rng: random.Random) -> str:
    text = _pick(rng, words.SMALL_TALK)
    if rng.random() < 0.3:
        return f"{text} {_pick(rng, words.SMALL_TALK)}"
    return text


def _from_grammar(rng: random.Random) -> str:
    """Return a question whose fields are words of the lists of that name."""
    text = _pick(rng, words.QUESTIONS)
    while "{" in text:
        before, _, rest = text.partition("{")
        field, _, after = rest.partition("}")
        text = before + _pick(rng, words.LISTS[field]) + after
    return text[0].upper() + text[1:]


def _word_salad(rng: random.Random) -> str:
    count = rng.randint(1, 9)
    text = " ".join(_pick(rng, words.SALAD) for _ in range(count))
    return text.capitalize() + _pick(rng, ("", ".", "?", "!"))


def _gibberish(rng: random.Random) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    if rng.random() < 0.3:
        letters += "0123456789 .,;:!?#*+-=()/"
    parts = []
    for _ in range(rng.randint(1, 4)):
        parts.append("".join(rng.choices(letters, k=rng.randint(2, 9))))
    return " ".join(parts).strip() or "hm"


def _documented(rng: random.Random) -> str:
    """Return a sentence of the standard library's documentation, or a request about one."""
    sentence = _pick(rng, _documented_sentences())
    if rng.random() < 0.3:
        return sentence
    return _pick(rng, words.ABOUT_TEXT).format(sentence)


@cache
def _documented_sentences() -> tuple[str, ...]:
    """Return the sentences of the documentation that ships with Python, each once."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    texts = [topics[name] for name in sorted(topics)]
    for name in words.DOCUMENTED_MODULES:
        texts += _docstrings(name)

    sentences: dict[str, None] = {}
    for text in texts:
        for paragraph in text.split("\n\n"):
            for sentence in " ".join(paragraph.split()).split(". "):
                if _is_plain(sentence):
                    sentences[sentence.rstrip(".") + "."] = None
    return tuple(sentences)


def _docstrings(module_name: str) -> Iterator[str]:
    """Yield the docstrings of a module and of what it defines."""
    module = importlib.import_module(module_name)
    yield module.__doc__ or ""
    for name in sorted(vars(module)):
        documentation = getattr(getattr(module, name), "__doc__", None)
        if isinstance(documentation, str):
            yield documentation


def _is_plain(sentence: str) -> bool:
    """Return whether a sentence is English text, and no heading, code or instruction to code."""
    if len(sentence) not in _SENTENCE_LENGTHS or not sentence[0].isupper():
        return False
    if not sentence.isascii() or sentence.startswith(words.CODING_VERBS):
        return False
    letters = sum(character.isalpha() or character == " " for character in sentence)
    return letters > 0.9 * len(sentence)


_FAR: tuple[Callable[[random.Random], str], ...] = (
    _small_talk,
    _small_talk,
    _from_grammar,
    _from_grammar,
    _from_grammar,
    _from_grammar,
    _from_grammar,
    _from_grammar,
    _from_grammar,
    _word_salad,
    _gibberish,
    _documented,
    _documented,
    _documented,
)


def make_other(rng: random.Random) -> Problem:
    """Return a question that is declined. The key is its text."""
    makers = _NEAR if rng.random() < 0.5 else _FAR
    text = makers[int(rng.random() * len(makers))](rng)
    return Problem("other", text, typed_loosely(rng, text), REFUSAL, "")


MAKERS: dict[str, Maker] = {"other": make_other}
