"""Tasks by their keys, and the draw of a key."""

import itertools
import random
from collections.abc import Iterator, Sequence

from scripts.train.problems.problem import is_held_out
from scripts.train.problems.python_tasks.chains import draw_chain
from scripts.train.problems.python_tasks.families import FAMILIES, Family
from scripts.train.problems.python_tasks.known_number_functions import NUMBER_FUNCTIONS
from scripts.train.problems.python_tasks.known_other_functions import OTHER_FUNCTIONS
from scripts.train.problems.python_tasks.parameters import Parameter, Pick, words_of
from scripts.train.problems.python_tasks.parts import KnownFunction, Task
from scripts.train.problems.python_tasks.wording import draw_parameters

MAX_PARAMETER = 20
_COMPOSED_PREFIX = ": "

# Combinations that are well-known functions. The families leave them out.
_COVERED = {
    "absolute_value": "formula: number | absolute",
    "square": "formula: number | square",
    "cube": "formula: number | cube",
    "double": "formula: number | double",
    "count_digits": "each: digits | - | - | count",
    "sum_digits": "each: digits | - | - | sum",
    "reverse_text": "text: reverse",
    "count_vowels": "each: characters | vowel | - | count",
    "count_words": "each: text_words | - | - | count",
    "letter_counts": "each: characters | - | - | tally",
    "dot_product": "each: products | - | - | sum",
    "add_lists": "each: sums | - | - | list",
    "concatenate": "each: both | - | - | list",
    "common_elements": "each: common | - | - | list",
    "merge_unique": "each: both | - | - | distinct",
    "sort_numbers": "each: list | - | - | ascending",
    "reverse_list": "each: list | - | - | reversed",
    "find_maximum": "each: list | - | - | maximum",
    "find_minimum": "each: list | - | - | minimum",
    "sum_list": "each: list | - | - | sum",
    "count_items": "each: words | - | - | tally",
}

_COVERED_KEYS = frozenset(_COVERED.values())
# These are asked for more often than the others.
_POPULAR = words_of(
    "fibonacci_sequence fibonacci add factorial is_prime is_even is_palindrome reverse_text "
    "find_maximum sum_list count_vowels sort_numbers gcd maximum multiply celsius_to_fahrenheit"
)


def _known_task(function: KnownFunction) -> Task:
    def describe(pick: Pick) -> str:
        covered = _COVERED.get(function.name)
        if covered and pick(("known", "composed")) == "composed":
            return _composed_task(covered).describe(pick)
        return pick(function.phrases)

    return Task(
        function.name,
        arguments=function.arguments,
        describe=describe,
        body=function.body,
        reference=function.reference,
        inputs=function.inputs,
        imports=function.imports,
    )


def _key(family: str, parts: Sequence[str]) -> str:
    return f"{family}{_COMPOSED_PREFIX}{' | '.join(parts)}"


def _known_key(function: KnownFunction) -> str:
    """Return a key that is not held out. Dots are added until that is so."""
    key = _key("known", [function.name])
    while is_held_out(key):
        key += "."
    return key


_KNOWN_FUNCTIONS = [*NUMBER_FUNCTIONS, *OTHER_FUNCTIONS]
_KNOWN_TASKS = {_known_key(function): _known_task(function) for function in _KNOWN_FUNCTIONS}
_KNOWN_WEIGHT = 18


def _drawable(family: Family) -> list[tuple[str, ...]]:
    """Return the keys of a family, those with one part as often as those with two."""
    keys = list(family.combinations())
    short = [key for key in keys if " " not in "".join(key)]
    long = [key for key in keys if " " in "".join(key)]
    if short and long:
        return short * (len(long) // len(short)) + long
    return keys


def _drawable_known() -> list[str]:
    """Return the keys of all well-known functions, the popular ones repeatedly."""
    keys = list(_KNOWN_TASKS)
    for function in _KNOWN_FUNCTIONS:
        if function.name in _POPULAR:
            keys += 4 * [_known_key(function)]
    return keys


_DRAWABLE = {name: _drawable(family) for name, family in FAMILIES.items() if name != "each"}
_FAMILY_NAMES = [*FAMILIES, "known"]
_WEIGHTS = [*(family.weight for family in FAMILIES.values()), _KNOWN_WEIGHT]
_FAMILY_WEIGHTS = list(itertools.accumulate(_WEIGHTS))
_DRAWABLE_KNOWN = _drawable_known()


def composed_keys() -> Iterator[str]:
    """Yield the keys of all composed tasks. Only these can be held out."""
    for family in FAMILIES.values():
        for parts in family.combinations():
            key = _key(family.name, parts)
            if key not in _COVERED_KEYS:
                yield key


def parts_of(key: str) -> list[str]:
    """Return the names of the parts of a key, each with the place where it stands.

    A well-known function is one part.
    """
    family, _, rest = key.partition(_COMPOSED_PREFIX)
    names = []
    for place, group in enumerate(rest.split(" | ")):
        for name in group.split(" "):
            names.append(f"{family} {place} {name}")
    return names


def task_of(key: str, parameters: Sequence[Parameter]) -> Task:
    known = _KNOWN_TASKS.get(key)
    if known is not None:
        return known
    return _composed_task(key, parameters)


def _composed_task(key: str, parameters: Sequence[Parameter] | None = None) -> Task:
    """Return a task of a family. Without parameters its parts must need none."""
    family_name, _, rest = key.partition(_COMPOSED_PREFIX)
    family = FAMILIES[family_name]
    parts = rest.split(" | ")
    if parameters is None:
        parameters = [None] * len(family.parts(parts))
    return family.compose(parts, parameters)


def draw_key(rng: random.Random) -> tuple[str, list[Parameter]]:
    """Draw a key, and the parameters of its parts."""
    family_name = rng.choices(_FAMILY_NAMES, cum_weights=_FAMILY_WEIGHTS)[0]
    if family_name == "known":
        return rng.choice(_DRAWABLE_KNOWN), []
    family = FAMILIES[family_name]
    while True:
        if family_name == "each":
            parts = draw_chain(rng)
        else:
            parts = rng.choice(_DRAWABLE[family_name])
        key = _key(family_name, parts)
        if key not in _COVERED_KEYS:
            limit = MAX_PARAMETER
            if parts[0] == "digits":
                limit = 9
            return key, draw_parameters(family.parts(parts), rng, limit)
