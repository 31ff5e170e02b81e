"""Words and code of composed tasks."""

import random
from collections.abc import Sequence
from typing import Any

from scripts.train.problems.python_tasks.parameters import (
    Parameter,
    Pick,
    literal_of,
    shown_in_prompt,
)
from scripts.train.problems.python_tasks.parts import Filter, Map, Reduction


def _in_brackets(code: str) -> str:
    """Return an expression in brackets, unless it is one name, call, index or literal."""
    depth = 0
    for letter in code:
        if letter in "([":
            depth += 1
        elif letter in ")]":
            depth -= 1
        elif depth == 0 and not (letter.isalnum() or letter in '@_."'):
            return f"({code})"
    return code


def third_person(text: str) -> str:
    """Return a description with the verbs of "a function that returns"."""
    return text.replace("{s}", "s").replace("{ies}", "ies")


def infinitive(text: str) -> str:
    """Return a description with the verbs of "a function to return"."""
    return text.replace("{s}", "").replace("{ies}", "y")


def fill(template: str, pick: Pick, value: Parameter, **slots: str) -> str:
    """Return a wording with all its slots filled, except those of the verbs."""
    shown = shown_in_prompt(value, pick)
    return template.format(k=shown, s="{s}", ies="{ies}", **slots)


def first_wording(options: Sequence[str]) -> str:
    """Pick the first wording, which the responses use."""
    return options[0]


def enumeration(items: Sequence[str]) -> str:
    if len(items) == 1:
        return items[0]
    return f"{', '.join(items[:-1])} and {items[-1]}"


def mapped_code(code: str, maps: Sequence[Map], values: Sequence[Parameter]) -> str:
    """Return the code that applies maps to the value of an expression."""
    for part, value in zip(maps, values, strict=True):
        operand = code
        if "({x})" not in part.code:
            operand = _in_brackets(code)
        code = part.code.format(x=operand, k=literal_of(value))
    return code


def apply_maps(value: Any, maps: Sequence[Map], parameters: Sequence[Parameter]) -> Any:
    for part, parameter in zip(maps, parameters, strict=True):
        value = part.apply(value, parameter)
    return value


def draw_parameters(
    parts: Sequence[Filter | Map | Reduction], rng: random.Random, limit: int
) -> list[Parameter]:
    """Draw the parameters of parts, None for a part without one. No number exceeds `limit`."""
    values: list[Parameter] = []
    for part in parts:
        value = None
        if part.draw is not None:
            value = part.draw(rng)
            while isinstance(value, int) and value > limit:
                value = part.draw(rng)
        values.append(value)
    return values
