"""The table of filters, the conditions on an element. Each name occurs once in it."""

import random
from collections.abc import Callable
from typing import Any

from scripts.train.problems.python_tasks.parameters import (
    Parameter,
    draw_interval,
    draw_letter,
    number_between,
)
from scripts.train.problems.python_tasks.parts import Filter, by_name

_ADJECTIVES: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "even": ("{x} % 2 == 0", lambda x, k: x % 2 == 0),
    "odd": ("{x} % 2 == 1", lambda x, k: x % 2 == 1),
    "positive": ("{x} > 0", lambda x, k: x > 0),
    "negative": ("{x} < 0", lambda x, k: x < 0),
    "nonzero": ("{x} != 0", lambda x, k: x != 0),
}


def _comparison(
    name: str,
    words: tuple[str, ...],
    code: str,
    test: Callable[[Any, Any], bool],
    draw: Callable[[random.Random], Parameter],
) -> Filter:
    phrases = [f"{{noun}} {word}" for word in words]
    for word in words[:2]:
        phrases.append(f"{{noun}} that are {word}")
    return Filter(name, phrases=tuple(phrases), code=code, test=test, predicates=words, draw=draw)


def _adjectives() -> list[Filter]:
    filters = []
    for name, (code, test) in _ADJECTIVES.items():
        phrases = (f"{name} {{noun}}", f"{name} {{noun}}", f"{{noun}} that are {name}")
        filters.append(Filter(name, phrases=phrases, code=code, test=test, predicates=(name,)))
    return filters


NUMBER_FILTERS: list[Filter] = [
    *_adjectives(),
    _comparison(
        "greater",
        words=(
            "greater than {k}",
            "larger than {k}",
            "above {k}",
            "bigger than {k}",
            "over {k}",
        ),
        code="{x} > {k}",
        test=lambda x, k: x > k,
        draw=number_between(1, 20),
    ),
    _comparison(
        "less",
        words=("less than {k}", "smaller than {k}", "below {k}", "under {k}"),
        code="{x} < {k}",
        test=lambda x, k: x < k,
        draw=number_between(1, 20),
    ),
    _comparison(
        "at_least",
        words=("greater than or equal to {k}", "not less than {k}", "not smaller than {k}"),
        code="{x} >= {k}",
        test=lambda x, k: x >= k,
        draw=number_between(1, 20),
    ),
    _comparison(
        "at_most",
        words=("less than or equal to {k}", "not greater than {k}", "not larger than {k}"),
        code="{x} <= {k}",
        test=lambda x, k: x <= k,
        draw=number_between(1, 20),
    ),
    Filter(
        "divisible",
        phrases=(
            "{noun} divisible by {k}",
            "{noun} that are divisible by {k}",
            "{noun} that are multiples of {k}",
        ),
        code="{x} % {k} == 0",
        test=lambda x, k: x % k == 0,
        predicates=("divisible by {k}", "a multiple of {k}"),
        draw=number_between(2, 20),
    ),
    _comparison(
        "not_divisible",
        words=("not divisible by {k}",),
        code="{x} % {k} != 0",
        test=lambda x, k: x % k != 0,
        draw=number_between(2, 20),
    ),
    _comparison(
        "different",
        words=("different from {k}", "not equal to {k}", "other than {k}"),
        code="{x} != {k}",
        test=lambda x, k: x != k,
        draw=number_between(1, 20),
    ),
    _comparison(
        "between",
        words=("between {k[0]} and {k[1]}", "in the range from {k[0]} to {k[1]}"),
        code="{k[0]} <= {x} <= {k[1]}",
        test=lambda x, k: k[0] <= x <= k[1],
        draw=draw_interval,
    ),
    Filter(
        "ending",
        phrases=(
            "{noun} ending in {k}",
            "{noun} that end in {k}",
            "{noun} whose last digit is {k}",
        ),
        code="abs({x}) % 10 == {k}",
        test=lambda x, k: abs(x) % 10 == k,
        draw=number_between(0, 9),
    ),
]

_WORD_FILTERS: list[Filter] = [
    Filter(
        "longer",
        phrases=(
            "{noun} longer than {k}",
            "{noun} that are longer than {k}",
            "{noun} with more than {k} letters",
            "{noun} with more than {k} characters",
        ),
        code="len({x}) > {k}",
        test=lambda x, k: len(x) > k,
        draw=number_between(2, 9),
    ),
    Filter(
        "shorter",
        phrases=(
            "{noun} shorter than {k}",
            "{noun} that are shorter than {k}",
            "{noun} with fewer than {k} letters",
            "{noun} with fewer than {k} characters",
        ),
        code="len({x}) < {k}",
        test=lambda x, k: len(x) < k,
        draw=number_between(3, 10),
    ),
    Filter(
        "length",
        phrases=(
            "{noun} of length {k}",
            "{noun} with exactly {k} letters",
            "{noun} that have {k} characters",
        ),
        code="len({x}) == {k}",
        test=lambda x, k: len(x) == k,
        draw=number_between(2, 8),
        label="fixed",
    ),
    Filter(
        "starting",
        phrases=(
            "{noun} that start with {k}",
            "{noun} starting with {k}",
            "{noun} beginning with {k}",
            "{noun} that begin with {k}",
        ),
        code="{x}.startswith({k})",
        test=lambda x, k: x[:1] == k,
        draw=draw_letter,
    ),
    Filter(
        "ending_with",
        phrases=(
            "{noun} that end with {k}",
            "{noun} ending with {k}",
            "{noun} whose last letter is {k}",
        ),
        code="{x}.endswith({k})",
        test=lambda x, k: x[-1:] == k,
        draw=draw_letter,
        label="ending",
    ),
    Filter(
        "containing",
        phrases=(
            "{noun} that contain {k}",
            "{noun} containing {k}",
            "{noun} with the letter {k}",
            "{noun} that include the letter {k}",
        ),
        code="{k} in {x}",
        test=lambda x, k: x.count(k) > 0,
        draw=draw_letter,
    ),
    Filter(
        "lacking",
        phrases=(
            "{noun} that do not contain {k}",
            "{noun} without the letter {k}",
            "{noun} without {k}",
        ),
        code="{k} not in {x}",
        test=lambda x, k: x.count(k) == 0,
        draw=draw_letter,
    ),
    Filter(
        "capitalized",
        phrases=(
            "capitalized {noun}",
            "{noun} that start with a capital letter",
            "{noun} beginning with an uppercase letter",
        ),
        code="{x}[0].isupper()",
        test=lambda x, k: x[0] != x[0].lower(),
    ),
    Filter(
        "palindrome",
        phrases=(
            "palindromic {noun}",
            "{noun} that are palindromes",
            "{noun} that read the same backwards",
        ),
        code="{x} == {x}[::-1]",
        test=lambda x, k: list(x) == list(reversed(x)),
        label="palindromic",
    ),
]


def _is_vowel(x: str) -> bool:
    return x.lower() in ("a", "e", "i", "o", "u")


_CHARACTER_FILTERS: list[Filter] = [
    Filter(
        "vowel",
        phrases=("vowels",),
        code='{x} in "aeiouAEIOU"',
        test=lambda x, k: _is_vowel(x),
        label="vowels",
    ),
    Filter(
        "consonant",
        phrases=("consonants",),
        code='{x}.isalpha() and {x} not in "aeiouAEIOU"',
        test=lambda x, k: x.isalpha() and not _is_vowel(x),
        label="consonants",
    ),
    Filter(
        "letter",
        phrases=("letters", "alphabetic characters"),
        code="{x}.isalpha()",
        test=lambda x, k: x.lower() != x.upper(),
        label="letters",
    ),
    Filter(
        "digit",
        phrases=("digits", "numeric characters"),
        code="{x}.isdigit()",
        test=lambda x, k: "0" <= x <= "9",
        label="digits",
    ),
    Filter(
        "uppercase",
        phrases=("uppercase letters", "capital letters", "upper case letters"),
        code="{x}.isupper()",
        test=lambda x, k: x != x.lower(),
    ),
    Filter(
        "lowercase",
        phrases=("lowercase letters", "small letters", "lower case letters"),
        code="{x}.islower()",
        test=lambda x, k: x != x.upper(),
    ),
    Filter(
        "alphanumeric",
        phrases=("letters and digits", "alphanumeric characters"),
        code="{x}.isalnum()",
        test=lambda x, k: x.lower() != x.upper() or "0" <= x <= "9",
    ),
    Filter(
        "not_vowel",
        phrases=("characters that are not vowels", "characters other than vowels"),
        code='{x} not in "aeiouAEIOU"',
        test=lambda x, k: not _is_vowel(x),
        removes="vowels",
    ),
    Filter(
        "not_digit",
        phrases=("characters that are not digits", "characters other than digits"),
        code="not {x}.isdigit()",
        test=lambda x, k: not "0" <= x <= "9",
        removes="digits",
    ),
    Filter(
        "not_space",
        phrases=("characters that are not spaces", "characters other than spaces"),
        code='{x} != " "',
        test=lambda x, k: x not in (" ",),
        removes="spaces",
    ),
    Filter(
        "not_letter",
        phrases=("characters that are not letters", "characters other than letters"),
        code="not {x}.isalpha()",
        test=lambda x, k: x.lower() == x.upper(),
        removes="letters",
    ),
    Filter(
        "other_than",
        phrases=("characters other than {k}", "characters different from {k}"),
        code="{x} != {k}",
        test=lambda x, k: x not in (k,),
        draw=draw_letter,
        removes="letter {k}",
    ),
    Filter(
        "occurrence",
        phrases=("occurrences of {k}", "occurrences of the letter {k}"),
        code="{x} == {k}",
        test=lambda x, k: x in (k,),
        draw=draw_letter,
        label="occurrences",
    ),
    Filter(
        "before",
        phrases=("characters before {k} in the alphabet", "characters that come before {k}"),
        code="{x} < {k}",
        test=lambda x, k: ord(x) < ord(k),
        draw=draw_letter,
    ),
]

FILTERS = by_name([*NUMBER_FILTERS, *_WORD_FILTERS, *_CHARACTER_FILTERS])
ALL_NUMBER_FILTERS = tuple(part.name for part in NUMBER_FILTERS)
# The filters that can stand behind "is".
PREDICATES = tuple(part.name for part in NUMBER_FILTERS if part.predicates)
ALL_WORD_FILTERS = tuple(part.name for part in _WORD_FILTERS)
ALL_CHARACTER_FILTERS = tuple(part.name for part in _CHARACTER_FILTERS)
