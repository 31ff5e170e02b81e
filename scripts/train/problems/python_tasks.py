"""Small Python coding tasks in plain words, with solutions and tests that do without these.

Most tasks are composed of parts: a source of elements, filters, maps and a reduction. "Return the
sum of the squares of the even numbers in a list" has the parts `list`, `even`, `square` and `sum`.
A part knows its wordings, its code and its meaning. The meaning is a function of its own, so that
the tests of a task never run the code they are to judge.

The key of a task names its parts without their parameters: `each: list | even | square | sum`.
A held-out combination therefore never occurs in training, whatever its parameters and wording, but
each of its parts does. Well-known single functions, such as the factorial, are never held out.

Wordings have slots. `{s}` ends a verb ("return{s}"), and `@0` is the name of the first argument.
"""

import ast
import itertools
import math
import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.train.problems.problem import Maker, Problem, is_held_out

Parameter = int | str | tuple[int, int] | tuple[str, str] | None
Pick = Callable[[Sequence[str]], str]
Arguments = tuple[Any, ...]
Case = tuple[Arguments, Any]

# A task is tested with so many arguments, which are chosen among more to have different results.
NUM_CASES = 16
NUM_CANDIDATES = 48
MAX_PARAMETER = 20
# The longest response, in characters. Only one task in some thousands needs more.
MAX_RESPONSE = 420


@dataclass(frozen=True)
class PythonProblem(Problem):
    """A coding task. The answer is the code.

    `parameters` has one entry for each part of the key, None for a part without a parameter.
    `function_name` is the name that the prompt demands, empty if it demands none.
    """

    parameters: tuple[Parameter, ...]
    function_name: str


def _words_of(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Parameters


def _number(low: int, high: int) -> Callable[[random.Random], Parameter]:
    def draw(rng: random.Random) -> Parameter:
        return low + int(rng.random() * (high - low + 1))

    return draw


def _interval(rng: random.Random) -> Parameter:
    low = rng.randrange(1, 13)
    return low, low + rng.randrange(1, 9)


def _letter(rng: random.Random) -> Parameter:
    return rng.choice("aaabcdeeefghiiklmnooprsttuwy")


def _two_letters(rng: random.Random) -> Parameter:
    first = rng.choice("aeiobcdst")
    second = rng.choice("uxyzmnopr")
    return first, second


def _separator(rng: random.Random) -> Parameter:
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


_NUMBER_WORDINGS = list(map(_number_wordings, itertools.count(), _words_of(_NUMBER_WORDS)))


def _shown(value: Parameter, pick: Pick) -> Any:
    """Return a parameter as a prompt shows it."""
    if isinstance(value, str):
        if value in _SEPARATOR_NAMES:
            return pick(_SEPARATOR_NAMES[value])
        return pick((f"'{value}'", f'"{value}"'))
    if isinstance(value, tuple):
        return [_shown(item, pick) for item in value]
    if value is not None:
        return pick(_NUMBER_WORDINGS[value])
    return None


def _literal(value: Parameter) -> Any:
    """Return a parameter as code shows it."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return [_literal(item) for item in value]
    return value


# Parts


@dataclass(frozen=True)
class Filter:
    """A condition on an element.

    `phrases` name the elements that meet it. `predicates` go behind "is".
    """

    name: str
    phrases: tuple[str, ...]
    code: str
    test: Callable[[Any, Any], bool]
    predicates: tuple[str, ...] = ()
    draw: Callable[[random.Random], Parameter] | None = None
    removes: str = ""
    label: str = ""


@dataclass(frozen=True)
class Map:
    """A change of an element.

    `plurals` name the results for several elements, `singulars` the result for one. A map
    `follows` if its words come after those of the elements ("each increased by 3").
    """

    name: str
    label: str
    plurals: tuple[str, ...]
    singulars: tuple[str, ...]
    steps: tuple[str, ...]
    code: str
    apply: Callable[[Any, Any], Any]
    follows: bool = False
    draw: Callable[[random.Random], Parameter] | None = None
    to: str = ""


@dataclass(frozen=True)
class Reduction:
    """A value to return of the elements. `steps` are the words for it after other steps.

    `code` has one of the slots `{gen}`, the only argument of a call; `{arg}`, one argument of
    several; `{list}`, a list; `{sized}`, a list or the sequence itself; `{iter}`, an iterator.
    """

    name: str
    label: str
    phrases: tuple[str, ...]
    steps: tuple[str, ...]
    code: str
    apply: Callable[[list[Any], Any], Any]
    draw: Callable[[random.Random], Parameter] | None = None
    imports: str = ""
    takes_maps: bool = True
    # Instead of the element the code collects this expression of it.
    element: str = "{x}"


@dataclass(frozen=True)
class Source:
    """An origin of elements.

    The code goes over `sequence` with the loop variable `loop`. The filters test `tested`, the maps
    change `mapped`. `condition` is a filter that belongs to the source.
    """

    name: str
    label: str
    arguments: tuple[str, ...]
    nouns: tuple[str, ...]
    places: tuple[str, ...]
    sequence: str
    elements: Callable[..., list[Any]]
    inputs: Callable[[random.Random, Sequence[Parameter]], Arguments]
    filters: tuple[str, ...]
    maps: tuple[str, ...]
    reductions: tuple[str, ...]
    weight: int
    setup: str = ""
    loop: str = "x"
    tested: str = "x"
    mapped: str = "x"
    condition: str = ""
    type: str = "number"
    max_filters: int = 2
    max_maps: int = 2
    # Whether the sequence is a list, of which no copy is needed.
    is_list: bool = False
    # Whether the elements are pairs: what the maps change, and what the filters test.
    has_pairs: bool = False
    # The wording for filtered elements, if they are not named by the filter's own phrase.
    around: str = ""
    # Names of the argument, and the places of the elements in it, for "takes a list and returns".
    givens: tuple[str, ...] = ()
    insides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A task with its parameters."""

    default_name: str
    arguments: tuple[str, ...]
    describe: Callable[[Pick], str]
    body: str
    reference: Callable[..., Any]
    inputs: Callable[[random.Random], Arguments]
    imports: str = ""


def _by_name(parts: Sequence[Any]) -> dict[str, Any]:
    return {part.name: part for part in parts}


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


def _number_filters() -> list[Filter]:
    filters = []
    for name, (code, test) in _ADJECTIVES.items():
        phrases = (f"{name} {{noun}}", f"{name} {{noun}}", f"{{noun}} that are {name}")
        filters.append(Filter(name, phrases=phrases, code=code, test=test, predicates=(name,)))

    filters.append(
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
            draw=_number(1, 20),
        )
    )
    filters.append(
        _comparison(
            "less",
            words=("less than {k}", "smaller than {k}", "below {k}", "under {k}"),
            code="{x} < {k}",
            test=lambda x, k: x < k,
            draw=_number(1, 20),
        )
    )
    filters.append(
        _comparison(
            "at_least",
            words=("greater than or equal to {k}", "not less than {k}", "not smaller than {k}"),
            code="{x} >= {k}",
            test=lambda x, k: x >= k,
            draw=_number(1, 20),
        )
    )
    filters.append(
        _comparison(
            "at_most",
            words=("less than or equal to {k}", "not greater than {k}", "not larger than {k}"),
            code="{x} <= {k}",
            test=lambda x, k: x <= k,
            draw=_number(1, 20),
        )
    )
    filters.append(
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
            draw=_number(2, 20),
        )
    )
    filters.append(
        _comparison(
            "not_divisible",
            words=("not divisible by {k}",),
            code="{x} % {k} != 0",
            test=lambda x, k: x % k != 0,
            draw=_number(2, 20),
        )
    )
    filters.append(
        _comparison(
            "different",
            words=("different from {k}", "not equal to {k}", "other than {k}"),
            code="{x} != {k}",
            test=lambda x, k: x != k,
            draw=_number(1, 20),
        )
    )
    filters.append(
        _comparison(
            "between",
            words=("between {k[0]} and {k[1]}", "in the range from {k[0]} to {k[1]}"),
            code="{k[0]} <= {x} <= {k[1]}",
            test=lambda x, k: k[0] <= x <= k[1],
            draw=_interval,
        )
    )
    filters.append(
        Filter(
            "ending",
            phrases=(
                "{noun} ending in {k}",
                "{noun} that end in {k}",
                "{noun} whose last digit is {k}",
            ),
            code="abs({x}) % 10 == {k}",
            test=lambda x, k: abs(x) % 10 == k,
            draw=_number(0, 9),
        )
    )
    return filters


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
        draw=_number(2, 9),
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
        draw=_number(3, 10),
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
        draw=_number(2, 8),
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
        draw=_letter,
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
        draw=_letter,
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
        draw=_letter,
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
        draw=_letter,
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
        draw=_letter,
        removes="letter {k}",
    ),
    Filter(
        "occurrence",
        phrases=("occurrences of {k}", "occurrences of the letter {k}"),
        code="{x} == {k}",
        test=lambda x, k: x in (k,),
        draw=_letter,
        label="occurrences",
    ),
    Filter(
        "before",
        phrases=("characters before {k} in the alphabet", "characters that come before {k}"),
        code="{x} < {k}",
        test=lambda x, k: ord(x) < ord(k),
        draw=_letter,
    ),
]


_NUMBER_MAPS: list[Map] = [
    Map(
        "square",
        label="squares",
        plurals=("squares of {of}", "squared values of {of}"),
        singulars=("the square of {of}", "{of} squared"),
        steps=("square{s} {it}",),
        code="{x} ** 2",
        apply=lambda x, k: x * x,
    ),
    Map(
        "cube",
        label="cubes",
        plurals=("cubes of {of}",),
        singulars=("the cube of {of}",),
        steps=("cube{s} {it}", "raise{s} {it} to the third power"),
        code="{x} ** 3",
        apply=lambda x, k: x * x * x,
    ),
    Map(
        "double",
        label="doubles",
        plurals=("doubles of {of}", "doubled values of {of}"),
        singulars=("twice {of}", "the double of {of}"),
        steps=("double{s} {it}",),
        code="2 * {x}",
        apply=lambda x, k: x + x,
    ),
    Map(
        "triple",
        label="triples",
        plurals=("triples of {of}", "tripled values of {of}"),
        singulars=("three times {of}", "the triple of {of}"),
        steps=("triple{s} {it}",),
        code="3 * {x}",
        apply=lambda x, k: x + x + x,
    ),
    Map(
        "absolute",
        label="absolute",
        plurals=("absolute values of {of}",),
        singulars=("the absolute value of {of}",),
        steps=("take{s} the absolute value of {it}",),
        code="abs({x})",
        apply=lambda x, k: max(x, -x),
    ),
    Map(
        "negate",
        label="negated",
        plurals=("negatives of {of}", "negated values of {of}"),
        singulars=("the negative of {of}",),
        steps=("negate{s} {it}", "change{s} the sign of {it}"),
        code="-{x}",
        apply=lambda x, k: 0 - x,
    ),
    Map(
        "half",
        label="halves",
        plurals=("halves (rounded down) of {of}", "rounded down halves of {of}"),
        singulars=("half (rounded down) of {of}",),
        steps=("halve{s} {it} (rounding down)", "divide{s} {it} by 2 rounding down"),
        code="{x} // 2",
        apply=lambda x, k: x >> 1,
    ),
    Map(
        "last_digit",
        label="last_digits",
        plurals=("last digits of {of}", "final digits of {of}"),
        singulars=("the last digit of {of}",),
        steps=("take{s} the last digit of {it}",),
        code="abs({x}) % 10",
        apply=lambda x, k: int(str(x)[-1]),
    ),
    Map(
        "digit_sum",
        label="digit_sums",
        plurals=("digit sums of {of}", "sums of the digits of {of}"),
        singulars=("the sum of the digits of {of}", "the digit sum of {of}"),
        steps=("take{s} the digit sum of {it}",),
        code="sum(int(d) for d in str(abs({x})))",
        apply=lambda x, k: sum(int(digit) for digit in str(x) if digit != "-"),
    ),
    Map(
        "add",
        label="plus",
        plurals=("{of}, each increased by {k}", "{of} after adding {k} to each"),
        singulars=("{of} plus {k}", "{of} increased by {k}"),
        steps=("add{s} {k} to {it}", "increase{s} {it} by {k}"),
        code="{x} + {k}",
        apply=lambda x, k: x - -k,
        follows=True,
        draw=_number(1, 20),
    ),
    Map(
        "subtract",
        label="minus",
        plurals=("{of}, each decreased by {k}", "{of} after subtracting {k} from each"),
        singulars=("{of} minus {k}", "{of} decreased by {k}"),
        steps=("subtract{s} {k} from {it}", "decrease{s} {it} by {k}"),
        code="{x} - {k}",
        apply=lambda x, k: x + -k,
        follows=True,
        draw=_number(1, 20),
    ),
    Map(
        "multiply",
        label="times",
        plurals=("{of}, each multiplied by {k}", "{of} after multiplying each by {k}"),
        singulars=("{of} times {k}", "{of} multiplied by {k}"),
        steps=("multipl{ies} {it} by {k}",),
        code="{x} * {k}",
        apply=lambda x, k: x * k,
        follows=True,
        draw=_number(4, 20),
    ),
    Map(
        "remainder",
        label="remainders",
        plurals=("remainders modulo {k} of {of}", "remainders of a division by {k} of {of}"),
        singulars=("the remainder of {of} divided by {k}", "{of} modulo {k}"),
        steps=("take{s} {it} modulo {k}",),
        code="{x} % {k}",
        apply=lambda x, k: x - k * (x // k),
        draw=_number(2, 20),
    ),
    Map(
        "distance",
        label="distances",
        plurals=("distances from {k} of {of}", "absolute differences from {k} of {of}"),
        singulars=("the distance from {k} of {of}",),
        steps=("take{s} the distance from {k} of {it}",),
        code="abs({x} - {k})",
        apply=lambda x, k: max(x, k) - min(x, k),
        draw=_number(1, 20),
    ),
]


_TEXT_MAPS: list[Map] = [
    Map(
        "upper",
        label="upper",
        plurals=(
            "{of} in upper case",
            "{of} converted to uppercase",
            "{of} in capital letters",
        ),
        singulars=(
            "{of} in upper case",
            "{of} converted to uppercase",
            "{of} in capital letters",
        ),
        steps=("convert{s} {it} to upper case", "uppercase{s} {it}"),
        code="{x}.upper()",
        apply=lambda x, k: x.upper(),
        follows=True,
    ),
    Map(
        "lower",
        label="lower",
        plurals=("{of} in lower case", "{of} converted to lowercase", "{of} in small letters"),
        singulars=(
            "{of} in lower case",
            "{of} converted to lowercase",
            "{of} in small letters",
        ),
        steps=("convert{s} {it} to lower case", "lowercase{s} {it}"),
        code="{x}.lower()",
        apply=lambda x, k: x.lower(),
        follows=True,
    ),
    Map(
        "capitalize",
        label="capitalized",
        plurals=("{of}, each capitalized", "{of} with a capital first letter"),
        singulars=("{of} with a capital first letter",),
        steps=("capitalize{s} {it}",),
        code="{x}.capitalize()",
        apply=lambda x, k: x[:1].upper() + x[1:].lower(),
        follows=True,
    ),
    Map(
        "reverse",
        label="reversed",
        plurals=("{of}, each reversed", "{of}, each written backwards"),
        singulars=("{of} reversed", "{of} backwards", "the reverse of {of}"),
        steps=("reverse{s} {it}", "turn{s} {it} around"),
        code="{x}[::-1]",
        apply=lambda x, k: "".join(reversed(x)),
        follows=True,
    ),
    Map(
        "length",
        label="lengths",
        plurals=("lengths of {of}", "numbers of letters of {of}"),
        singulars=("the length of {of}", "the number of characters of {of}"),
        steps=("take{s} the length of {it}",),
        code="len({x})",
        apply=lambda x, k: sum(1 for _ in x),
        to="number",
    ),
    Map(
        "first_letter",
        label="first_letters",
        plurals=("first letters of {of}", "initial letters of {of}"),
        singulars=("the first letter of {of}",),
        steps=("take{s} the first letter of {it}",),
        code="{x}[:1]",
        apply=lambda x, k: "".join(list(x)[:1]),
    ),
    Map(
        "last_letter",
        label="last_letters",
        plurals=("last letters of {of}", "final letters of {of}"),
        singulars=("the last letter of {of}",),
        steps=("take{s} the last letter of {it}",),
        code="{x}[-1:]",
        apply=lambda x, k: "".join(list(x)[-1:]),
    ),
    Map(
        "first_letters",
        label="starts",
        plurals=("first {k} letters of {of}", "first {k} characters of {of}"),
        singulars=("the first {k} characters of {of}", "the first {k} letters of {of}"),
        steps=("take{s} the first {k} characters of {it}",),
        code="{x}[:{k}]",
        apply=lambda x, k: "".join(letter for i, letter in enumerate(x) if i < k),
        draw=_number(2, 9),
    ),
    Map(
        "last_letters",
        label="ends",
        plurals=("last {k} letters of {of}", "last {k} characters of {of}"),
        singulars=("the last {k} characters of {of}", "the last {k} letters of {of}"),
        steps=("take{s} the last {k} characters of {it}",),
        code="{x}[-{k}:]",
        apply=lambda x, k: "".join(letter for i, letter in enumerate(x) if i >= len(x) - k),
        draw=_number(2, 9),
    ),
    Map(
        "drop_first",
        label="tails",
        plurals=(
            "{of} without their first {k} letters",
            "{of}, each without the first {k} letters",
        ),
        singulars=("{of} without the first {k} characters",),
        steps=("remove{s} the first {k} characters of {it}",),
        code="{x}[{k}:]",
        apply=lambda x, k: "".join(letter for i, letter in enumerate(x) if i >= k),
        follows=True,
        draw=_number(2, 9),
    ),
    Map(
        "repeat",
        label="repeated",
        plurals=("{of}, each repeated {k} times", "{of}, each written {k} times"),
        singulars=("{of} repeated {k} times", "{of} written {k} times"),
        steps=("repeat{s} {it} {k} times",),
        code="{x} * {k}",
        apply=lambda x, k: "".join(x for _ in range(k)),
        follows=True,
        draw=_number(2, 20),
    ),
    Map(
        "no_vowels",
        label="without_vowels",
        plurals=("{of} without their vowels", "{of}, each without vowels"),
        singulars=("{of} without vowels", "{of} with all vowels removed"),
        steps=("remove{s} the vowels from {it}",),
        code='"".join(c for c in {x} if c not in "aeiouAEIOU")',
        apply=lambda x, k: re.sub("[aeiou]", "", x, flags=re.IGNORECASE),
        follows=True,
    ),
    Map(
        "replace",
        label="replaced",
        plurals=(
            "{of}, with every {k[0]} replaced by {k[1]}",
            "{of}, with {k[1]} in place of {k[0]}",
        ),
        singulars=(
            "{of} with every {k[0]} replaced by {k[1]}",
            "{of} with {k[1]} in place of {k[0]}",
        ),
        steps=(
            "replace{s} {k[0]} by {k[1]} in {it}",
            "change{s} every {k[0]} to {k[1]} in {it}",
        ),
        code="{x}.replace({k[0]}, {k[1]})",
        apply=lambda x, k: k[1].join(x.split(k[0])),
        follows=True,
        draw=_two_letters,
    ),
    Map(
        "no_spaces",
        label="without_spaces",
        plurals=("{of} without spaces",),
        singulars=("{of} without spaces", "{of} with all spaces removed"),
        steps=("remove{s} the spaces from {it}",),
        code='{x}.replace(" ", "")',
        apply=lambda x, k: "".join(x.split(" ")),
        follows=True,
    ),
    Map(
        "title",
        label="title",
        plurals=("{of} in title case",),
        singulars=("{of} in title case", "{of} with every word capitalized"),
        steps=("convert{s} {it} to title case", "capitalize{s} every word of {it}"),
        code="{x}.title()",
        apply=lambda x, k: re.sub("[A-Za-z]+", lambda m: m[0].capitalize(), x),
        follows=True,
    ),
    Map(
        "twice",
        label="doubled",
        plurals=("{of}, each doubled", "{of}, each written twice"),
        singulars=("{of} written twice",),
        steps=("double{s} {it}",),
        code="{x} * 2",
        apply=lambda x, k: x + x,
        follows=True,
    ),
]


def _product(items: list[Any]) -> Any:
    result = 1
    for item in items:
        result = result * item
    return result


def _without_duplicates(items: list[Any]) -> list[Any]:
    result: list[Any] = []
    for item in items:
        if item not in result:
            result.append(item)
    return result


def _sorted(items: list[Any]) -> list[Any]:
    """Return the items in ascending order, by insertion."""
    result: list[Any] = []
    for item in items:
        place = 0
        while place < len(result) and result[place] <= item:
            place += 1
        result.insert(place, item)
    return result


def _running_totals(items: list[Any]) -> list[Any]:
    return [sum(items[: i + 1]) for i in range(len(items))]


# The reductions of elements of any type.
_COMMON_REDUCTIONS: list[Reduction] = [
    Reduction(
        "count",
        label="count",
        phrases=(
            "count{s} {of}",
            "return{s} the number of {these}",
            "find{s} the number of {these}",
            "return{s} how many {these} there are",
            "return{s} the count of {these}",
        ),
        steps=(),
        code="return len({sized})",
        apply=lambda v, k: sum(1 for _ in v),
        takes_maps=False,
    ),
    Reduction(
        "list",
        label="",
        phrases=(
            "return{s} a list of {of}",
            "return{s} {of}",
            "return{s} {of} as a list",
            "give{s} a list with {of}",
            "find{s} all {these}",
        ),
        steps=("return{s} a list of the results", "return{s} the results as a list"),
        code="return {list}",
        apply=lambda v, k: v,
    ),
    Reduction(
        "reversed",
        label="reversed",
        phrases=(
            "return{s} {of} in reverse order",
            "return{s} a list of {of} in reverse order",
            "return{s} {of} from last to first",
        ),
        steps=("return{s} the results in reverse order",),
        code="return {list}[::-1]",
        apply=lambda v, k: list(reversed(v)),
    ),
    Reduction(
        "first",
        label="first",
        phrases=("return{s} the first of {of}", "find{s} the first of {of}"),
        steps=("return{s} the first result",),
        code="return next({iter}, None)",
        apply=lambda v, k: v[0] if v else None,
    ),
    Reduction(
        "last",
        label="last",
        phrases=("return{s} the last of {of}", "find{s} the last of {of}"),
        steps=("return{s} the last result",),
        code="result = {list}\nreturn result[-1] if result else None",
        apply=lambda v, k: v[len(v) - 1] if v else None,
    ),
    Reduction(
        "distinct",
        label="distinct",
        phrases=(
            "return{s} a list of {of} without duplicates",
            "return{s} {of} without duplicates",
            "return{s} the distinct values of {of}",
            "remove{s} duplicates from {of}",
        ),
        steps=("return{s} the results without duplicates",),
        code="return list(dict.fromkeys({gen}))",
        apply=lambda v, k: _without_duplicates(v),
    ),
    Reduction(
        "distinct_count",
        label="distinct_count",
        phrases=(
            "return{s} the number of different values among {of}",
            "count{s} the different values among {of}",
            "count{s} the distinct values among {of}",
        ),
        steps=("return{s} the number of different results",),
        code="return len(set({gen}))",
        apply=lambda v, k: len(_without_duplicates(v)),
    ),
    Reduction(
        "ascending",
        label="sorted",
        phrases=(
            "return{s} {of} sorted in ascending order",
            "sort{s} {of} in ascending order",
            "return{s} a sorted list of {of}",
            "sort{s} {of}",
        ),
        steps=("return{s} the results in ascending order", "return{s} the sorted results"),
        code="return sorted({gen})",
        apply=lambda v, k: _sorted(v),
    ),
    Reduction(
        "descending",
        label="sorted_down",
        phrases=(
            "return{s} {of} sorted in descending order",
            "sort{s} {of} in descending order",
            "return{s} {of} in reverse sorted order",
        ),
        steps=("return{s} the results in descending order",),
        code="return sorted({arg}, reverse=True)",
        apply=lambda v, k: _sorted(v)[::-1],
    ),
    Reduction(
        "take",
        label="leading",
        phrases=(
            "return{s} the first {k} of {of}",
            "return{s} a list of the first {k} of {of}",
        ),
        steps=("return{s} the first {k} results",),
        code="return {list}[:{k}]",
        apply=lambda v, k: [item for i, item in enumerate(v) if i < k],
        draw=_number(2, 9),
    ),
    Reduction(
        "tally",
        label="tally",
        phrases=(
            "count{s} how often each of {of} occurs",
            "return{s} a dictionary with the counts of {of}",
            "count{s} how many times each of {of} appears",
        ),
        steps=("count{s} how often each result occurs",),
        code="return dict(Counter({gen}))",
        apply=lambda v, k: {item: v.count(item) for item in v},
        imports="from collections import Counter",
    ),
]


_NUMBER_REDUCTIONS: list[Reduction] = [
    Reduction(
        "sum",
        label="sum",
        phrases=(
            "return{s} the sum of {of}",
            "return{s} the total of {of}",
            "compute{s} the sum of {of}",
            "calculate{s} the sum of {of}",
            "add{s} up {of}",
            "sum{s} {of}",
        ),
        steps=("return{s} the sum", "return{s} their sum", "add{s} up the results"),
        code="return sum({gen})",
        apply=lambda v, k: sum(v),
    ),
    Reduction(
        "product",
        label="product",
        phrases=(
            "return{s} the product of {of}",
            "compute{s} the product of {of}",
            "calculate{s} the product of {of}",
            "multipl{ies} {of}",
        ),
        steps=("return{s} the product", "return{s} their product"),
        code="return math.prod({gen})",
        apply=lambda v, k: _product(v),
        imports="import math",
    ),
    Reduction(
        "maximum",
        label="max",
        phrases=(
            "return{s} the largest of {of}",
            "return{s} the maximum of {of}",
            "find{s} the largest of {of}",
            "find{s} the maximum of {of}",
            "return{s} the greatest of {of}",
        ),
        steps=("return{s} the largest result", "return{s} the maximum"),
        code="return max({arg}, default=None)",
        apply=lambda v, k: _sorted(v)[-1] if v else None,
    ),
    Reduction(
        "minimum",
        label="min",
        phrases=(
            "return{s} the smallest of {of}",
            "return{s} the minimum of {of}",
            "find{s} the smallest of {of}",
            "find{s} the minimum of {of}",
        ),
        steps=("return{s} the smallest result", "return{s} the minimum"),
        code="return min({arg}, default=None)",
        apply=lambda v, k: _sorted(v)[0] if v else None,
    ),
    Reduction(
        "average",
        label="average",
        phrases=(
            "return{s} the average of {of}",
            "return{s} the mean of {of}",
            "compute{s} the average of {of}",
            "calculate{s} the mean of {of}",
        ),
        steps=("return{s} the average", "return{s} their mean"),
        code="result = {list}\nreturn sum(result) / len(result) if result else 0",
        apply=lambda v, k: sum(v) / len(v) if v else 0,
    ),
    Reduction(
        "spread",
        label="range",
        phrases=(
            "return{s} the difference between the largest and the smallest of {of}",
            "compute{s} the range (largest minus smallest) of {of}",
        ),
        steps=("return{s} the difference between the largest and the smallest result",),
        code="result = {list}\nreturn max(result) - min(result) if result else 0",
        apply=lambda v, k: _sorted(v)[-1] - _sorted(v)[0] if v else 0,
    ),
    Reduction(
        "second_largest",
        label="second_largest",
        phrases=(
            "return{s} the second largest of {of}",
            "find{s} the second largest of {of}",
            "return{s} the second biggest of {of}",
        ),
        steps=("return{s} the second largest result",),
        code="result = sorted(set({gen}))\nreturn result[-2] if len(result) > 1 else None",
        apply=lambda v, k: _sorted(_without_duplicates(v))[-2] if len(set(v)) > 1 else None,
    ),
    Reduction(
        "largest",
        label="largest",
        phrases=(
            "return{s} the {k} largest of {of}",
            "find{s} the {k} largest of {of}",
            "return{s} the {k} biggest of {of}",
        ),
        steps=("return{s} the {k} largest results",),
        code="return sorted({arg}, reverse=True)[:{k}]",
        apply=lambda v, k: _sorted(v)[::-1][:k],
        draw=_number(2, 9),
    ),
    Reduction(
        "smallest",
        label="smallest",
        phrases=("return{s} the {k} smallest of {of}", "find{s} the {k} smallest of {of}"),
        steps=("return{s} the {k} smallest results",),
        code="return sorted({gen})[:{k}]",
        apply=lambda v, k: _sorted(v)[:k],
        draw=_number(2, 9),
    ),
    Reduction(
        "running",
        label="running",
        phrases=(
            "return{s} the running totals of {of}",
            "return{s} the cumulative sums of {of}",
            "compute{s} the running sums of {of}",
        ),
        steps=("return{s} the running totals",),
        code="return list(itertools.accumulate({gen}))",
        apply=lambda v, k: _running_totals(v),
        imports="import itertools",
    ),
    Reduction(
        "joined_numbers",
        label="joined",
        phrases=(
            "join{s} {of} with {k} into a text",
            "return{s} a text of {of} separated by {k}",
            "return{s} {of} as a string separated by {k}",
        ),
        steps=("join{s} the results with {k} into a text",),
        code="return {k}.join({gen})",
        apply=lambda v, k: k.join(f"{item}" for item in v),
        draw=_separator,
        element="str({x})",
    ),
]


def _quantifiers(filters: Sequence[Filter]) -> list[Reduction]:
    """Return the reductions that tell whether any or all elements meet a condition."""
    reductions = []
    for item in filters:
        if not item.predicates:
            continue
        any_phrases = []
        all_phrases = []
        for predicate in item.predicates:
            for verb in ("check{s}", "return{s}", "test{s}"):
                any_phrases.append(f"{verb} whether any of {{of}} is {predicate}")
                any_phrases.append(f"{verb} if at least one of {{of}} is {predicate}")
                all_phrases.append(f"{verb} whether each of {{of}} is {predicate}")
                all_phrases.append(f"{verb} if every one of {{of}} is {predicate}")
        reductions.append(
            Reduction(
                f"any_{item.name}",
                label=f"any_{item.name}",
                phrases=tuple(any_phrases),
                steps=(),
                code="return any({gen})",
                apply=lambda v, k, test=item.test: sum(test(x, k) for x in v) > 0,  # type: ignore[misc]
                draw=item.draw,
                takes_maps=False,
                element=item.code,
            )
        )
        reductions.append(
            Reduction(
                f"all_{item.name}",
                label=f"all_{item.name}",
                phrases=tuple(all_phrases),
                steps=(),
                code="return all({gen})",
                apply=lambda v, k, test=item.test: sum(not test(x, k) for x in v) == 0,  # type: ignore[misc]
                draw=item.draw,
                takes_maps=False,
                element=item.code,
            )
        )
    return reductions


_TEXT_REDUCTIONS: list[Reduction] = [
    Reduction(
        "text",
        label="text",
        phrases=(
            "return{s} a text of {of}",
            "return{s} a string with only {of}",
            "return{s} {of} joined into one text",
        ),
        steps=("join{s} them into one text", "join{s} the results"),
        code='return "".join({gen})',
        apply=lambda v, k: "".join(v),
    ),
    Reduction(
        "backwards",
        label="backwards",
        phrases=(
            "return{s} a text of {of} in reverse order",
            "return{s} a string with only {of} in reverse order",
        ),
        steps=("return{s} a text of the results in reverse order",),
        code='return "".join({gen})[::-1]',
        apply=lambda v, k: "".join(reversed(v)),
    ),
    Reduction(
        "joined",
        label="joined",
        phrases=(
            "join{s} {of} with {k}",
            "return{s} a text of {of} separated by {k}",
            "return{s} {of} as a string separated by {k}",
        ),
        steps=("join{s} the results with {k}",),
        code="return {k}.join({gen})",
        apply=lambda v, k: k.join(v),
        draw=_separator,
    ),
    Reduction(
        "longest",
        label="longest",
        phrases=("return{s} the longest of {of}", "find{s} the longest of {of}"),
        steps=("return{s} the longest result",),
        code="return max({arg}, key=len, default=None)",
        apply=lambda v, k: next((w for w in v if len(w) == max(map(len, v))), None),
    ),
    Reduction(
        "shortest",
        label="shortest",
        phrases=("return{s} the shortest of {of}", "find{s} the shortest of {of}"),
        steps=("return{s} the shortest result",),
        code="return min({arg}, key=len, default=None)",
        apply=lambda v, k: next((w for w in v if len(w) == min(map(len, v))), None),
    ),
]


# The tables of all parts. A name is used once among the filters, once among the maps and so on.
_NUMBER_FILTERS = _number_filters()
_FILTERS = _by_name([*_NUMBER_FILTERS, *_WORD_FILTERS, *_CHARACTER_FILTERS])
_MAPS = _by_name([*_NUMBER_MAPS, *_TEXT_MAPS])
_QUANTIFIERS = _quantifiers(_NUMBER_FILTERS)
_REDUCTIONS = _by_name([*_COMMON_REDUCTIONS, *_NUMBER_REDUCTIONS, *_TEXT_REDUCTIONS, *_QUANTIFIERS])

_ALL_NUMBER_FILTERS = tuple(part.name for part in _NUMBER_FILTERS)
# The filters that can stand behind "is".
_PREDICATES = tuple(part.name for part in _NUMBER_FILTERS if part.predicates)
_ALL_WORD_FILTERS = tuple(part.name for part in _WORD_FILTERS)
_ALL_CHARACTER_FILTERS = tuple(part.name for part in _CHARACTER_FILTERS)
_ALL_NUMBER_MAPS = tuple(part.name for part in _NUMBER_MAPS)
_RANGE_FILTERS = _words_of("even odd divisible not_divisible ending different")
_RANGE_MAPS = _words_of(
    "square cube double triple half last_digit digit_sum add multiply remainder distance"
)
_DIGIT_FILTERS = _words_of("even odd nonzero greater less divisible different")
_DIGIT_MAPS = _words_of("square cube double triple half add multiply remainder")
_DIVISOR_MAPS = _words_of("square cube double triple half last_digit add multiply")
_WORD_MAPS = _words_of(
    "upper lower capitalize reverse length first_letter last_letter first_letters last_letters "
    "drop_first no_vowels replace twice"
)
# Maps of the lengths of words.
_LENGTH_MAPS = _words_of("square double add multiply")

_COMMON = _words_of(
    "count list reversed first last distinct distinct_count ascending descending take tally"
)
_NUMBERS = _words_of(
    "sum product maximum minimum average spread second_largest largest smallest running "
    "joined_numbers"
)
_LIST_REDUCTIONS = _COMMON + _NUMBERS + tuple(part.name for part in _QUANTIFIERS)
_RANGE_REDUCTIONS = _words_of("sum product count list reversed average running joined_numbers")
_DIGIT_REDUCTIONS = _words_of(
    "sum product count list reversed maximum minimum distinct distinct_count ascending descending "
    "average tally"
)
_DIVISOR_REDUCTIONS = _words_of("sum product count list reversed average maximum minimum")
_VALUE_REDUCTIONS = (*_NUMBERS, "count", "list", "ascending", "descending", "distinct")
_WORD_REDUCTIONS = (*_COMMON, "joined", "longest", "shortest")
_CHARACTER_REDUCTIONS = (*_COMMON, "text", "backwards", "joined")
_POSITION_REDUCTIONS = _words_of("list first last sum reversed take")
_PAIR_REDUCTIONS = _words_of("list sum maximum minimum average product ascending descending")
# Reductions of the lengths of words.
_LENGTH_REDUCTIONS = _words_of(
    "list sum maximum minimum average ascending descending distinct product reversed tally running"
)


# Inputs of the tests


def _near(rng: random.Random, parameters: Sequence[Parameter]) -> list[int]:
    """Return numbers that are on both sides of the conditions with these parameters."""
    numbers = [0, 1, 2, -1]
    integers = [value for value in parameters if isinstance(value, int)]
    numbers += [first * second for first in integers for second in integers]
    for value in parameters:
        number = value
        if isinstance(value, tuple):
            number = value[rng.randrange(2)]
        if isinstance(number, int):
            numbers += [number - 1, number, number + 1, 2 * number, -number]
            numbers += [number * rng.randrange(2, 6), number + 10 * rng.randrange(1, 4)]
    return numbers


def _some_numbers(rng: random.Random, parameters: Sequence[Parameter]) -> list[int]:
    near = _near(rng, parameters)
    numbers: list[int] = []
    for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4, 6, 9, 12, 16))):
        kind = rng.random()
        if kind < 0.45:
            numbers.append(rng.choice(near))
        elif kind < 0.55:
            numbers.append(-rng.choice(near))
        elif kind < 0.65 and numbers:
            numbers.append(rng.choice(numbers))
        else:
            numbers.append(rng.randrange(-40, 100))
    return numbers


def _list_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    return (_some_numbers(rng, parameters),)


def _two_lists_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    first = _some_numbers(rng, parameters)
    second = _some_numbers(rng, parameters)
    if first and rng.random() < 0.7:
        second += rng.choices(first, k=rng.randrange(1, 4))
        rng.shuffle(second)
    return first, second


def _limit_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    return (rng.choice((1, 2, 5, 9, 10, 17, 21, 30, 44, 60, rng.randrange(1, 60))),)


def _limits_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    low = rng.randrange(1, 30)
    return low, low + rng.choice((0, 1, 5, 10, 20, 30))


def _number_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    if rng.random() < 0.5:
        return (rng.choice(_near(rng, parameters)),)
    return (rng.randrange(-60, 130),)


def _two_numbers_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    first = _number_input(rng, parameters)[0]
    second = _number_input(rng, parameters)[0]
    if rng.random() < 0.1:
        second = first
    return first, second


def _digits_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    if rng.random() < 0.2:
        return (rng.randrange(10),)
    return (int(rng.choice((9, 99, 12345, 10**6, 10**9)) * rng.random()) + 10,)


_TEST_WORDS = _words_of(
    "level Anna apple banana cat dog Eve echo fig grape house Ivy jungle kayak lemon mouse noon "
    "orange Peter queen river stone tree umbrella violet water Yak zebra a an the to stats civic "
    "wow Otto radar code python bee all eye ocean island yellow idea up it "
    "strawberry programming watermelons Elizabeth noon deed"
)


def _some_words(rng: random.Random, parameters: Sequence[Parameter]) -> list[str]:
    letters: list[str] = []
    for value in parameters:
        letter = value
        if isinstance(value, tuple):
            letter = value[0]
        if isinstance(letter, str) and letter.isalpha():
            letters.append(letter)
    words: list[str] = []
    for _ in range(rng.choice((0, 1, 3, 5, 8, 10, 14))):
        word = rng.choice(_TEST_WORDS)
        kind = rng.random()
        if letters and kind < 0.25:
            word = rng.choice(letters) + word
        elif letters and kind < 0.5:
            word += rng.choice(letters)
        elif words and kind < 0.6:
            word = rng.choice(words)
        words.append(word)
    return words


def _words_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    return (_some_words(rng, parameters),)


def _text_of_words_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    return (" ".join(_some_words(rng, parameters)),)


def _text_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    text = " ".join(_some_words(rng, parameters))
    while rng.random() < 0.5:
        place = rng.randrange(len(text) + 1)
        text = text[:place] + rng.choice("0123456789") + text[place:]
    return (text,)


def _dictionary_input(rng: random.Random, parameters: Sequence[Parameter]) -> Arguments:
    words = _some_words(rng, parameters)
    near = _near(rng, parameters)
    data = {}
    for word in words:
        data[word] = rng.choice(near) if rng.random() < 0.5 else rng.randrange(-40, 100)
    return (data,)


# Sources


def _divisors(n: int) -> list[int]:
    found = []
    for low in range(1, math.isqrt(n) + 1):
        if n % low == 0:
            found += [low, n // low]
    return sorted(set(found))


def _pair_source(name: str, noun: str, code: str, value: Callable[[Any, Any], Any]) -> Source:
    return Source(
        name,
        label=name,
        arguments=("first", "second"),
        nouns=(noun,),
        places=(
            "at the same positions of two lists",
            "at equal positions of two lists",
            "at the same indexes of two lists",
        ),
        sequence="zip(@0, @1)",
        elements=lambda a, b: [value(a[i], b[i]) for i in range(min(len(a), len(b)))],
        inputs=_two_lists_input,
        filters=(),
        maps=_ALL_NUMBER_MAPS,
        reductions=_PAIR_REDUCTIONS,
        weight=1,
        loop="x, y",
        mapped=code,
        max_maps=1,
    )


list_places = (
    "in a list",
    "in a list of numbers",
    "in a list of integers",
    "in a given list",
    "in an array",
    "of a list",
)
two_lists = dict.fromkeys(("first", "second"))
_SOURCE_LIST: list[Source] = [
    Source(
        "list",
        label="",
        arguments=("numbers",),
        nouns=("numbers", "numbers", "integers", "elements", "values"),
        places=list_places,
        sequence="@0",
        elements=list,
        inputs=_list_input,
        filters=_ALL_NUMBER_FILTERS,
        maps=_ALL_NUMBER_MAPS,
        reductions=_LIST_REDUCTIONS,
        givens=("a list of numbers", "a list of integers", "a list", "an array of integers"),
        insides=("", "in it", "in the list"),
        weight=45,
        is_list=True,
    ),
    Source(
        "up_to",
        label="up_to",
        arguments=("n",),
        nouns=("numbers", "integers"),
        places=("from 1 to @0", "between 1 and @0", "from 1 up to @0"),
        sequence="range(1, @0 + 1)",
        elements=lambda n: [i + 1 for i in range(n)],
        inputs=_limit_input,
        filters=_RANGE_FILTERS,
        maps=_RANGE_MAPS,
        reductions=_RANGE_REDUCTIONS,
        givens=("a number @0", "an integer @0"),
        insides=("from 1 to @0",),
        weight=8,
    ),
    Source(
        "below",
        label="below",
        arguments=("n",),
        nouns=("positive numbers", "positive integers"),
        places=("below @0", "less than @0", "smaller than @0", "under @0"),
        sequence="range(1, @0)",
        elements=lambda n: [i + 1 for i in range(n - 1)],
        inputs=_limit_input,
        filters=_RANGE_FILTERS,
        maps=_RANGE_MAPS,
        reductions=_RANGE_REDUCTIONS,
        givens=("a number @0", "an integer @0"),
        insides=("below @0",),
        weight=5,
    ),
    Source(
        "interval",
        label="between",
        arguments=("a", "b"),
        nouns=("numbers", "integers"),
        places=("from @0 to @1", "between @0 and @1"),
        sequence="range(@0, @1 + 1)",
        elements=lambda a, b: [a + i for i in range(b - a + 1)],
        inputs=_limits_input,
        filters=_RANGE_FILTERS,
        maps=_RANGE_MAPS,
        reductions=_RANGE_REDUCTIONS,
        givens=("two numbers @0 and @1", "two integers @0 and @1"),
        insides=("from @0 to @1",),
        weight=5,
    ),
    Source(
        "digits",
        label="digits",
        arguments=("n",),
        nouns=("digits",),
        places=("of a number", "of an integer", "of a given number", "of @0"),
        sequence="digits",
        elements=lambda n: [n // 10**i % 10 for i in reversed(range(len(f"{n}")))],
        inputs=_digits_input,
        filters=_DIGIT_FILTERS,
        maps=_DIGIT_MAPS,
        reductions=_DIGIT_REDUCTIONS,
        givens=("a number", "an integer @0", "a positive integer"),
        insides=("of it", "of the number"),
        weight=6,
        setup="digits = [int(d) for d in str(abs(@0))]",
        is_list=True,
    ),
    Source(
        "divisors",
        label="divisors",
        arguments=("n",),
        nouns=("divisors",),
        places=("of a number", "of an integer", "of @0"),
        sequence="range(1, @0 + 1)",
        elements=_divisors,
        inputs=_limit_input,
        filters=(*_RANGE_FILTERS, "greater", "less"),
        maps=_DIVISOR_MAPS,
        reductions=_DIVISOR_REDUCTIONS,
        givens=("a number", "an integer @0"),
        insides=("of it", "of the number"),
        weight=4,
        condition="@0 % x == 0",
    ),
    Source(
        "values",
        label="values",
        arguments=("data",),
        nouns=("values",),
        places=("of a dictionary", "in a dictionary", "of a dict"),
        sequence="@0.values()",
        elements=lambda data: [data[key] for key in data],
        inputs=_dictionary_input,
        filters=_ALL_NUMBER_FILTERS,
        maps=_ALL_NUMBER_MAPS,
        reductions=_VALUE_REDUCTIONS,
        givens=("a dictionary", "a dict"),
        insides=("of it",),
        weight=5,
    ),
    Source(
        "keys",
        label="keys",
        arguments=("data",),
        nouns=("keys",),
        places=("of a dictionary", "in a dictionary", "of a dict"),
        sequence="@0.items()",
        elements=lambda data: list(data.items()),
        inputs=_dictionary_input,
        filters=_PREDICATES,
        maps=_WORD_MAPS,
        reductions=_WORD_REDUCTIONS,
        givens=("a dictionary", "a dict"),
        insides=("of it",),
        weight=4,
        loop="key, x",
        mapped="key",
        type="text",
        max_maps=1,
        has_pairs=True,
        around="{noun} {place} whose value is {predicates}",
    ),
    Source(
        "common",
        label="common",
        arguments=tuple(two_lists),
        nouns=("common elements", "shared elements"),
        places=("of two lists", "of two given lists", "of two arrays"),
        sequence="@0",
        elements=lambda first, second: [x for x in first if second.count(x)],
        inputs=_two_lists_input,
        filters=_ALL_NUMBER_FILTERS,
        maps=_ALL_NUMBER_MAPS,
        reductions=_COMMON + _NUMBERS,
        weight=3,
        condition="x in @1",
        max_filters=1,
        max_maps=1,
    ),
    Source(
        "missing",
        label="missing",
        arguments=tuple(two_lists),
        nouns=("elements", "numbers"),
        places=(
            "of one list that are missing in another list",
            "of the first list that are not in the second",
        ),
        sequence="@0",
        elements=lambda first, second: [x for x in first if second.count(x) == 0],
        inputs=_two_lists_input,
        filters=("even", "odd", "positive", "negative", "nonzero"),
        maps=_ALL_NUMBER_MAPS,
        reductions=_COMMON + _NUMBERS,
        weight=2,
        condition="x not in @1",
        max_filters=1,
        max_maps=1,
    ),
    Source(
        "both",
        label="both",
        arguments=tuple(two_lists),
        nouns=("numbers", "elements", "values"),
        places=("in two lists together", "of two concatenated lists", "in two lists combined"),
        sequence="@0 + @1",
        elements=lambda first, second: [*first, *second],
        inputs=_two_lists_input,
        filters=_ALL_NUMBER_FILTERS,
        maps=_ALL_NUMBER_MAPS,
        reductions=_COMMON + _NUMBERS,
        givens=("two lists", "two lists of numbers"),
        insides=("in both together",),
        weight=3,
        max_filters=1,
        max_maps=1,
    ),
    _pair_source("sums", "sums of the elements", "x + y", lambda a, b: a + b),
    _pair_source("differences", "differences of the elements", "x - y", lambda a, b: a - b),
    _pair_source("products", "products of the elements", "x * y", lambda a, b: a * b),
    _pair_source("maxima", "larger ones of the elements", "max(x, y)", max),
    _pair_source("minima", "smaller ones of the elements", "min(x, y)", min),
    Source(
        "text_words",
        label="words",
        arguments=("text",),
        nouns=("words",),
        places=("in a text", "of a text", "in a sentence", "in a string", "of a given text"),
        sequence="@0.split()",
        elements=lambda text: re.findall(r"\S+", text),
        inputs=_text_of_words_input,
        filters=_ALL_WORD_FILTERS,
        maps=_WORD_MAPS,
        reductions=_WORD_REDUCTIONS,
        givens=("a text", "a string", "a sentence"),
        insides=("in it", "of it", ""),
        weight=10,
        is_list=True,
        loop="word",
        tested="word",
        mapped="word",
        type="text",
    ),
    Source(
        "words",
        label="",
        arguments=("words",),
        nouns=("words", "strings"),
        places=("in a list", "in a list of strings", "in a list of words", "in a given list"),
        sequence="@0",
        elements=list,
        inputs=_words_input,
        filters=_ALL_WORD_FILTERS,
        maps=_WORD_MAPS,
        reductions=_WORD_REDUCTIONS,
        givens=("a list of words", "a list of strings"),
        insides=("", "in it"),
        weight=8,
        is_list=True,
        loop="word",
        tested="word",
        mapped="word",
        type="text",
    ),
    Source(
        "positions",
        label="positions",
        arguments=("numbers",),
        nouns=("numbers", "elements", "integers"),
        places=list_places,
        sequence="enumerate(@0)",
        elements=lambda numbers: list(enumerate(numbers)),
        inputs=_list_input,
        filters=_ALL_NUMBER_FILTERS,
        maps=(),
        reductions=_POSITION_REDUCTIONS,
        givens=("a list of numbers", "a list of integers", "a list", "an array of integers"),
        insides=("", "in it"),
        weight=5,
        loop="i, x",
        mapped="i",
        has_pairs=True,
        around="{position} of the {phrase}",
    ),
    Source(
        "word_positions",
        label="positions",
        arguments=("words",),
        nouns=("words", "strings"),
        places=("in a list", "in a list of words", "in a list of strings"),
        sequence="enumerate(@0)",
        elements=lambda words: list(enumerate(words)),
        inputs=_words_input,
        filters=_ALL_WORD_FILTERS,
        maps=(),
        reductions=_POSITION_REDUCTIONS,
        givens=("a list of words", "a list of strings"),
        insides=("", "in it"),
        weight=3,
        loop="i, word",
        tested="word",
        mapped="i",
        has_pairs=True,
        around="{position} of the {phrase}",
    ),
    Source(
        "character_positions",
        label="positions",
        arguments=("text",),
        nouns=("characters",),
        places=("in a text", "in a string", "of a text"),
        sequence="enumerate(@0)",
        elements=lambda text: list(enumerate(text)),
        inputs=_text_input,
        filters=_ALL_CHARACTER_FILTERS,
        maps=(),
        reductions=_POSITION_REDUCTIONS,
        givens=("a text", "a string"),
        insides=("in it", ""),
        weight=3,
        loop="i, c",
        tested="c",
        mapped="i",
        has_pairs=True,
        max_filters=1,
        around="{position} of the {phrase}",
    ),
    Source(
        "characters",
        label="",
        arguments=("text",),
        nouns=("characters",),
        places=("in a text", "of a text", "in a string", "of a string", "in a word"),
        sequence="@0",
        elements=list,
        inputs=_text_input,
        filters=_ALL_CHARACTER_FILTERS,
        maps=("upper", "lower", "twice"),
        reductions=_CHARACTER_REDUCTIONS,
        givens=("a text", "a string"),
        insides=("in it", "of it", ""),
        weight=9,
        loop="c",
        tested="c",
        mapped="c",
        type="text",
        max_filters=1,
        max_maps=1,
    ),
]


_SOURCES: dict[str, Source] = _by_name(_SOURCE_LIST)


# Wordings and code of composed tasks


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


def _third_person(text: str) -> str:
    """Return a description with the verbs of "a function that returns"."""
    return text.replace("{s}", "s").replace("{ies}", "ies")


def _infinitive(text: str) -> str:
    """Return a description with the verbs of "a function to return"."""
    return text.replace("{s}", "").replace("{ies}", "y")


def _fill(template: str, pick: Pick, value: Parameter, **slots: str) -> str:
    """Return a wording with all its slots filled, except those of the verbs."""
    shown = _shown(value, pick)
    return template.format(k=shown, s="{s}", ies="{ies}", **slots)


def _first_wording(options: Sequence[str]) -> str:
    """Pick the first wording, which the responses use."""
    return options[0]


def _enumeration(items: Sequence[str]) -> str:
    if len(items) == 1:
        return items[0]
    return f"{', '.join(items[:-1])} and {items[-1]}"


def _mapped(code: str, maps: Sequence[Map], values: Sequence[Parameter]) -> str:
    """Return the code that applies maps to the value of an expression."""
    for part, value in zip(maps, values, strict=True):
        operand = code
        if "({x})" not in part.code:
            operand = _in_brackets(code)
        code = part.code.format(x=operand, k=_literal(value))
    return code


def _apply_maps(value: Any, maps: Sequence[Map], parameters: Sequence[Parameter]) -> Any:
    for part, parameter in zip(maps, parameters, strict=True):
        value = part.apply(value, parameter)
    return value


def _draw_parameters(
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


# Elements that are filtered, mapped and reduced

_NO_PARTS = "-"
_SIGNS = ("positive", "negative")
_PARITIES = ("even", "odd")
# A pair of filters begins with one of these, which stand before the noun.
_LEADING_FILTERS = (*_SIGNS, *_PARITIES, "capitalized", "palindrome")


@dataclass(frozen=True)
class _Chain:
    """A source, the filters and maps of its elements, and a reduction, with their parameters."""

    source: Source
    filters: list[Filter]
    maps: list[Map]
    reduction: Reduction
    filter_values: Sequence[Parameter]
    map_values: Sequence[Parameter]
    reduction_value: Parameter

    def reference(self, *arguments: Any) -> Any:
        """Return the expected result, by the meanings of the parts."""
        kept = []
        for element in self.source.elements(*arguments):
            mapped = element
            tested = element
            if self.source.has_pairs:
                mapped = element[0]
                tested = element[1]
            if self.passes(tested):
                kept.append(_apply_maps(mapped, self.maps, self.map_values))
        return self.reduction.apply(kept, self.reduction_value)

    def passes(self, element: Any) -> bool:
        for part, value in zip(self.filters, self.filter_values, strict=True):
            if not part.test(element, value):
                return False
        return True

    def inputs(self, rng: random.Random) -> Arguments:
        parameters = [*self.filter_values, *self.map_values, self.reduction_value]
        return self.source.inputs(rng, parameters)

    def body(self) -> str:
        """Return the code below the signature, not indented."""
        source = self.source
        conditions = []
        if source.condition:
            conditions.append(source.condition)
        for part, value in zip(self.filters, self.filter_values, strict=True):
            conditions.append(part.code.format(x=source.tested, k=_literal(value)))

        element = _mapped(source.mapped, self.maps, self.map_values)
        literal = _literal(self.reduction_value)
        element = self.reduction.element.format(x=element, k=literal)
        if element == source.loop and not conditions:
            slots = {
                "gen": source.sequence,
                "arg": source.sequence,
                "sized": source.sequence,
                "list": source.sequence if source.is_list else f"list({source.sequence})",
                "iter": f"iter({source.sequence})",
            }
        else:
            items = f"{element} for {source.loop} in {source.sequence}"
            if conditions:
                items += f" if {' and '.join(conditions)}"
            slots = {
                "gen": items,
                "arg": f"({items})",
                "sized": f"[{items}]",
                "list": f"[{items}]",
                "iter": f"({items})",
            }
        body = self.reduction.code.format(k=literal, **slots)
        if source.setup:
            body = f"{source.setup}\n{body}"
        return body

    def default_name(self) -> str:
        labels = [self.reduction.label]
        labels += [part.label or part.name for part in self.filters]
        labels += [part.label for part in self.maps]
        labels.append(self.source.label)
        labels = [label for label in labels if label]
        if len(labels) == 1:
            labels.append(self.source.nouns[0].replace(" ", "_"))
        return "_".join(labels)

    def describe(self, pick: Pick) -> str:
        if self.source.givens and pick(("place", "place", "place", "given")) == "given":
            given = pick(self.source.givens)
            description = self._describe_at(pick, pick(self.source.insides))
            joint = " and "
            if description.count("{s}") > 1:
                joint = ", "
            return (
                f"{pick(('take{s}', 'take{s}', 'get{s}', 'accept{s}'))} {given}{joint}{description}"
            )
        return self._describe_at(pick, pick(self.source.places))

    def _describe_at(self, pick: Pick, place: str) -> str:
        these = self.elements(pick, place)
        removed = self._removed(pick)
        if removed and " " in place and pick(("removed", "kept")) == "removed":
            return f"remove{{s}} the {removed} from {place.split(' ', 1)[1]}"

        phrase = pick(self.reduction.phrases)
        determined = f"the {these}"
        # "Each of all numbers" would be odd.
        if "each of" not in phrase and self.reduction.takes_maps:
            determined = f"{pick(('the', 'the', 'all'))} {these}"
        if self.maps and "{these}" in phrase:
            phrase = self.reduction.phrases[0]
        if self.maps and self._says_steps(pick, phrase):
            return self._steps(pick, determined)

        of = determined
        for part, value in zip(self.maps, self.map_values, strict=True):
            of = _fill(pick(part.plurals), pick, value, of=of)
            if not part.follows:
                of = f"the {of}"
        return _fill(phrase, pick, self.reduction_value, of=of, these=these)

    def _says_steps(self, pick: Pick, phrase: str) -> bool:
        """Return whether to describe the maps one after another.

        Words behind the elements would leave open what they refer to if further words follow.
        """
        follows = any(part.follows for part in self.maps)
        if follows and (len(self.maps) > 1 or not phrase.endswith("{of}")):
            return True
        if len(self.maps) > 1:
            return pick(("steps", "nouns")) == "steps"
        return pick(("nouns", "nouns", "steps")) == "steps"

    def _steps(self, pick: Pick, elements: str) -> str:
        it = pick(("each", "each", "each of them"))
        steps = [f"take{{s}} {elements}"]
        for part, value in zip(self.maps, self.map_values, strict=True):
            steps.append(_fill(pick(part.steps), pick, value, it=it))
        steps.append(_fill(pick(self.reduction.steps), pick, self.reduction_value))
        return _enumeration(steps)

    def elements(self, pick: Pick, place: str) -> str:
        """Return the name of the filtered elements and their place, without an article."""
        around = self.source.around
        noun = pick(self.source.nouns)
        if self.filters and "{predicates}" in around:
            predicates = []
            for part, value in zip(self.filters, self.filter_values, strict=True):
                predicates.append(_fill(pick(part.predicates), pick, value))
            return around.format(noun=noun, place=place, predicates=" and ".join(predicates))

        for index, (part, value) in enumerate(zip(self.filters, self.filter_values, strict=True)):
            phrase = part.phrases[0]
            # The first filter of two is an adjective, which stands next to the noun.
            if index == len(self.filters) - 1:
                phrase = pick(part.phrases)
            noun = _fill(phrase, pick, value, noun=noun)
        if "{position}" in around:
            position = pick(("positions", "indexes", "indices"))
            noun = around.format(position=position, phrase=noun)
        return f"{noun} {place}".rstrip()

    def _removed(self, pick: Pick) -> str:
        """Return what the code removes from a text, empty if that is not all that it does."""
        if self.reduction.name != "text" or self.maps or len(self.filters) != 1:
            return ""
        return _fill(self.filters[0].removes, pick, self.filter_values[0])


def _filters_fit(names: Sequence[str]) -> bool:
    """Return whether filters can be combined in this order."""
    if len(names) < 2:
        return True
    first, second = names
    if first == second or first not in _LEADING_FILTERS:
        return False
    if first in ("capitalized", "palindrome"):
        return second not in (*_LEADING_FILTERS, "starting")
    if second in _LEADING_FILTERS:
        return first in _PARITIES and second in _SIGNS
    if first == "positive":
        return second not in ("nonzero", "greater", "at_least", "between")
    if first == "negative":
        return second in ("divisible", "not_divisible", "ending")
    if first == "odd":
        return second not in ("nonzero", "ending", "divisible")
    return second not in ("nonzero", "ending")


def _maps_fit(names: Sequence[str]) -> bool:
    """Return whether maps can be combined in this order."""
    if len(names) < 2:
        return True
    first, second = names
    if first == second:
        return False
    return _gives_number(first) == (second in _ALL_NUMBER_MAPS)


def _gives_number(name: str) -> bool:
    """Return whether the result of a map is a number."""
    return name in _ALL_NUMBER_MAPS or _MAPS[name].to == "number"


def _are_independent(first: str, second: str) -> bool:
    """Return whether a filter may be of use after the other."""
    for related in (_PARITIES, (*_SIGNS, "nonzero")):
        if first in related and second in related:
            return False
    return first != second


def _reduction_fits(source: Source, filters: Sequence[str], maps: Sequence[str], name: str) -> bool:
    if maps and not _REDUCTIONS[name].takes_maps:
        return False
    if name.startswith(("any_", "all_")):
        return len(filters) == 0 or (len(filters) == 1 and _are_independent(filters[0], name[4:]))
    if source.name.endswith("positions"):
        return bool(filters)
    if filters or maps or source.condition or source.loop == "x, y":
        return True
    # A list of all elements of a list is no task.
    return name != "list" or source.name not in ("list", "words", "characters", "keys")


# These parts are asked for more often than the others.
_POPULAR_PARTS = frozenset(
    _words_of(
        "even odd positive negative greater less divisible longer starting containing vowel "
        "square double cube absolute add multiply upper length reverse first_letter "
        "sum count list maximum minimum average product ascending text joined longest"
    )
)


def _with_popular(names: Sequence[str]) -> list[str]:
    """Return names to draw from, with the popular ones repeated."""
    repeated = list(names)
    for name in names:
        if name in _POPULAR_PARTS:
            repeated += 5 * [name]
    return repeated


@dataclass(frozen=True)
class _SourceChoices:
    """The combinations of filters, of maps and of reductions that fit a source."""

    source: Source
    # Sorted by how many filters or maps they have: none, one or two.
    filters: list[list[tuple[str, ...]]]
    maps: list[list[tuple[str, ...]]]
    own_reductions: list[str]
    length_reductions: list[str]

    def reductions(self, maps: Sequence[str]) -> list[str]:
        """Return the reductions of what the maps give, the popular ones repeatedly."""
        if maps and self.source.type == "text" and _gives_number(maps[-1]):
            return self.length_reductions
        return self.own_reductions


def _source_choices(source: Source) -> _SourceChoices:
    filters: list[list[tuple[str, ...]]] = [[()]]
    filters.append([(name,) for name in _with_popular(source.filters)])
    filter_pairs = []
    for first in source.filters:
        for second in source.filters:
            if _filters_fit((first, second)):
                filter_pairs.append((first, second))
    filters.append(list(filter_pairs))

    maps: list[list[tuple[str, ...]]] = [[()]]
    maps.append([(name,) for name in _with_popular(source.maps)])
    later = source.maps
    if source.type == "text":
        later = source.maps + _LENGTH_MAPS
    map_pairs = []
    for first in source.maps:
        for second in later:
            if _maps_fit((first, second)):
                map_pairs.append((first, second))
    maps.append(list(map_pairs))
    return _SourceChoices(
        source,
        filters[: source.max_filters + 1],
        maps[: source.max_maps + 1],
        own_reductions=_with_popular(source.reductions),
        length_reductions=_with_popular(_LENGTH_REDUCTIONS),
    )


_CHOICES = [_source_choices(source) for source in _SOURCES.values()]
_SOURCE_WEIGHTS: list[int] = []
for _choices in _CHOICES:
    _SOURCE_WEIGHTS.append(_choices.source.weight + sum(_SOURCE_WEIGHTS[-1:]))
# The shares of tasks with no filter, one filter and two filters, and likewise with maps.
_FILTER_SHARES = (0.2, 0.8)
_MAP_SHARES = (0.35, 0.85)


def _how_many(rng: random.Random, shares: tuple[float, float], options: Sequence[Any]) -> int:
    number = rng.random()
    count = 0
    if number > shares[0]:
        count = 1
    if number > shares[1]:
        count = 2
    count = min(count, len(options) - 1)
    while not options[count]:
        count -= 1
    return count


def _draw_chain(rng: random.Random) -> tuple[str, ...]:
    """Draw the parts of a chain."""
    choices = rng.choices(_CHOICES, cum_weights=_SOURCE_WEIGHTS)[0]
    while True:
        filters = rng.choice(choices.filters[_how_many(rng, _FILTER_SHARES, choices.filters)])
        maps = rng.choice(choices.maps[_how_many(rng, _MAP_SHARES, choices.maps)])
        reduction = rng.choice(choices.reductions(maps))
        if _reduction_fits(choices.source, filters, maps, reduction):
            return choices.source.name, _joined(filters), _joined(maps), reduction


def _all_chains() -> Iterator[tuple[str, ...]]:
    for choices in _CHOICES:
        all_filters = list(dict.fromkeys(itertools.chain(*choices.filters)))
        for maps in dict.fromkeys(itertools.chain(*choices.maps)):
            for reduction in dict.fromkeys(choices.reductions(maps)):
                for filters in all_filters:
                    if _reduction_fits(choices.source, filters, maps, reduction):
                        yield choices.source.name, _joined(filters), _joined(maps), reduction


def _joined(names: Sequence[str]) -> str:
    return " ".join(names) or _NO_PARTS


def _parts_of(table: dict[str, Any], names: str) -> list[Any]:
    """Return the parts with these names, which `_joined` has put together."""
    if names == _NO_PARTS:
        return []
    return [table[name] for name in names.split(" ")]


def _chain_parts(parts: Sequence[str]) -> list[Any]:
    reduction = _REDUCTIONS[parts[3]]
    return [*_parts_of(_FILTERS, parts[1]), *_parts_of(_MAPS, parts[2]), reduction]


def _compose_chain(parts: Sequence[str], values: Sequence[Parameter]) -> Task:
    filters = _parts_of(_FILTERS, parts[1])
    maps = _parts_of(_MAPS, parts[2])
    reduction = _REDUCTIONS[parts[3]]
    source = _SOURCES[parts[0]]
    middle = len(filters)
    chain = _Chain(
        source,
        filters=filters,
        maps=maps,
        reduction=reduction,
        filter_values=values[:middle],
        map_values=values[middle:-1],
        reduction_value=values[-1],
    )
    return Task(
        chain.default_name(),
        arguments=source.arguments,
        describe=chain.describe,
        body=chain.body(),
        reference=chain.reference,
        inputs=chain.inputs,
        imports=reduction.imports,
    )


# One number, one text, one dictionary

_A_NUMBER = ("a number", "an integer", "a given number", "@0")
_A_TEXT = ("a text", "a string", "a given text", "a word")


def _compose_branch(parts: Sequence[str], values: Sequence[Parameter]) -> Task:
    condition = _FILTERS[parts[0]]
    then = _MAPS[parts[1]]
    otherwise = _MAPS[parts[2]]

    def describe(pick: Pick) -> str:
        first = _fill(pick(then.singulars), pick, values[1], of=pick(_A_NUMBER))
        second = _fill(pick(otherwise.singulars), pick, values[2], of="the number")
        predicate = _fill(pick(condition.predicates), pick, values[0])
        end = pick(("and {} otherwise", "and otherwise {}", "else {}")).format(second)
        return f"return{{s}} {first} if it is {predicate} {end}"

    def reference(n: int) -> int:
        if condition.test(n, values[0]):
            return int(then.apply(n, values[1]))
        return int(otherwise.apply(n, values[2]))

    test = condition.code.format(x="@0", k=_literal(values[0]))
    first = _mapped("@0", [then], values[1:2])
    second = _mapped("@0", [otherwise], values[2:])
    return Task(
        f"{then.label}_if_{condition.name}_else_{otherwise.label}",
        arguments=("n",),
        describe=describe,
        body=f"if {test}:\n    return {first}\nreturn {second}",
        reference=reference,
        inputs=lambda rng: _number_input(rng, values),
    )


def _all_branches() -> Iterator[tuple[str, ...]]:
    for condition in _PREDICATES:
        for then in _ALL_NUMBER_MAPS:
            for otherwise in _ALL_NUMBER_MAPS:
                if then != otherwise:
                    yield condition, then, otherwise


def _branch_parts(parts: Sequence[str]) -> list[Any]:
    return [_FILTERS[parts[0]], _MAPS[parts[1]], _MAPS[parts[2]]]


def _compose_check(parts: Sequence[str], values: Sequence[Parameter]) -> Task:
    operator = parts[0]
    conditions = [_FILTERS[name] for name in parts[1:]]

    def describe(pick: Pick) -> str:
        predicates = []
        for condition, value in zip(conditions, values, strict=True):
            predicates.append(_fill(pick(condition.predicates), pick, value))
        verb = pick(("check{s} whether", "return{s} whether", "test{s} if", "tell{s} whether"))
        return f"{verb} {pick(_A_NUMBER)} is {f' {operator} '.join(predicates)}"

    def reference(n: int) -> bool:
        results = []
        for condition, value in zip(conditions, values, strict=True):
            results.append(condition.test(n, value))
        if operator == "and":
            return False not in results
        return True in results

    tests = []
    for condition, value in zip(conditions, values, strict=True):
        tests.append(condition.code.format(x="@0", k=_literal(value)))
    return Task(
        f"is_{f'_{operator}_'.join(parts[1:])}",
        arguments=("n",),
        describe=describe,
        body=f"return {f' {operator} '.join(tests)}",
        reference=reference,
        inputs=lambda rng: _number_input(rng, values),
    )


def _all_checks() -> Iterator[tuple[str, ...]]:
    for operator in ("and", "or"):
        for first in _PREDICATES:
            for second in _PREDICATES:
                if "nonzero" not in (first, second) and _are_independent(first, second):
                    yield operator, first, second


def _check_parts(parts: Sequence[str]) -> list[Any]:
    return [_FILTERS[name] for name in parts[1:]]


@dataclass(frozen=True)
class _Operand:
    """A value that a formula changes."""

    label: str
    arguments: tuple[str, ...]
    phrases: tuple[str, ...]
    code: str
    value: Callable[..., Any]


_OPERANDS = {
    "number": _Operand("", arguments=("n",), phrases=_A_NUMBER, code="@0", value=lambda n: n),
    "sum": _Operand(
        "sum",
        arguments=("a", "b"),
        phrases=("the sum of two numbers", "the sum of @0 and @1"),
        code="@0 + @1",
        value=lambda a, b: sum((a, b)),
    ),
    "difference": _Operand(
        "difference",
        arguments=("a", "b"),
        phrases=("the difference of two numbers", "the difference of @0 and @1"),
        code="@0 - @1",
        value=lambda a, b: a + -b,
    ),
    "product": _Operand(
        "product",
        arguments=("a", "b"),
        phrases=("the product of two numbers", "the product of @0 and @1"),
        code="@0 * @1",
        value=lambda a, b: math.prod((a, b)),
    ),
    "larger": _Operand(
        "max",
        arguments=("a", "b"),
        phrases=(
            "the larger of two numbers",
            "the maximum of two numbers",
            "the larger of @0 and @1",
        ),
        code="max(@0, @1)",
        value=lambda a, b: a if a > b else b,
    ),
    "smaller": _Operand(
        "min",
        arguments=("a", "b"),
        phrases=(
            "the smaller of two numbers",
            "the minimum of two numbers",
            "the smaller of @0 and @1",
        ),
        code="min(@0, @1)",
        value=lambda a, b: a if a < b else b,
    ),
}


def _compose_formula(parts: Sequence[str], values: Sequence[Parameter]) -> Task:
    operand = _OPERANDS[parts[0]]
    maps = _parts_of(_MAPS, parts[1])
    draw_input = _number_input
    if len(operand.arguments) == 2:
        draw_input = _two_numbers_input
    labels = [part.label for part in maps]
    labels.append(operand.label or "number")
    code = _mapped(operand.code, maps, values)
    return Task(
        "_".join(labels),
        arguments=operand.arguments,
        describe=lambda pick: _describe_change(pick, operand.phrases, maps, values),
        body=f"return {code}",
        reference=lambda *numbers: _apply_maps(operand.value(*numbers), maps, values),
        inputs=lambda rng: draw_input(rng, values),
    )


def _describe_change(
    pick: Pick, operands: Sequence[str], maps: Sequence[Map], values: Sequence[Parameter]
) -> str:
    """Return the description of maps of one value."""
    operand = pick(operands)
    is_simple = len(maps) == 1 and (not maps[0].follows or operands in {_A_NUMBER, _A_TEXT})
    if is_simple and pick(("noun", "steps")) == "noun":
        phrase = _fill(pick(maps[0].singulars), pick, values[0], of=operand)
        return f"{pick(('return{s}', 'return{s}', 'compute{s}'))} {phrase}"

    steps = []
    it = operand
    for part, value in zip(maps, values, strict=True):
        steps.append(_fill(pick(part.steps), pick, value, it=it))
        it = "the result"
    end = pick(("return{s} it", "return{s} the result"))
    return _enumeration([*steps, end])


def _all_formulas() -> Iterator[tuple[str, ...]]:
    for operand in _OPERANDS:
        for first in _ALL_NUMBER_MAPS:
            yield operand, first
            for second in _ALL_NUMBER_MAPS:
                if _maps_fit((first, second)):
                    yield operand, f"{first} {second}"


def _formula_parts(parts: Sequence[str]) -> list[Any]:
    return _parts_of(_MAPS, parts[1])


def _compose_text(parts: Sequence[str], values: Sequence[Parameter]) -> Task:
    maps = _parts_of(_MAPS, parts[0])
    return Task(
        "_".join([part.label for part in maps] + ["text"]),
        arguments=("text",),
        describe=lambda pick: _describe_change(pick, _A_TEXT, maps, values),
        body=f"return {_mapped('@0', maps, values)}",
        reference=lambda text: _apply_maps(text, maps, values),
        inputs=lambda rng: _text_input(rng, values),
    )


def _all_texts() -> Iterator[tuple[str, ...]]:
    names = [part.name for part in _TEXT_MAPS]
    for first in names:
        yield (first,)
        for second in (*names, *_LENGTH_MAPS):
            if _maps_fit((first, second)):
                yield (f"{first} {second}",)


def _text_parts(parts: Sequence[str]) -> list[Any]:
    return _parts_of(_MAPS, parts[0])


def _compose_selective(parts: Sequence[str], values: Sequence[Parameter]) -> Task:
    """Compose the change of some elements of a list."""
    filters = _parts_of(_FILTERS, parts[0])
    change = _MAPS[parts[1]]
    source = _SOURCES["list"]
    chain = _Chain(
        source,
        filters=filters,
        maps=[change],
        reduction=_REDUCTIONS["list"],
        filter_values=values[:-1],
        map_values=values[-1:],
        reduction_value=None,
    )

    def describe(pick: Pick) -> str:
        elements = f"the {chain.elements(pick, pick(source.places))}"
        step = _fill(pick(change.steps), pick, values[-1], it=elements)
        others = pick(("keep{s} the others", "leave{s} the rest unchanged", "keep{s} the rest"))
        return f"{step} and {others}"

    def reference(numbers: list[int]) -> list[int]:
        changed = []
        for number in numbers:
            if chain.passes(number):
                changed.append(change.apply(number, values[-1]))
            else:
                changed.append(number)
        return changed

    tests = []
    for part, value in zip(filters, values[:-1], strict=True):
        tests.append(part.code.format(x="x", k=_literal(value)))
    code = _mapped("x", [change], values[-1:])
    return Task(
        "_".join([change.label, "if", *parts[0].split(" ")]),
        arguments=("numbers",),
        describe=describe,
        body=f"return [{code} if {' and '.join(tests)} else x for x in @0]",
        reference=reference,
        inputs=lambda rng: _list_input(rng, values),
    )


def _all_selective() -> Iterator[tuple[str, ...]]:
    choices = _CHOICES[0]
    for filters in dict.fromkeys(choices.filters[1] + choices.filters[2]):
        for change in _ALL_NUMBER_MAPS:
            yield _joined(filters), change


def _selective_parts(parts: Sequence[str]) -> list[Any]:
    return [*_parts_of(_FILTERS, parts[0]), _MAPS[parts[1]]]


def _compose_entries(parts: Sequence[str], values: Sequence[Parameter]) -> Task:
    """Compose the filter of a dictionary and the change of its values."""
    condition = _FILTERS[parts[0]]
    maps = _parts_of(_MAPS, parts[1])

    def describe(pick: Pick) -> str:
        predicate = _fill(pick(condition.predicates), pick, values[0])
        verb = pick(("keep{s}", "return{s}", "keep{s} only"))
        entries = pick(("entries", "entries", "items"))
        place = pick(("of a dictionary", "in a dictionary", "of a dict"))
        text = f"{verb} the {entries} {place} whose value is {predicate}"
        for part, value in zip(maps, values[1:], strict=True):
            text += " and " + _fill(pick(part.steps), pick, value, it="each value")
        return text

    def reference(data: dict[str, int]) -> dict[str, int]:
        result = {}
        for key, value in data.items():
            if condition.test(value, values[0]):
                result[key] = _apply_maps(value, maps, values[1:])
        return result

    code = _mapped("x", maps, values[1:])
    test = condition.code.format(x="x", k=_literal(values[0]))
    return Task(
        "_".join([condition.name, *(part.label for part in maps), "entries"]),
        arguments=("data",),
        describe=describe,
        body=f"return {{key: {code} for key, x in @0.items() if {test}}}",
        reference=reference,
        inputs=lambda rng: _dictionary_input(rng, values),
    )


def _all_entries() -> Iterator[tuple[str, ...]]:
    for condition in _PREDICATES:
        for change in (_NO_PARTS, *_ALL_NUMBER_MAPS):
            yield condition, change


def _entries_parts(parts: Sequence[str]) -> list[Any]:
    return [_FILTERS[parts[0]], *_parts_of(_MAPS, parts[1])]


# Well-known functions


@dataclass(frozen=True)
class _KnownFunction:
    """A function that people ask for by its own name. It is never held out."""

    name: str
    arguments: tuple[str, ...]
    phrases: tuple[str, ...]
    body: str
    reference: Callable[..., Any]
    inputs: Callable[[random.Random], Arguments]
    imports: str = ""


def _count_input(rng: random.Random) -> Arguments:
    return (rng.choice((0, 1, 2, 3, 5, 8, 10, 13, 20, rng.randrange(25))),)


def _positive_input(rng: random.Random) -> Arguments:
    return (rng.choice((1, 2, 3, 4, 6, 7, 9, 28, 97, rng.randrange(1, 100))),)


def _positive_pair_input(rng: random.Random) -> Arguments:
    factor = rng.randrange(1, 9)
    return factor * rng.randrange(1, 20), factor * rng.randrange(1, 20)


def _signed_input(rng: random.Random) -> Arguments:
    return (rng.choice((0, 1, -1, rng.randrange(-50, 50), rng.randrange(-50, 50))),)


def _pair_input(rng: random.Random) -> Arguments:
    first = rng.randrange(-30, 60)
    second = rng.randrange(-30, 60)
    if rng.random() < 0.1:
        second = first
    return first, second


def _triple_input(rng: random.Random) -> Arguments:
    return rng.randrange(-20, 40), rng.randrange(-20, 40), rng.randrange(-20, 40)


def _sides_input(rng: random.Random) -> Arguments:
    return rng.randrange(1, 12), rng.randrange(1, 12), rng.randrange(1, 12)


def _power_input(rng: random.Random) -> Arguments:
    return rng.randrange(-5, 12), rng.randrange(9)


def _year_input(rng: random.Random) -> Arguments:
    return (rng.choice((1900, 2000, 2023, 2024, 2100, 2400, rng.randrange(1800, 2200))),)


def _numbers_input(rng: random.Random) -> Arguments:
    return (_some_numbers(rng, ()),)


def _number_lists_input(rng: random.Random) -> Arguments:
    return _two_lists_input(rng, ())


def _same_length_input(rng: random.Random) -> Arguments:
    first, second = _two_lists_input(rng, ())
    length = min(len(first), len(second))
    return first[:length], second[:length]


def _numbers_and_number_input(rng: random.Random) -> Arguments:
    numbers = _some_numbers(rng, ())
    number = rng.randrange(1, 9)
    if numbers and rng.random() < 0.6:
        number = abs(rng.choice(numbers)) or 1
    return numbers, number


def _sorted_list_input(rng: random.Random) -> Arguments:
    numbers = _some_numbers(rng, ())
    if rng.random() < 0.5:
        numbers.sort()
    return (numbers,)


def _plain_text_input(rng: random.Random) -> Arguments:
    return _text_input(rng, ())


def _text_and_letter_input(rng: random.Random) -> Arguments:
    return _text_input(rng, ("a",))[0], rng.choice("aeotn")


def _one_word_input(rng: random.Random) -> Arguments:
    if rng.random() < 0.2:
        word = rng.choice(_TEST_WORDS).lower()
        return (word + word[::-1],)
    return (rng.choice(_TEST_WORDS).lower(),)


def _anagrams_input(rng: random.Random) -> Arguments:
    first = rng.choice(_TEST_WORDS).lower()
    second = rng.choice(_TEST_WORDS).lower()
    if rng.random() < 0.5:
        letters = list(first)
        rng.shuffle(letters)
        second = "".join(letters)
    return first, second


def _word_list_input(rng: random.Random) -> Arguments:
    return (_some_words(rng, ()),)


def _table_input(rng: random.Random) -> Arguments:
    return _dictionary_input(rng, ())


def _temperature_input(rng: random.Random) -> Arguments:
    return (rng.choice((0, 32, 100, 212, -40, rng.randrange(-50, 150))),)


def _clamp_input(rng: random.Random) -> Arguments:
    low = rng.randrange(-10, 10)
    return rng.randrange(-30, 40), low, low + rng.randrange(1, 20)


def _matrix_input(rng: random.Random) -> Arguments:
    rows = rng.randrange(1, 4)
    columns = rng.randrange(1, 4)
    matrix = []
    for _ in range(rows):
        matrix.append([rng.randrange(-9, 20) for _ in range(columns)])
    return (matrix,)


def _binary_search_input(rng: random.Random) -> Arguments:
    numbers = sorted(set(_some_numbers(rng, ())))
    target = rng.randrange(-40, 100)
    if numbers and rng.random() < 0.7:
        target = rng.choice(numbers)
    return numbers, target


def _fibonacci(n: int) -> int:
    if n < 2:
        return n
    return _fibonacci_table()[n]


def _fibonacci_table() -> list[int]:
    table = [0, 1]
    while len(table) < 200:
        table.append(table[-1] + table[-2])
    return table


def _is_prime(n: int) -> bool:
    return n > 1 and len(_divisors(n)) == 2


def _collatz(n: int) -> list[int]:
    path = [n]
    while path[-1] != 1:
        last = path[-1]
        path.append(3 * last + 1 if last & 1 else last >> 1)
    return path


def _prime_factors(n: int) -> list[int]:
    for divisor in range(2, n + 1):
        if n % divisor == 0:
            return [divisor, *_prime_factors(n // divisor)]
    return []


def _median(numbers: list[int]) -> float | None:
    if not numbers:
        return None
    return float(statistics.median(numbers))


def _transposed(matrix: list[list[int]]) -> list[list[int]]:
    columns = []
    for index in range(len(matrix[0])):
        columns.append([row[index] for row in matrix])
    return columns


def _sorted_by_length(words: list[str]) -> list[str]:
    result: list[str] = []
    for length in range(max(map(len, words), default=0) + 1):
        result += [word for word in words if len(word) == length]
    return result


def _fizzbuzz(n: int) -> list[str]:
    result = [f"{i}" for i in range(1, n + 1)]
    result[2::3] = ["Fizz"] * len(result[2::3])
    result[4::5] = ["Buzz"] * len(result[4::5])
    result[14::15] = ["FizzBuzz"] * len(result[14::15])
    return result


def _chunks(items: list[int], size: int) -> list[list[int]]:
    chunks: list[list[int]] = []
    for index, item in enumerate(items):
        if index % size == 0:
            chunks.append([])
        chunks[-1].append(item)
    return chunks


_NUMBER_FUNCTIONS: list[_KnownFunction] = [
    _KnownFunction(
        "fibonacci_sequence",
        arguments=("n",),
        phrases=(
            "return{s} the first @0 numbers of the Fibonacci sequence",
            "calculate{s} the Fibonacci sequence",
            "calculate{s} the Fibonacci sequence",
            "compute{s} the Fibonacci sequence",
            "generate{s} the Fibonacci sequence",
            "generate{s} the first @0 Fibonacci numbers",
            "return{s} a list of the first @0 Fibonacci numbers",
            "return{s} the Fibonacci series",
        ),
        body="a, b = 0, 1\nresult = []\nfor _ in range(@0):\n    result.append(a)\n"
        "    a, b = b, a + b\nreturn result",
        reference=lambda n: _fibonacci_table()[:n],
        inputs=_count_input,
    ),
    _KnownFunction(
        "fibonacci",
        arguments=("n",),
        phrases=(
            "return{s} the @0-th Fibonacci number",
            "compute{s} the @0-th Fibonacci number",
            "calculate{s} the nth Fibonacci number",
            "return{s} the Fibonacci number at position @0",
            "find{s} the nth number of the Fibonacci sequence",
        ),
        body="a, b = 0, 1\nfor _ in range(@0):\n    a, b = b, a + b\nreturn a",
        reference=_fibonacci,
        inputs=_count_input,
    ),
    _KnownFunction(
        "add",
        arguments=("a", "b"),
        phrases=(
            "add{s} two numbers",
            "return{s} the sum of two numbers",
            "add{s} two numbers together",
            "compute{s} the sum of two numbers",
            "add{s} @0 and @1",
        ),
        body="return @0 + @1",
        reference=lambda a, b: sum((a, b)),
        inputs=_pair_input,
    ),
    _KnownFunction(
        "subtract",
        arguments=("a", "b"),
        phrases=(
            "subtract{s} one number from another",
            "subtract{s} two numbers",
            "return{s} the difference of two numbers",
            "subtract{s} the second number from the first",
        ),
        body="return @0 - @1",
        reference=lambda a, b: a + -b,
        inputs=_pair_input,
    ),
    _KnownFunction(
        "multiply",
        arguments=("a", "b"),
        phrases=(
            "multipl{ies} two numbers",
            "return{s} the product of two numbers",
            "multipl{ies} @0 and @1",
            "compute{s} the product of two numbers",
        ),
        body="return @0 * @1",
        reference=lambda a, b: math.prod((a, b)),
        inputs=_pair_input,
    ),
    _KnownFunction(
        "divide",
        arguments=("a", "b"),
        phrases=(
            "divide{s} two numbers and return{s} None for a division by zero",
            "divide{s} one number by another and return{s} None if the second is zero",
        ),
        body="if @1 == 0:\n    return None\nreturn @0 / @1",
        reference=lambda a, b: a / b if b else None,
        inputs=lambda rng: (rng.randrange(-30, 60), rng.choice((0, 1, 2, 5, -4, 7))),
    ),
    _KnownFunction(
        "average_of_two",
        arguments=("a", "b"),
        phrases=(
            "return{s} the average of two numbers",
            "compute{s} the mean of two numbers",
            "calculate{s} the average of @0 and @1",
        ),
        body="return (@0 + @1) / 2",
        reference=lambda a, b: a / 2 + b / 2,
        inputs=_pair_input,
    ),
    _KnownFunction(
        "maximum",
        arguments=("a", "b"),
        phrases=(
            "return{s} the larger of two numbers",
            "return{s} the maximum of two numbers",
            "find{s} the larger of two numbers",
            "find{s} the bigger of two numbers",
        ),
        body="return max(@0, @1)",
        reference=lambda a, b: a if a > b else b,
        inputs=_pair_input,
    ),
    _KnownFunction(
        "minimum",
        arguments=("a", "b"),
        phrases=(
            "return{s} the smaller of two numbers",
            "return{s} the minimum of two numbers",
            "find{s} the smaller of two numbers",
        ),
        body="return min(@0, @1)",
        reference=lambda a, b: a if a < b else b,
        inputs=_pair_input,
    ),
    _KnownFunction(
        "maximum_of_three",
        arguments=("a", "b", "c"),
        phrases=(
            "return{s} the largest of three numbers",
            "return{s} the maximum of three numbers",
            "find{s} the largest of three numbers",
            "find{s} the maximum of three numbers",
        ),
        body="return max(@0, @1, @2)",
        reference=lambda a, b, c: _sorted([a, b, c])[2],
        inputs=_triple_input,
    ),
    _KnownFunction(
        "minimum_of_three",
        arguments=("a", "b", "c"),
        phrases=(
            "return{s} the smallest of three numbers",
            "return{s} the minimum of three numbers",
            "find{s} the smallest of three numbers",
        ),
        body="return min(@0, @1, @2)",
        reference=lambda a, b, c: _sorted([a, b, c])[0],
        inputs=_triple_input,
    ),
    _KnownFunction(
        "add_three",
        arguments=("a", "b", "c"),
        phrases=(
            "add{s} three numbers",
            "return{s} the sum of three numbers",
            "compute{s} the sum of three numbers",
        ),
        body="return @0 + @1 + @2",
        reference=lambda a, b, c: sum((a, b, c)),
        inputs=_triple_input,
    ),
    _KnownFunction(
        "median_of_three",
        arguments=("a", "b", "c"),
        phrases=(
            "return{s} the middle one of three numbers",
            "return{s} the median of three numbers",
        ),
        body="return sorted([@0, @1, @2])[1]",
        reference=lambda a, b, c: a + b + c - max(a, b, c) - min(a, b, c),
        inputs=_triple_input,
    ),
    _KnownFunction(
        "swap",
        arguments=("a", "b"),
        phrases=("swap{s} two values", "return{s} two values in swapped order"),
        body="return @1, @0",
        reference=lambda a, b: (b, a),
        inputs=_pair_input,
    ),
    _KnownFunction(
        "factorial",
        arguments=("n",),
        phrases=(
            "return{s} the factorial of a number",
            "compute{s} the factorial of a number",
            "calculate{s} the factorial of @0",
            "calculate{s} the factorial of a number",
            "find{s} the factorial of a number",
        ),
        body="result = 1\nfor i in range(2, @0 + 1):\n    result *= i\nreturn result",
        reference=math.factorial,
        inputs=_count_input,
    ),
    _KnownFunction(
        "gcd",
        arguments=("a", "b"),
        phrases=(
            "return{s} the greatest common divisor of two numbers",
            "compute{s} the greatest common divisor of two numbers",
            "find{s} the gcd of two numbers",
            "calculate{s} the greatest common divisor of @0 and @1",
        ),
        body="while @1:\n    @0, @1 = @1, @0 % @1\nreturn @0",
        reference=math.gcd,
        inputs=_positive_pair_input,
    ),
    _KnownFunction(
        "lcm",
        arguments=("a", "b"),
        phrases=(
            "return{s} the least common multiple of two numbers",
            "compute{s} the least common multiple of two numbers",
            "find{s} the lcm of two numbers",
        ),
        body="return @0 * @1 // math.gcd(@0, @1)",
        reference=math.lcm,
        inputs=_positive_pair_input,
        imports="import math",
    ),
    _KnownFunction(
        "is_prime",
        arguments=("n",),
        phrases=(
            "check{s} whether a number is prime",
            "check{s} if a number is prime",
            "return{s} whether a number is prime",
            "test{s} whether @0 is a prime number",
            "determine{s} if a number is a prime",
        ),
        body="return @0 > 1 and all(@0 % i for i in range(2, int(@0 ** 0.5) + 1))",
        reference=_is_prime,
        inputs=_positive_input,
    ),
    _KnownFunction(
        "primes_below",
        arguments=("n",),
        phrases=(
            "return{s} a list of the prime numbers below @0",
            "return{s} all primes below @0",
            "find{s} all prime numbers less than @0",
            "list{s} the primes smaller than @0",
        ),
        body="result = []\nfor x in range(2, @0):\n    if all(x % p for p in result):\n"
        "        result.append(x)\nreturn result",
        reference=lambda n: [x for x in range(n) if _is_prime(x)],
        inputs=_positive_input,
    ),
    _KnownFunction(
        "prime_factors",
        arguments=("n",),
        phrases=(
            "return{s} the prime factors of a number",
            "compute{s} the prime factorization of a number",
            "find{s} the prime factors of @0",
        ),
        body="result = []\nfor d in range(2, @0 + 1):\n    while @0 % d == 0:\n"
        "        result.append(d)\n        @0 //= d\nreturn result",
        reference=_prime_factors,
        inputs=_positive_input,
    ),
    _KnownFunction(
        "is_perfect",
        arguments=("n",),
        phrases=(
            "check{s} whether a number is perfect",
            "return{s} whether a number is a perfect number",
            "test{s} if @0 is a perfect number",
        ),
        body="return @0 > 1 and sum(x for x in range(1, @0) if @0 % x == 0) == @0",
        reference=lambda n: n in (6, 28, 496),
        inputs=_positive_input,
    ),
    _KnownFunction(
        "power",
        arguments=("a", "b"),
        phrases=(
            "raise{s} one number to the power of another",
            "compute{s} @0 to the power of @1",
            "return{s} the power of a number",
            "raise{s} a number to a power",
        ),
        body="return @0 ** @1",
        reference=lambda a, b: math.prod([a] * b),
        inputs=_power_input,
    ),
    _KnownFunction(
        "collatz_steps",
        arguments=("n",),
        phrases=(
            "count{s} the Collatz steps from a number to 1",
            "return{s} the number of Collatz steps until a number reaches 1",
            "count{s} the steps of the Collatz sequence",
        ),
        body="steps = 0\nwhile @0 != 1:\n    @0 = @0 // 2 if @0 % 2 == 0 else 3 * @0 + 1\n"
        "    steps += 1\nreturn steps",
        reference=lambda n: len(_collatz(n)) - 1,
        inputs=_positive_input,
    ),
    _KnownFunction(
        "collatz",
        arguments=("n",),
        phrases=(
            "return{s} the Collatz sequence of a number",
            "compute{s} the Collatz sequence that starts with @0",
            "generate{s} the Collatz sequence of a number",
        ),
        body="result = [@0]\nwhile @0 != 1:\n"
        "    @0 = @0 // 2 if @0 % 2 == 0 else 3 * @0 + 1\n    result.append(@0)\nreturn result",
        reference=_collatz,
        inputs=_positive_input,
    ),
    _KnownFunction(
        "is_leap_year",
        arguments=("year",),
        phrases=(
            "check{s} whether a year is a leap year",
            "return{s} whether a year is a leap year",
            "determine{s} if a year is a leap year",
            "test{s} whether @0 is a leap year",
        ),
        body="return @0 % 4 == 0 and (@0 % 100 != 0 or @0 % 400 == 0)",
        reference=lambda year: year % 400 == 0 if year % 100 == 0 else year % 4 == 0,
        inputs=_year_input,
    ),
    _KnownFunction(
        "celsius_to_fahrenheit",
        arguments=("celsius",),
        phrases=(
            "convert{s} Celsius to Fahrenheit",
            "convert{s} a temperature from Celsius to Fahrenheit",
            "convert{s} degrees Celsius to Fahrenheit",
        ),
        body="return @0 * 9 / 5 + 32",
        reference=lambda celsius: celsius * 1.8 + 32,
        inputs=_temperature_input,
    ),
    _KnownFunction(
        "fahrenheit_to_celsius",
        arguments=("fahrenheit",),
        phrases=(
            "convert{s} Fahrenheit to Celsius",
            "convert{s} a temperature from Fahrenheit to Celsius",
            "convert{s} degrees Fahrenheit to Celsius",
        ),
        body="return (@0 - 32) * 5 / 9",
        reference=lambda fahrenheit: (fahrenheit - 32) / 1.8,
        inputs=_temperature_input,
    ),
    _KnownFunction(
        "is_even",
        arguments=("n",),
        phrases=(
            "check{s} whether a number is even",
            "check{s} if a number is even",
            "return{s} whether a number is even",
            "return{s} True if a number is even",
            "test{s} if @0 is even",
        ),
        body="return @0 % 2 == 0",
        reference=lambda n: n & 1 == 0,
        inputs=_signed_input,
    ),
    _KnownFunction(
        "is_odd",
        arguments=("n",),
        phrases=(
            "check{s} whether a number is odd",
            "check{s} if a number is odd",
            "return{s} whether a number is odd",
            "return{s} True if a number is odd",
            "test{s} if @0 is odd",
        ),
        body="return @0 % 2 == 1",
        reference=lambda n: n & 1 == 1,
        inputs=_signed_input,
    ),
    _KnownFunction(
        "is_positive",
        arguments=("n",),
        phrases=(
            "check{s} whether a number is positive",
            "return{s} whether a number is positive",
            "return{s} True if a number is positive",
        ),
        body="return @0 > 0",
        reference=lambda n: n not in (0, -abs(n)),
        inputs=_signed_input,
    ),
    _KnownFunction(
        "is_divisible",
        arguments=("a", "b"),
        phrases=(
            "check{s} whether one number is divisible by another",
            "return{s} whether @0 is divisible by @1",
            "check{s} if @0 is a multiple of @1",
        ),
        body="return @0 % @1 == 0",
        reference=lambda a, b: math.gcd(a, b) == b,
        inputs=_positive_pair_input,
    ),
    _KnownFunction(
        "sign",
        arguments=("n",),
        phrases=(
            "return{s} the sign of a number as -1, 0 or 1",
            "return{s} 1 for a positive number, -1 for a negative one and 0 for zero",
            "compute{s} the sign of a number",
        ),
        body="return (@0 > 0) - (@0 < 0)",
        reference=lambda n: 0 if n == 0 else n // abs(n),
        inputs=_signed_input,
    ),
    _KnownFunction(
        "absolute_value",
        arguments=("n",),
        phrases=(
            "return{s} the absolute value of a number",
            "compute{s} the absolute value of a number",
            "calculate{s} the absolute value of @0",
        ),
        body="return abs(@0)",
        reference=lambda n: max(n, -n),
        inputs=_signed_input,
    ),
    _KnownFunction(
        "square",
        arguments=("n",),
        phrases=(
            "return{s} the square of a number",
            "square{s} a number",
            "compute{s} the square of a number",
        ),
        body="return @0 ** 2",
        reference=lambda n: n * n,
        inputs=_signed_input,
    ),
    _KnownFunction(
        "cube",
        arguments=("n",),
        phrases=(
            "return{s} the cube of a number",
            "cube{s} a number",
            "compute{s} the cube of a number",
        ),
        body="return @0 ** 3",
        reference=lambda n: n * n * n,
        inputs=_signed_input,
    ),
    _KnownFunction(
        "double",
        arguments=("n",),
        phrases=(
            "double{s} a number",
            "return{s} twice a number",
            "return{s} the double of a number",
        ),
        body="return 2 * @0",
        reference=lambda n: n + n,
        inputs=_signed_input,
    ),
    _KnownFunction(
        "clamp",
        arguments=("n", "low", "high"),
        phrases=(
            "limit{s} a number to the range from @1 to @2",
            "clamp{s} a number between @1 and @2",
            "clamp{s} a number to a range",
        ),
        body="return max(@1, min(@0, @2))",
        reference=lambda n, low, high: sorted((n, low, high))[1],
        inputs=_clamp_input,
    ),
    _KnownFunction(
        "triangle_number",
        arguments=("n",),
        phrases=(
            "return{s} the @0-th triangle number",
            "compute{s} the nth triangular number",
            "calculate{s} the @0-th triangular number",
        ),
        body="return @0 * (@0 + 1) // 2",
        reference=lambda n: sum(range(n + 1)),
        inputs=_count_input,
    ),
    _KnownFunction(
        "reverse_number",
        arguments=("n",),
        phrases=(
            "reverse{s} the digits of a number",
            "return{s} a number with its digits reversed",
            "reverse{s} a number",
        ),
        body="return int(str(@0)[::-1])",
        reference=lambda n: int("".join(reversed(f"{n}"))),
        inputs=lambda rng: _digits_input(rng, ()),
    ),
    _KnownFunction(
        "count_digits",
        arguments=("n",),
        phrases=(
            "count{s} the digits of a number",
            "return{s} the number of digits of a number",
            "return{s} how many digits a number has",
        ),
        body="return len(str(abs(@0)))",
        reference=lambda n: sum(1 for _ in f"{n}"),
        inputs=lambda rng: _digits_input(rng, ()),
    ),
    _KnownFunction(
        "sum_digits",
        arguments=("n",),
        phrases=(
            "return{s} the sum of the digits of a number",
            "add{s} up the digits of a number",
            "compute{s} the digit sum of a number",
            "sum{s} the digits of a number",
        ),
        body="return sum(int(d) for d in str(abs(@0)))",
        reference=lambda n: sum(n // 10**i % 10 for i in range(12)),
        inputs=lambda rng: _digits_input(rng, ()),
    ),
    _KnownFunction(
        "is_palindrome_number",
        arguments=("n",),
        phrases=(
            "check{s} whether a number is a palindrome",
            "return{s} whether a number reads the same backwards",
        ),
        body="return str(@0) == str(@0)[::-1]",
        reference=lambda n: list(f"{n}") == list(reversed(f"{n}")),
        inputs=lambda rng: (rng.choice((7, 11, 121, 1221, 10, 123, rng.randrange(1, 2000))),),
    ),
    _KnownFunction(
        "is_square",
        arguments=("n",),
        phrases=(
            "check{s} whether a number is a perfect square",
            "return{s} whether a number is a square number",
            "test{s} if @0 is a perfect square",
        ),
        body="return math.isqrt(@0) ** 2 == @0",
        reference=lambda n: n in [i * i for i in range(200)],
        inputs=_positive_input,
        imports="import math",
    ),
    _KnownFunction(
        "is_power_of_two",
        arguments=("n",),
        phrases=(
            "check{s} whether a number is a power of two",
            "return{s} whether @0 is a power of two",
            "test{s} if a number is a power of 2",
        ),
        body="return @0 > 0 and @0 & (@0 - 1) == 0",
        reference=lambda n: n in [2**i for i in range(40)],
        inputs=lambda rng: (rng.choice((1, 2, 3, 4, 6, 8, 12, 16, 64, rng.randrange(1, 99))),),
    ),
    _KnownFunction(
        "to_binary",
        arguments=("n",),
        phrases=(
            "convert{s} a number to binary",
            "return{s} the binary form of a number as a text",
            "convert{s} an integer to a binary string",
        ),
        body="return bin(@0)[2:]",
        reference=lambda n: f"{n:b}",
        inputs=_count_input,
    ),
    _KnownFunction(
        "from_binary",
        arguments=("text",),
        phrases=(
            "convert{s} a binary string to a number",
            "return{s} the value of a binary number in a text",
        ),
        body="return int(@0, 2)",
        reference=lambda text: sum(2**i for i, bit in enumerate(reversed(text)) if bit == "1"),
        inputs=lambda rng: (f"{rng.randrange(200):b}",),
    ),
    _KnownFunction(
        "countdown",
        arguments=("n",),
        phrases=(
            "return{s} a list that counts down from @0 to 1",
            "count{s} down from @0 to 1",
            "return{s} a countdown from @0 to 1",
        ),
        body="return list(range(@0, 0, -1))",
        reference=lambda n: [n - i for i in range(n)],
        inputs=_count_input,
    ),
    _KnownFunction(
        "powers_of_two",
        arguments=("n",),
        phrases=(
            "return{s} the first @0 powers of two",
            "return{s} a list of the first @0 powers of 2",
        ),
        body="return [2 ** i for i in range(@0)]",
        reference=lambda n: [1 << i for i in range(n)],
        inputs=_count_input,
    ),
    _KnownFunction(
        "multiplication_table",
        arguments=("n",),
        phrases=(
            "return{s} the multiplication table of @0 from 1 to 10",
            "return{s} the first ten multiples of a number",
        ),
        body="return [@0 * i for i in range(1, 11)]",
        reference=lambda n: [n + n * i for i in range(10)],
        inputs=_count_input,
    ),
    _KnownFunction(
        "fizzbuzz",
        arguments=("n",),
        phrases=(
            "solve{s} FizzBuzz for the numbers from 1 to @0",
            "return{s} the FizzBuzz list up to @0",
            "implement{s} FizzBuzz",
        ),
        body="result = []\nfor i in range(1, @0 + 1):\n"
        '    word = "Fizz" * (i % 3 == 0) + "Buzz" * (i % 5 == 0)\n'
        "    result.append(word or str(i))\nreturn result",
        reference=_fizzbuzz,
        inputs=_count_input,
    ),
    _KnownFunction(
        "hypotenuse",
        arguments=("a", "b"),
        phrases=(
            "return{s} the hypotenuse of a right triangle",
            "compute{s} the hypotenuse of a right triangle with legs @0 and @1",
        ),
        body="return (@0 ** 2 + @1 ** 2) ** 0.5",
        reference=math.hypot,
        inputs=_positive_pair_input,
    ),
    _KnownFunction(
        "rectangle_area",
        arguments=("width", "height"),
        phrases=(
            "return{s} the area of a rectangle",
            "compute{s} the area of a rectangle",
            "calculate{s} the area of a rectangle with sides @0 and @1",
        ),
        body="return @0 * @1",
        reference=lambda width, height: math.prod((width, height)),
        inputs=_positive_pair_input,
    ),
    _KnownFunction(
        "rectangle_perimeter",
        arguments=("width", "height"),
        phrases=(
            "return{s} the perimeter of a rectangle",
            "compute{s} the perimeter of a rectangle",
            "calculate{s} the perimeter of a rectangle with sides @0 and @1",
        ),
        body="return 2 * (@0 + @1)",
        reference=lambda width, height: width + height + width + height,
        inputs=_positive_pair_input,
    ),
    _KnownFunction(
        "circle_area",
        arguments=("radius",),
        phrases=(
            "return{s} the area of a circle",
            "compute{s} the area of a circle",
            "calculate{s} the area of a circle with a given radius",
        ),
        body="return math.pi * @0 ** 2",
        reference=lambda radius: radius * radius * math.tau / 2,
        inputs=_positive_input,
        imports="import math",
    ),
    _KnownFunction(
        "is_triangle",
        arguments=("a", "b", "c"),
        phrases=(
            "check{s} whether three sides form a triangle",
            "return{s} whether three lengths can form a triangle",
        ),
        body="return @0 + @1 > @2 and @0 + @2 > @1 and @1 + @2 > @0",
        reference=lambda a, b, c: 2 * max(a, b, c) < a + b + c,
        inputs=_sides_input,
    ),
]


_OTHER_FUNCTIONS: list[_KnownFunction] = [
    _KnownFunction(
        "reverse_text",
        arguments=("text",),
        phrases=(
            "reverse{s} a string",
            "return{s} a string reversed",
            "reverse{s} a text",
            "return{s} the reverse of a string",
        ),
        body="return @0[::-1]",
        reference=lambda text: "".join(reversed(text)),
        inputs=_plain_text_input,
    ),
    _KnownFunction(
        "is_palindrome",
        arguments=("text",),
        phrases=(
            "check{s} whether a string is a palindrome",
            "check{s} if a word is a palindrome",
            "return{s} whether a text is a palindrome",
            "test{s} if a string is a palindrome",
            "determine{s} whether a text reads the same backwards",
        ),
        body="return @0 == @0[::-1]",
        reference=lambda text: list(text) == list(reversed(text)),
        inputs=_one_word_input,
    ),
    _KnownFunction(
        "is_anagram",
        arguments=("first", "second"),
        phrases=(
            "check{s} whether two words are anagrams",
            "check{s} if two strings are anagrams",
            "return{s} whether two strings are anagrams of each other",
            "test{s} whether one word is an anagram of another",
        ),
        body="return sorted(@0) == sorted(@1)",
        reference=lambda first, second: Counter(first) == Counter(second),
        inputs=_anagrams_input,
    ),
    _KnownFunction(
        "count_letter",
        arguments=("text", "letter"),
        phrases=(
            "count{s} how often a letter occurs in a text",
            "count{s} the occurrences of a letter in a string",
            "return{s} how many times a character appears in a string",
        ),
        body="return @0.count(@1)",
        reference=lambda text, letter: sum(1 for c in text if c == letter),
        inputs=_text_and_letter_input,
    ),
    _KnownFunction(
        "remove_letter",
        arguments=("text", "letter"),
        phrases=(
            "remove{s} a letter from a text",
            "remove{s} all occurrences of a letter from a string",
            "delete{s} a given letter from a string",
        ),
        body='return @0.replace(@1, "")',
        reference=lambda text, letter: "".join(c for c in text if c != letter),
        inputs=_text_and_letter_input,
    ),
    _KnownFunction(
        "count_vowels",
        arguments=("text",),
        phrases=(
            "count{s} the vowels in a string",
            "count{s} the vowels in a text",
            "return{s} the number of vowels in a string",
            "return{s} how many vowels a text has",
        ),
        body='return sum(1 for c in @0 if c in "aeiouAEIOU")',
        reference=lambda text: len(re.findall("[aeiou]", text.lower())),
        inputs=_plain_text_input,
    ),
    _KnownFunction(
        "count_words",
        arguments=("text",),
        phrases=(
            "count{s} the words in a text",
            "count{s} the words in a string",
            "return{s} the number of words in a sentence",
            "return{s} how many words a text has",
        ),
        body="return len(@0.split())",
        reference=lambda text: len(re.findall(r"\S+", text)),
        inputs=_plain_text_input,
    ),
    _KnownFunction(
        "reverse_words",
        arguments=("text",),
        phrases=(
            "reverse{s} the order of the words in a text",
            "reverse{s} the words in a sentence",
            "return{s} the words of a string in reverse order as a string",
        ),
        body='return " ".join(@0.split()[::-1])',
        reference=lambda text: " ".join(reversed(re.findall(r"\S+", text))),
        inputs=_plain_text_input,
    ),
    _KnownFunction(
        "capitalize_words",
        arguments=("text",),
        phrases=(
            "capitalize{s} each word of a text",
            "capitalize{s} the first letter of every word in a string",
            "capitalize{s} every word of a sentence",
        ),
        body='return " ".join(word.capitalize() for word in @0.split())',
        reference=lambda text: " ".join(
            w[:1].upper() + w[1:].lower() for w in re.findall(r"\S+", text)
        ),
        inputs=_plain_text_input,
    ),
    _KnownFunction(
        "initials",
        arguments=("name",),
        phrases=(
            "return{s} the initials of a name",
            "return{s} the first letters of the words of a name in upper case",
        ),
        body='return "".join(word[0].upper() for word in @0.split())',
        reference=lambda name: "".join(re.findall(r"\b\w", name)).upper(),
        inputs=lambda rng: _text_of_words_input(rng, ()),
    ),
    _KnownFunction(
        "greet",
        arguments=("name",),
        phrases=(
            "return{s} a greeting for a name",
            "greet{s} a person by name",
            "return{s} Hello and the given name",
        ),
        body='return f"Hello, {@0}!"',
        reference=lambda name: "Hello, " + name + "!",
        inputs=_one_word_input,
    ),
    _KnownFunction(
        "hello_world",
        arguments=(),
        phrases=('return{s} the text "Hello, world!"', 'return{s} "Hello, world!"'),
        body='return "Hello, world!"',
        reference=lambda: "Hello, world!",
        inputs=lambda rng: (),
    ),
    _KnownFunction(
        "is_unique",
        arguments=("text",),
        phrases=(
            "check{s} whether all characters of a string are different",
            "return{s} whether a text has no repeated characters",
        ),
        body="return len(set(@0)) == len(@0)",
        reference=lambda text: all(text.count(c) == 1 for c in text),
        inputs=_one_word_input,
    ),
    _KnownFunction(
        "letter_counts",
        arguments=("text",),
        phrases=(
            "count{s} how often each letter occurs in a text",
            "count{s} the frequency of each character in a string",
            "return{s} a dictionary with the count of each character",
        ),
        body="return dict(Counter(@0))",
        reference=lambda text: {c: text.count(c) for c in text},
        inputs=_plain_text_input,
        imports="from collections import Counter",
    ),
    _KnownFunction(
        "count_items",
        arguments=("items",),
        phrases=(
            "count{s} how often each item occurs in a list",
            "return{s} a dictionary with the count of each item of a list",
            "count{s} the occurrences of each element in a list",
        ),
        body="return dict(Counter(@0))",
        reference=lambda items: {item: items.count(item) for item in items},
        inputs=_word_list_input,
        imports="from collections import Counter",
    ),
    _KnownFunction(
        "invert",
        arguments=("data",),
        phrases=(
            "invert{s} a dictionary",
            "swap{s} the keys and values of a dictionary",
            "return{s} a dictionary with keys and values exchanged",
        ),
        body="return {value: key for key, value in @0.items()}",
        reference=lambda data: dict(zip(data.values(), data.keys(), strict=True)),
        inputs=_table_input,
    ),
    _KnownFunction(
        "sorted_keys",
        arguments=("data",),
        phrases=(
            "return{s} the sorted keys of a dictionary",
            "return{s} the keys of a dictionary in sorted order",
            "sort{s} the keys of a dictionary",
        ),
        body="return sorted(@0)",
        reference=lambda data: _sorted(list(data)),
        inputs=_table_input,
    ),
    _KnownFunction(
        "best_key",
        arguments=("data",),
        phrases=(
            "return{s} the key with the largest value of a dictionary",
            "find{s} the key with the highest value in a dictionary",
            "return{s} the key of a dictionary whose value is the largest",
        ),
        body="return max(@0, key=@0.get, default=None)",
        reference=lambda data: next((k for k in data if data[k] == max(data.values())), None),
        inputs=_table_input,
    ),
    _KnownFunction(
        "merge",
        arguments=("first", "second"),
        phrases=(
            "merge{s} two dictionaries",
            "return{s} the union of two dictionaries",
            "combine{s} two dictionaries into one",
        ),
        body="return {**@0, **@1}",
        reference=lambda first, second: dict([*first.items(), *second.items()]),
        inputs=lambda rng: (_table_input(rng)[0], _table_input(rng)[0]),
    ),
    _KnownFunction(
        "to_dictionary",
        arguments=("keys", "values"),
        phrases=(
            "make{s} a dictionary of a list of keys and a list of values",
            "combine{s} two lists into a dictionary",
        ),
        body="return dict(zip(@0, @1))",
        reference=lambda keys, values: {k: values[i] for i, k in enumerate(keys[: len(values)])},
        inputs=lambda rng: (_some_words(rng, ()), _some_numbers(rng, ())),
    ),
    _KnownFunction(
        "dot_product",
        arguments=("first", "second"),
        phrases=(
            "return{s} the dot product of two lists",
            "compute{s} the dot product of two vectors",
            "calculate{s} the dot product of two lists of numbers",
        ),
        body="return sum(x * y for x, y in zip(@0, @1))",
        reference=lambda first, second: sum(first[i] * second[i] for i in range(len(first))),
        inputs=_same_length_input,
    ),
    _KnownFunction(
        "add_lists",
        arguments=("first", "second"),
        phrases=(
            "add{s} two lists element by element",
            "return{s} the elementwise sum of two lists",
            "add{s} the elements of two lists pairwise",
        ),
        body="return [x + y for x, y in zip(@0, @1)]",
        reference=lambda first, second: [first[i] + second[i] for i in range(len(first))],
        inputs=_same_length_input,
    ),
    _KnownFunction(
        "concatenate",
        arguments=("first", "second"),
        phrases=(
            "concatenate{s} two lists",
            "join{s} two lists",
            "append{s} one list to another",
        ),
        body="return @0 + @1",
        reference=lambda first, second: [*first, *second],
        inputs=_number_lists_input,
    ),
    _KnownFunction(
        "common_elements",
        arguments=("first", "second"),
        phrases=(
            "return{s} the common elements of two lists",
            "find{s} the elements that two lists have in common",
            "return{s} the elements of the first list that are in the second",
        ),
        body="return [x for x in @0 if x in @1]",
        reference=lambda first, second: [x for x in first if second.count(x)],
        inputs=_number_lists_input,
    ),
    _KnownFunction(
        "merge_unique",
        arguments=("first", "second"),
        phrases=(
            "merge{s} two lists without duplicates",
            "combine{s} two lists and remove{s} duplicates",
            "return{s} the union of two lists without duplicates",
        ),
        body="return list(dict.fromkeys(@0 + @1))",
        reference=lambda first, second: _without_duplicates([*first, *second]),
        inputs=_number_lists_input,
    ),
    _KnownFunction(
        "pairs",
        arguments=("first", "second"),
        phrases=(
            "pair{s} the elements of two lists",
            "return{s} a list of pairs of the elements of two lists",
            "zip{s} two lists into a list of pairs",
        ),
        body="return list(zip(@0, @1))",
        reference=lambda first, second: [(x, second[i]) for i, x in enumerate(first)],
        inputs=_same_length_input,
    ),
    _KnownFunction(
        "sort_numbers",
        arguments=("numbers",),
        phrases=(
            "sort{s} a list",
            "sort{s} a list of numbers",
            "return{s} a sorted copy of a list",
        ),
        body="return sorted(@0)",
        reference=_sorted,
        inputs=_numbers_input,
    ),
    _KnownFunction(
        "reverse_list",
        arguments=("items",),
        phrases=(
            "reverse{s} a list",
            "return{s} a list in reverse order",
            "return{s} a reversed list",
        ),
        body="return @0[::-1]",
        reference=lambda items: list(reversed(items)),
        inputs=_numbers_input,
    ),
    _KnownFunction(
        "find_maximum",
        arguments=("numbers",),
        phrases=(
            "find{s} the maximum in a list",
            "return{s} the largest number in a list",
            "find{s} the biggest number in a list",
            "return{s} the maximum of a list",
        ),
        body="return max(@0, default=None)",
        reference=lambda numbers: _sorted(numbers)[-1] if numbers else None,
        inputs=_numbers_input,
    ),
    _KnownFunction(
        "find_minimum",
        arguments=("numbers",),
        phrases=(
            "find{s} the minimum in a list",
            "return{s} the smallest number in a list",
            "return{s} the minimum of a list",
        ),
        body="return min(@0, default=None)",
        reference=lambda numbers: _sorted(numbers)[0] if numbers else None,
        inputs=_numbers_input,
    ),
    _KnownFunction(
        "sum_list",
        arguments=("numbers",),
        phrases=(
            "sum{s} a list of numbers",
            "return{s} the sum of a list",
            "add{s} up all numbers in a list",
            "compute{s} the sum of a list of numbers",
        ),
        body="return sum(@0)",
        reference=sum,
        inputs=_numbers_input,
    ),
    _KnownFunction(
        "median",
        arguments=("numbers",),
        phrases=(
            "return{s} the median of a list of numbers",
            "compute{s} the median of a list",
            "find{s} the median of a list",
        ),
        body="if not @0:\n    return None\nvalues = sorted(@0)\nmiddle = len(values) // 2\n"
        "return (values[middle] + values[~middle]) / 2",
        reference=_median,
        inputs=_numbers_input,
    ),
    _KnownFunction(
        "is_sorted",
        arguments=("numbers",),
        phrases=(
            "check{s} whether a list is sorted",
            "return{s} whether a list is in ascending order",
            "test{s} if a list is sorted",
        ),
        body="return @0 == sorted(@0)",
        reference=lambda numbers: numbers == _sorted(numbers),
        inputs=_sorted_list_input,
    ),
    _KnownFunction(
        "is_empty",
        arguments=("items",),
        phrases=("check{s} whether a list is empty", "return{s} True if a list is empty"),
        body="return len(@0) == 0",
        reference=lambda items: items == [],
        inputs=lambda rng: (rng.choice(([], [], _some_numbers(rng, ()))),),
    ),
    _KnownFunction(
        "contains",
        arguments=("numbers", "x"),
        phrases=(
            "check{s} whether a list contains a number",
            "return{s} whether a number is in a list",
            "test{s} if @1 is in a list",
        ),
        body="return @1 in @0",
        reference=lambda numbers, x: numbers.count(x) > 0,
        inputs=_numbers_and_number_input,
    ),
    _KnownFunction(
        "count_value",
        arguments=("numbers", "x"),
        phrases=(
            "count{s} how often a number occurs in a list",
            "count{s} the occurrences of @1 in a list",
            "return{s} how many times a value occurs in a list",
        ),
        body="return @0.count(@1)",
        reference=lambda numbers, x: sum(1 for y in numbers if y == x),
        inputs=_numbers_and_number_input,
    ),
    _KnownFunction(
        "rotate",
        arguments=("numbers", "k"),
        phrases=(
            "rotate{s} a list to the left by @1 places",
            "rotate{s} a list by @1 positions to the left",
        ),
        body="if not @0:\n    return []\n@1 %= len(@0)\nreturn @0[@1:] + @0[:@1]",
        reference=lambda numbers, k: [numbers[(i + k) % len(numbers)] for i in range(len(numbers))],
        inputs=_numbers_and_number_input,
    ),
    _KnownFunction(
        "chunks",
        arguments=("items", "size"),
        phrases=(
            "split{s} a list into chunks of a given size",
            "split{s} a list into parts of length @1",
        ),
        body="return [@0[i:i + @1] for i in range(0, len(@0), @1)]",
        reference=_chunks,
        inputs=lambda rng: (_some_numbers(rng, ()), rng.randrange(1, 5)),
    ),
    _KnownFunction(
        "binary_search",
        arguments=("numbers", "target"),
        phrases=(
            "find{s} a number in a sorted list by binary search",
            "implement{s} binary search",
            "return{s} the index of a number in a sorted list, or -1",
        ),
        body="low, high = 0, len(@0)\nwhile low < high:\n    middle = (low + high) // 2\n"
        "    if @0[middle] < @1:\n        low = middle + 1\n    else:\n        high = middle\n"
        "return low if low < len(@0) and @0[low] == @1 else -1",
        reference=lambda numbers, x: numbers.index(x) if x in numbers else -1,
        inputs=_binary_search_input,
    ),
    _KnownFunction(
        "bubble_sort",
        arguments=("numbers",),
        phrases=(
            "sort{s} a list with bubble sort",
            "implement{s} bubble sort",
            "sort{s} a list of numbers by bubble sort",
        ),
        body="for i in range(len(@0)):\n    for j in range(len(@0) - 1 - i):\n"
        "        if @0[j] > @0[j + 1]:\n"
        "            @0[j], @0[j + 1] = @0[j + 1], @0[j]\nreturn @0",
        reference=_sorted,
        inputs=_numbers_input,
    ),
    _KnownFunction(
        "flatten",
        arguments=("lists",),
        phrases=(
            "flatten{s} a list of lists",
            "turn{s} a list of lists into one list",
            "flatten{s} a nested list",
        ),
        body="return [x for items in @0 for x in items]",
        reference=lambda lists: list(itertools.chain(*lists)),
        inputs=_matrix_input,
    ),
    _KnownFunction(
        "transpose",
        arguments=("matrix",),
        phrases=("transpose{s} a matrix", "return{s} the transpose of a matrix"),
        body="return [list(row) for row in zip(*@0)]",
        reference=_transposed,
        inputs=_matrix_input,
    ),
    _KnownFunction(
        "sum_matrix",
        arguments=("matrix",),
        phrases=(
            "return{s} the sum of all numbers in a matrix",
            "add{s} up all elements of a matrix",
        ),
        body="return sum(sum(row) for row in @0)",
        reference=lambda matrix: sum(itertools.chain(*matrix)),
        inputs=_matrix_input,
    ),
    _KnownFunction(
        "most_common",
        arguments=("items",),
        phrases=(
            "return{s} the most common item of a list",
            "find{s} the most frequent element in a list",
        ),
        body="return max(@0, key=@0.count, default=None)",
        reference=lambda items: Counter(items).most_common(1)[0][0] if items else None,
        inputs=_word_list_input,
    ),
    _KnownFunction(
        "sort_by_length",
        arguments=("words",),
        phrases=("sort{s} words by their length", "sort{s} a list of strings by length"),
        body="return sorted(@0, key=len)",
        reference=_sorted_by_length,
        inputs=_word_list_input,
    ),
]


# Families of tasks

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
_POPULAR = _words_of(
    "fibonacci_sequence fibonacci add factorial is_prime is_even is_palindrome reverse_text "
    "find_maximum sum_list count_vowels sort_numbers gcd maximum multiply celsius_to_fahrenheit"
)


@dataclass(frozen=True)
class _Family:
    """The tasks of one shape. `combinations` yields those of the names of its parts."""

    name: str
    weight: int
    combinations: Callable[[], Iterator[tuple[str, ...]]]
    parts: Callable[[Sequence[str]], list[Any]]
    compose: Callable[[Sequence[str], Sequence[Parameter]], Task]


def _known_task(function: _KnownFunction) -> Task:
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


def _known_key(function: _KnownFunction) -> str:
    """Return a key that is not held out. Dots are added until that is so."""
    key = _key("known", [function.name])
    while is_held_out(key):
        key += "."
    return key


_FAMILIES: dict[str, _Family] = _by_name(
    [
        _Family(
            "each", weight=60, combinations=_all_chains, parts=_chain_parts, compose=_compose_chain
        ),
        _Family(
            "branch",
            weight=4,
            combinations=_all_branches,
            parts=_branch_parts,
            compose=_compose_branch,
        ),
        _Family(
            "check", weight=3, combinations=_all_checks, parts=_check_parts, compose=_compose_check
        ),
        _Family(
            "formula",
            weight=5,
            combinations=_all_formulas,
            parts=_formula_parts,
            compose=_compose_formula,
        ),
        _Family(
            "text", weight=5, combinations=_all_texts, parts=_text_parts, compose=_compose_text
        ),
        _Family(
            "selective",
            weight=3,
            combinations=_all_selective,
            parts=_selective_parts,
            compose=_compose_selective,
        ),
        _Family(
            "entries",
            weight=2,
            combinations=_all_entries,
            parts=_entries_parts,
            compose=_compose_entries,
        ),
    ]
)
_KNOWN_FUNCTIONS = [*_NUMBER_FUNCTIONS, *_OTHER_FUNCTIONS]
_KNOWN_TASKS = {_known_key(function): _known_task(function) for function in _KNOWN_FUNCTIONS}
_KNOWN_WEIGHT = 18


def _drawable(family: _Family) -> list[tuple[str, ...]]:
    """Return the keys of a family, those with one part as often as those with two."""
    keys = list(family.combinations())
    short = [key for key in keys if " " not in "".join(key)]
    long = [key for key in keys if " " in "".join(key)]
    if short and long:
        return short * (len(long) // len(short)) + long
    return keys


_DRAWABLE = {name: _drawable(family) for name, family in _FAMILIES.items() if name != "each"}
_FAMILY_NAMES = [*_FAMILIES, "known"]
_FAMILY_WEIGHTS: list[int] = []
for _weight in [*(family.weight for family in _FAMILIES.values()), _KNOWN_WEIGHT]:
    _FAMILY_WEIGHTS.append(_weight + sum(_FAMILY_WEIGHTS[-1:]))
_DRAWABLE_KNOWN = list(_KNOWN_TASKS)
for _function in _KNOWN_FUNCTIONS:
    if _function.name in _POPULAR:
        _DRAWABLE_KNOWN += 4 * [_known_key(_function)]


def composed_keys() -> Iterator[str]:
    """Yield the keys of all composed tasks. Only these can be held out."""
    for family in _FAMILIES.values():
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


def _task(key: str, parameters: Sequence[Parameter]) -> Task:
    known = _KNOWN_TASKS.get(key)
    if known is not None:
        return known
    return _composed_task(key, parameters)


def _composed_task(key: str, parameters: Sequence[Parameter] | None = None) -> Task:
    """Return a task of a family. Without parameters its parts must need none."""
    family_name, _, rest = key.partition(_COMPOSED_PREFIX)
    family = _FAMILIES[family_name]
    parts = rest.split(" | ")
    if parameters is None:
        parameters = [None] * len(family.parts(parts))
    return family.compose(parts, parameters)


# Requests

_NAME_VERBS = _words_of(
    "total count find get compute make pick solve process do calc collect handle run build check "
    "extract list select take show give filter map fetch keep scan work apply gather evaluate "
    "determine create return my the new simple quick main"
)
_NAME_NOUNS = _words_of(
    "even odd values numbers items result squares words letters data list total score sum digits "
    "answer things elements text output entries points best all it task code part vowels chars "
    "names sales prices cats stars keys pairs max min average count large small good special "
    "sequence length lines string first last"
)
_NAME_ENDS = ("in_list", "only", "fast", "now", "value", "of_list", "list", "2", "for_me", "func")
_SINGLE_NAMES = _words_of(
    "f g foo bar solve func func1 calculate compute process helper main_task solution answer "
    "my_function run test_it work transform convert analyze evaluate task result do_it magic"
)
_OTHER_ARGUMENTS = {
    "numbers": ("numbers", "values", "nums", "items", "data", "array", "lst"),
    "words": ("words", "strings", "items", "names", "texts"),
    "text": ("text", "s", "string", "sentence", "line"),
    "n": ("n", "number", "num", "m"),
    "data": ("data", "table", "scores", "prices", "counts"),
    "items": ("items", "values", "lst", "elements"),
}
# The description is in the third person behind {does}, the infinitive behind {do}.
_WORDINGS = (
    "Write a function that {does}",
    "Write a function that {does}",
    "Write a function that {does}",
    "Write a Python function that {does}",
    "Write a function to {do}",
    "Write a function to {do}",
    "Write a function to {do}",
    "Write a Python function to {do}",
    "Define a function which {does}",
    "Define a function that {does}",
    "Implement a function that {does}",
    "Implement a Python function to {do}",
    "Create a Python function that {does}",
    "Create a function to {do}",
    "I need a function that {does}",
    "Please write a function that {does}",
    "Please write Python code to {do}",
    "Give me a Python function that {does}",
    "Can you write a function that {does}?",
    "How do I {do} in Python?",
    "Write Python code to {do}",
    "Code a function that {does}",
)
_NAMED_WORDINGS = (
    "Write a function `{signature}` that {does}",
    "Write a function {signature} that {does}",
    "Write a Python function `{signature}` that {does}",
    "Define `{signature}` so that it {does}",
    "Implement the function `{signature}`, which {does}",
    "Please write a function `{signature}` that {does}",
    "Write a function named {name} that {does}",
    "Write a function called {name} that {does}",
    "Write a Python function called `{name}` that {does}",
    "Create a function named `{name}` that {does}",
    "Define a function `{name}` which {does}",
    "I need a function called {name} that {does}",
    "Write `{name}`, a Python function to {do}",
    "Write a function to {do}. Call it {name}",
    "Write a function that {does}. Name it `{name}`",
)
_NAMED_SHARE = 1 / 3


def _invented_name(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.12:
        return rng.choice(_SINGLE_NAMES)
    name = f"{rng.choice(_NAME_VERBS)}_{rng.choice(_NAME_NOUNS)}"
    if kind > 0.8:
        name += "_" + rng.choice((*_NAME_ENDS, *_NAME_NOUNS))
    return name


def _draw_key(rng: random.Random) -> tuple[str, list[Parameter]]:
    """Draw a key, and the parameters of its parts."""
    family_name = rng.choices(_FAMILY_NAMES, cum_weights=_FAMILY_WEIGHTS)[0]
    if family_name == "known":
        return rng.choice(_DRAWABLE_KNOWN), []
    family = _FAMILIES[family_name]
    while True:
        if family_name == "each":
            parts = _draw_chain(rng)
        else:
            parts = rng.choice(_DRAWABLE[family_name])
        key = _key(family_name, parts)
        if key not in _COVERED_KEYS:
            limit = MAX_PARAMETER
            if parts[0] == "digits":
                limit = 9
            return key, _draw_parameters(family.parts(parts), rng, limit)


def _python_problem(rng: random.Random) -> Problem:
    """Draw a problem whose response is not too long."""
    while True:
        problem = _draw_problem(rng)
        if len(problem.response) < MAX_RESPONSE:
            return problem


def _draw_problem(rng: random.Random) -> PythonProblem:
    """Draw a task and a wording of the request, and write the response."""
    key, parameters = _draw_key(rng)
    task = _task(key, parameters)
    arguments = list(task.arguments)
    name = task.default_name
    demanded_name = ""
    wording = rng.choice(_WORDINGS)
    if rng.random() < _NAMED_SHARE:
        wording = rng.choice(_NAMED_WORDINGS)
        if rng.random() < 0.75:
            name = _invented_name(rng)
        demanded_name = name
        if "{signature}" in wording and rng.random() < 0.5:
            for index, argument in enumerate(arguments):
                arguments[index] = rng.choice(_OTHER_ARGUMENTS.get(argument, (argument,)))

    signature = f"{name}({', '.join(arguments)})"
    description = task.describe(rng.choice)
    prompt = wording.format(
        signature=signature,
        name=name,
        does=_third_person(description),
        do=_infinitive(description),
    )
    if not prompt.endswith("?") and rng.random() < 0.75:
        prompt += "."
    if rng.random() < 0.04:
        prompt = prompt[0].lower() + prompt[1:]

    sentence = f"This function {_third_person(task.describe(_first_wording))}."
    code = _code(task, signature)
    response = f"{sentence}\n\n```python\n{code}\n```"
    return PythonProblem(
        kind="code",
        key=key,
        prompt=_with_arguments(prompt, arguments),
        response=_with_arguments(response, arguments),
        answer=_with_arguments(code, arguments),
        parameters=tuple(parameters),
        function_name=demanded_name,
    )


def _code(task: Task, signature: str) -> str:
    body = task.body.replace("\n", "\n    ")
    code = f"def {signature}:\n    {body}"
    if task.imports:
        code = f"{task.imports}\n\n{code}"
    return code


def _with_arguments(text: str, arguments: Sequence[str]) -> str:
    for index, argument in enumerate(arguments):
        text = text.replace(f"@{index}", argument)
    return text


MAKERS: dict[str, Maker] = {"code": _python_problem}


# Tests of answers


def cases(problem: PythonProblem) -> list[Case]:
    """Return arguments and the expected result for each, the same ones at every call.

    The results come from the meanings of the parts, and never from the code of the response.
    """
    task = _task(problem.key, problem.parameters)
    rng = random.Random(f"{problem.key}/{problem.parameters}")
    by_result: dict[str, list[Case]] = {}
    for _ in range(NUM_CANDIDATES):
        arguments = task.inputs(rng)
        result = task.reference(*arguments)
        by_result.setdefault(repr(result), []).append((arguments, result))

    found: list[Case] = []
    while len(found) < NUM_CASES:
        for group in by_result.values():
            if group:
                found.append(group.pop())
    return found[:NUM_CASES]


_CODE_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def code_of(response: str) -> str:
    """Return the first code block of a response, or all of it if there is none."""
    match = _CODE_BLOCK.search(response)
    return match[1] if match else response


# Runs on its own under `python -I -c`. It reads the seconds for each code, and then a line for each
# code: (code, function name, arguments of each call). It answers with a line for each code: the
# list of the results of its calls, or None if it failed.
# Each code runs in a process of its own, with limits on time, memory and files. These limits stop
# accidents of a model. They are no sandbox against an attacker.
_RUNNER = r"""
import ast, builtins, collections, functools, itertools, math, operator, os, re
import resource, select, signal, string, sys, time, types

ALLOWED = {"math", "itertools", "functools", "collections", "operator", "string", "re"}
REFUSED = {"open", "input", "exec", "eval", "compile", "breakpoint", "help", "exit", "quit",
           "memoryview", "globals", "locals", "vars"}
MEMORY = 512 * 2**20
MAX_OUTPUT = 2**20


def guarded_import(name, globals=None, locals=None, fromlist=(), level=0):
    if level or name not in ALLOWED:
        raise ImportError(name)
    return __import__(name, globals, locals, fromlist, level)


def plain(value):
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if kind in (list, tuple, set):
        return kind(plain(item) for item in value)
    raise TypeError(kind)


def results_of(code, name, calls):
    allowed = {key: value for key, value in vars(builtins).items() if key not in REFUSED}
    allowed["__import__"] = guarded_import
    allowed["print"] = lambda *args, **options: None
    scope = {"__builtins__": allowed, "__name__": "answer"}
    exec(code, scope)
    found = scope.get(name)
    if not name:
        functions = [x for x in scope.values() if type(x) is types.FunctionType]
        found = functions[-1]
    return [plain(found(*arguments)) for arguments in calls]


def run_child(line, end, seconds):
    job = ast.literal_eval(line)
    limit = int(seconds) + 1
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    try:
        output = repr(results_of(*job)).encode()
    except BaseException:
        output = b""
    while output:
        output = output[os.write(end, output):]


def run(line, seconds):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            run_child(line, writer, seconds)
        finally:
            os._exit(0)
    os.close(writer)
    output = b""
    deadline = time.monotonic() + seconds + 1
    while len(output) < MAX_OUTPUT:
        ready, _, _ = select.select([reader], [], [], max(0, deadline - time.monotonic()))
        piece = os.read(reader, 65536) if ready else b""
        if not piece:
            break
        output += piece
    else:
        output = b""
    os.close(reader)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return output.decode() or "None"


sys.setrecursionlimit(2000)
devnull = os.open(os.devnull, os.O_WRONLY)
os.dup2(devnull, 2)
seconds = float(sys.stdin.readline())
for line in sys.stdin:
    print(ascii(run(line, seconds)), flush=True)
"""


def check_all(solutions: Sequence[tuple[str, PythonProblem]], seconds: float = 1.0) -> list[bool]:
    """Return for each code whether it solves its problem.

    All codes run in one new Python process, each in a child that has `seconds` for all its cases.
    """
    expected = []
    jobs = []
    for code, problem in solutions:
        tests = cases(problem)
        expected.append([result for _, result in tests])
        job = (code, problem.function_name, [arguments for arguments, _ in tests])
        jobs.append(ascii(job))
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.run(
            [sys.executable, "-I", "-c", _RUNNER],
            input="\n".join([str(seconds), *jobs]),
            capture_output=True,
            text=True,
            cwd=folder,
            check=True,
            timeout=60 + (seconds + 2) * len(jobs),
        )
    outcomes = []
    lines = process.stdout.splitlines()
    for line, results in zip(lines, expected, strict=True):
        outcomes.append(_are_equal(_parsed(ast.literal_eval(line)), results))
    return outcomes


def check(code: str, problem: PythonProblem) -> bool:
    """Return whether a code solves a problem. See `check_all` for many of them."""
    return check_all([(code, problem)])[0]


def _parsed(text: str) -> Any:
    """Return the value that a code has printed, None if it cannot be read."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _are_equal(actual: Any, expected: Any) -> bool:
    """Return whether results are equal. Floats may differ by rounding, a tuple may be a list."""
    if isinstance(actual, bool) or isinstance(expected, bool):
        return actual is expected
    if isinstance(expected, int | float) and isinstance(actual, int | float):
        if isinstance(expected, int) and isinstance(actual, int):
            return actual == expected
        try:
            return math.isclose(actual, expected, rel_tol=1e-9, abs_tol=1e-9)
        except OverflowError:
            return False
    if isinstance(expected, list | tuple) and isinstance(actual, list | tuple):
        if len(actual) != len(expected):
            return False
        return all(map(_are_equal, actual, expected))
    if isinstance(expected, dict) and isinstance(actual, dict):
        if set(actual) != set(expected):
            return False
        return all(_are_equal(actual[key], value) for key, value in expected.items())
    return type(actual) is type(expected) and bool(actual == expected)
