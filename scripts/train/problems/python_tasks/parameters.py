"""Parameters of parts, such as the number in "greater than 7": how they are drawn, and shown."""

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

Parameter = int | str | tuple[int, int] | tuple[str, str] | None
Pick = Callable[[Sequence[str]], str]


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a table that is written as one text."""
    return tuple(text.split())


def number_between(low: int, high: int) -> Callable[[random.Random], Parameter]:
    """Return the draw of a number from `low` to `high`."""

    def draw(rng: random.Random) -> Parameter:
        return low + int(rng.random() * (high - low + 1))

    return draw


def draw_interval(rng: random.Random) -> Parameter:
    low = rng.randrange(1, 13)
    return low, low + rng.randrange(1, 9)


def draw_letter(rng: random.Random) -> Parameter:
    return rng.choice("aaabcdeeefghiiklmnooprsttuwy")


def draw_two_letters(rng: random.Random) -> Parameter:
    first = rng.choice("aeiobcdst")
    second = rng.choice("uxyzmnopr")
    return first, second


def draw_separator(rng: random.Random) -> Parameter:
    return rng.choice((", ", "-", " ", "_", "/", ";", ":", "+"))


_SEPARATOR_NAMES = {
    ", ": ("commas", "a comma and a space"),
    "-": ("hyphens", "'-'", "dashes"),
    " ": ("spaces", "a space"),
    "_": ("underscores", "'_'"),
    "/": ("slashes", "'/'"),
    ";": ("semicolons", "';'"),
    ":": ("colons", "':'"),
    "+": ("plus signs", "'+'"),
}

_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)


def _number_wordings(number: int, word: str) -> tuple[str, ...]:
    """Return digits and a word for a number, the digits much more often."""
    return 12 * (str(number),) + (word,)


_NUMBER_WORDINGS = list(map(_number_wordings, itertools.count(), words_of(_NUMBER_WORDS)))


def shown_in_prompt(value: Parameter, pick: Pick) -> Any:
    """Return a parameter as a prompt shows it."""
    if isinstance(value, str):
        if value in _SEPARATOR_NAMES:
            return pick(_SEPARATOR_NAMES[value])
        return pick((f"'{value}'", f'"{value}"'))
    if isinstance(value, tuple):
        return [shown_in_prompt(item, pick) for item in value]
    if value is not None:
        return pick(_NUMBER_WORDINGS[value])
    return None


def literal_of(value: Parameter) -> Any:
    """Return a parameter as code shows it."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return [literal_of(item) for item in value]
    return value
