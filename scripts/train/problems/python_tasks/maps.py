"""The table of maps, the changes of an element. Each name occurs once in it."""

import re
from collections.abc import Sequence

from scripts.train.problems.python_tasks.parameters import (
    draw_two_letters,
    number_between,
    words_of,
)
from scripts.train.problems.python_tasks.parts import Map, by_name

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
        draw=number_between(1, 20),
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
        draw=number_between(1, 20),
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
        draw=number_between(4, 20),
    ),
    Map(
        "remainder",
        label="remainders",
        plurals=("remainders modulo {k} of {of}", "remainders of a division by {k} of {of}"),
        singulars=("the remainder of {of} divided by {k}", "{of} modulo {k}"),
        steps=("take{s} {it} modulo {k}",),
        code="{x} % {k}",
        apply=lambda x, k: x - k * (x // k),
        draw=number_between(2, 20),
    ),
    Map(
        "distance",
        label="distances",
        plurals=("distances from {k} of {of}", "absolute differences from {k} of {of}"),
        singulars=("the distance from {k} of {of}",),
        steps=("take{s} the distance from {k} of {it}",),
        code="abs({x} - {k})",
        apply=lambda x, k: max(x, k) - min(x, k),
        draw=number_between(1, 20),
    ),
]

TEXT_MAPS: list[Map] = [
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
        draw=number_between(2, 9),
    ),
    Map(
        "last_letters",
        label="ends",
        plurals=("last {k} letters of {of}", "last {k} characters of {of}"),
        singulars=("the last {k} characters of {of}", "the last {k} letters of {of}"),
        steps=("take{s} the last {k} characters of {it}",),
        code="{x}[-{k}:]",
        apply=lambda x, k: "".join(letter for i, letter in enumerate(x) if i >= len(x) - k),
        draw=number_between(2, 9),
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
        draw=number_between(2, 9),
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
        draw=number_between(2, 20),
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
        draw=draw_two_letters,
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

MAPS = by_name([*_NUMBER_MAPS, *TEXT_MAPS])
ALL_NUMBER_MAPS = tuple(part.name for part in _NUMBER_MAPS)
# Maps of the lengths of words.
LENGTH_MAPS = words_of("square double add multiply")


def gives_number(name: str) -> bool:
    """Return whether the result of a map is a number."""
    return name in ALL_NUMBER_MAPS or MAPS[name].to == "number"


def maps_fit(names: Sequence[str]) -> bool:
    """Return whether maps can be combined in this order."""
    if len(names) < 2:
        return True
    first, second = names
    if first == second:
        return False
    return gives_number(first) == (second in ALL_NUMBER_MAPS)
