"""The table of families of tasks, and all of them but `each`, which is in `chains`."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.train.problems.python_tasks.chains import (
    CHOICES,
    NO_PARTS,
    Chain,
    all_chains,
    are_independent,
    chain_parts,
    compose_chain,
    joined,
    parts_named,
)
from scripts.train.problems.python_tasks.filters import FILTERS, PREDICATES
from scripts.train.problems.python_tasks.inputs import (
    dictionary_input,
    list_input,
    number_input,
    text_input,
    two_numbers_input,
)
from scripts.train.problems.python_tasks.maps import (
    ALL_NUMBER_MAPS,
    LENGTH_MAPS,
    MAPS,
    TEXT_MAPS,
    maps_fit,
)
from scripts.train.problems.python_tasks.parameters import Parameter, Pick, literal_of
from scripts.train.problems.python_tasks.parts import Map, Task, by_name
from scripts.train.problems.python_tasks.reductions import REDUCTIONS
from scripts.train.problems.python_tasks.sources import SOURCES
from scripts.train.problems.python_tasks.wording import apply_maps, enumeration, fill, mapped_code

_A_NUMBER = ("a number", "an integer", "a given number", "@0")
_A_TEXT = ("a text", "a string", "a given text", "a word")


def _compose_branch(parts: Sequence[str], values: Sequence[Parameter]) -> Task:
    condition = FILTERS[parts[0]]
    then = MAPS[parts[1]]
    otherwise = MAPS[parts[2]]

    def describe(pick: Pick) -> str:
        first = fill(pick(then.singulars), pick, values[1], of=pick(_A_NUMBER))
        second = fill(pick(otherwise.singulars), pick, values[2], of="the number")
        predicate = fill(pick(condition.predicates), pick, values[0])
        end = pick(("and {} otherwise", "and otherwise {}", "else {}")).format(second)
        return f"return{{s}} {first} if it is {predicate} {end}"

    def reference(n: int) -> int:
        if condition.test(n, values[0]):
            return int(then.apply(n, values[1]))
        return int(otherwise.apply(n, values[2]))

    test = condition.code.format(x="@0", k=literal_of(values[0]))
    first = mapped_code("@0", [then], values[1:2])
    second = mapped_code("@0", [otherwise], values[2:])
    return Task(
        f"{then.label}_if_{condition.name}_else_{otherwise.label}",
        arguments=("n",),
        describe=describe,
        body=f"if {test}:\n    return {first}\nreturn {second}",
        reference=reference,
        inputs=lambda rng: number_input(rng, values),
    )


def _all_branches() -> Iterator[tuple[str, ...]]:
    for condition in PREDICATES:
        for then in ALL_NUMBER_MAPS:
            for otherwise in ALL_NUMBER_MAPS:
                if then != otherwise:
                    yield condition, then, otherwise


def _branch_parts(parts: Sequence[str]) -> list[Any]:
    return [FILTERS[parts[0]], MAPS[parts[1]], MAPS[parts[2]]]


def _compose_check(parts: Sequence[str], values: Sequence[Parameter]) -> Task:
    operator = parts[0]
    conditions = [FILTERS[name] for name in parts[1:]]

    def describe(pick: Pick) -> str:
        predicates = []
        for condition, value in zip(conditions, values, strict=True):
            predicates.append(fill(pick(condition.predicates), pick, value))
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
        tests.append(condition.code.format(x="@0", k=literal_of(value)))
    return Task(
        f"is_{f'_{operator}_'.join(parts[1:])}",
        arguments=("n",),
        describe=describe,
        body=f"return {f' {operator} '.join(tests)}",
        reference=reference,
        inputs=lambda rng: number_input(rng, values),
    )


def _all_checks() -> Iterator[tuple[str, ...]]:
    for operator in ("and", "or"):
        for first in PREDICATES:
            for second in PREDICATES:
                if "nonzero" not in (first, second) and are_independent(first, second):
                    yield operator, first, second


def _check_parts(parts: Sequence[str]) -> list[Any]:
    return [FILTERS[name] for name in parts[1:]]


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
    maps = parts_named(MAPS, parts[1])
    draw_input = number_input
    if len(operand.arguments) == 2:
        draw_input = two_numbers_input
    labels = [part.label for part in maps]
    labels.append(operand.label or "number")
    code = mapped_code(operand.code, maps, values)
    return Task(
        "_".join(labels),
        arguments=operand.arguments,
        describe=lambda pick: _describe_change(pick, operand.phrases, maps, values),
        body=f"return {code}",
        reference=lambda *numbers: apply_maps(operand.value(*numbers), maps, values),
        inputs=lambda rng: draw_input(rng, values),
    )


def _describe_change(
    pick: Pick, operands: Sequence[str], maps: Sequence[Map], values: Sequence[Parameter]
) -> str:
    """Return the description of maps of one value."""
    operand = pick(operands)
    is_simple = len(maps) == 1 and (not maps[0].follows or operands in {_A_NUMBER, _A_TEXT})
    if is_simple and pick(("noun", "steps")) == "noun":
        phrase = fill(pick(maps[0].singulars), pick, values[0], of=operand)
        return f"{pick(('return{s}', 'return{s}', 'compute{s}'))} {phrase}"

    steps = []
    it = operand
    for part, value in zip(maps, values, strict=True):
        steps.append(fill(pick(part.steps), pick, value, it=it))
        it = "the result"
    end = pick(("return{s} it", "return{s} the result"))
    return enumeration([*steps, end])


def _all_formulas() -> Iterator[tuple[str, ...]]:
    for operand in _OPERANDS:
        for first in ALL_NUMBER_MAPS:
            yield operand, first
            for second in ALL_NUMBER_MAPS:
                if maps_fit((first, second)):
                    yield operand, f"{first} {second}"


def _formula_parts(parts: Sequence[str]) -> list[Any]:
    return parts_named(MAPS, parts[1])


def _compose_text(parts: Sequence[str], values: Sequence[Parameter]) -> Task:
    maps = parts_named(MAPS, parts[0])
    return Task(
        "_".join([part.label for part in maps] + ["text"]),
        arguments=("text",),
        describe=lambda pick: _describe_change(pick, _A_TEXT, maps, values),
        body=f"return {mapped_code('@0', maps, values)}",
        reference=lambda text: apply_maps(text, maps, values),
        inputs=lambda rng: text_input(rng, values),
    )


def _all_texts() -> Iterator[tuple[str, ...]]:
    names = [part.name for part in TEXT_MAPS]
    for first in names:
        yield (first,)
        for second in (*names, *LENGTH_MAPS):
            if maps_fit((first, second)):
                yield (f"{first} {second}",)


def _text_parts(parts: Sequence[str]) -> list[Any]:
    return parts_named(MAPS, parts[0])


def _compose_selective(parts: Sequence[str], values: Sequence[Parameter]) -> Task:
    """Compose the change of some elements of a list."""
    filters = parts_named(FILTERS, parts[0])
    change = MAPS[parts[1]]
    source = SOURCES["list"]
    chain = Chain(
        source,
        filters=filters,
        maps=[change],
        reduction=REDUCTIONS["list"],
        filter_values=values[:-1],
        map_values=values[-1:],
        reduction_value=None,
    )

    def describe(pick: Pick) -> str:
        elements = f"the {chain.elements(pick, pick(source.places))}"
        step = fill(pick(change.steps), pick, values[-1], it=elements)
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
        tests.append(part.code.format(x="x", k=literal_of(value)))
    code = mapped_code("x", [change], values[-1:])
    return Task(
        "_".join([change.label, "if", *parts[0].split(" ")]),
        arguments=("numbers",),
        describe=describe,
        body=f"return [{code} if {' and '.join(tests)} else x for x in @0]",
        reference=reference,
        inputs=lambda rng: list_input(rng, values),
    )


def _all_selective() -> Iterator[tuple[str, ...]]:
    choices = CHOICES[0]
    for filters in dict.fromkeys(choices.filters[1] + choices.filters[2]):
        for change in ALL_NUMBER_MAPS:
            yield joined(filters), change


def _selective_parts(parts: Sequence[str]) -> list[Any]:
    return [*parts_named(FILTERS, parts[0]), MAPS[parts[1]]]


def _compose_entries(parts: Sequence[str], values: Sequence[Parameter]) -> Task:
    """Compose the filter of a dictionary and the change of its values."""
    condition = FILTERS[parts[0]]
    maps = parts_named(MAPS, parts[1])

    def describe(pick: Pick) -> str:
        predicate = fill(pick(condition.predicates), pick, values[0])
        verb = pick(("keep{s}", "return{s}", "keep{s} only"))
        entries = pick(("entries", "entries", "items"))
        place = pick(("of a dictionary", "in a dictionary", "of a dict"))
        text = f"{verb} the {entries} {place} whose value is {predicate}"
        for part, value in zip(maps, values[1:], strict=True):
            text += " and " + fill(pick(part.steps), pick, value, it="each value")
        return text

    def reference(data: dict[str, int]) -> dict[str, int]:
        result = {}
        for key, value in data.items():
            if condition.test(value, values[0]):
                result[key] = apply_maps(value, maps, values[1:])
        return result

    code = mapped_code("x", maps, values[1:])
    test = condition.code.format(x="x", k=literal_of(values[0]))
    return Task(
        "_".join([condition.name, *(part.label for part in maps), "entries"]),
        arguments=("data",),
        describe=describe,
        body=f"return {{key: {code} for key, x in @0.items() if {test}}}",
        reference=reference,
        inputs=lambda rng: dictionary_input(rng, values),
    )


def _all_entries() -> Iterator[tuple[str, ...]]:
    for condition in PREDICATES:
        for change in (NO_PARTS, *ALL_NUMBER_MAPS):
            yield condition, change


def _entries_parts(parts: Sequence[str]) -> list[Any]:
    return [FILTERS[parts[0]], *parts_named(MAPS, parts[1])]


@dataclass(frozen=True)
class Family:
    """The tasks of one shape. `combinations` yields those of the names of its parts."""

    name: str
    weight: int
    combinations: Callable[[], Iterator[tuple[str, ...]]]
    parts: Callable[[Sequence[str]], list[Any]]
    compose: Callable[[Sequence[str], Sequence[Parameter]], Task]


FAMILIES: dict[str, Family] = by_name(
    [
        Family(
            "each", weight=60, combinations=all_chains, parts=chain_parts, compose=compose_chain
        ),
        Family(
            "branch",
            weight=4,
            combinations=_all_branches,
            parts=_branch_parts,
            compose=_compose_branch,
        ),
        Family(
            "check", weight=3, combinations=_all_checks, parts=_check_parts, compose=_compose_check
        ),
        Family(
            "formula",
            weight=5,
            combinations=_all_formulas,
            parts=_formula_parts,
            compose=_compose_formula,
        ),
        Family("text", weight=5, combinations=_all_texts, parts=_text_parts, compose=_compose_text),
        Family(
            "selective",
            weight=3,
            combinations=_all_selective,
            parts=_selective_parts,
            compose=_compose_selective,
        ),
        Family(
            "entries",
            weight=2,
            combinations=_all_entries,
            parts=_entries_parts,
            compose=_compose_entries,
        ),
    ]
)
