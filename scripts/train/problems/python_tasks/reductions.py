"""The table of reductions, the values that are returned of elements. Each name occurs once in it."""

from collections.abc import Sequence
from typing import Any

from scripts.train.problems.python_tasks.filters import NUMBER_FILTERS
from scripts.train.problems.python_tasks.parameters import draw_separator, number_between, words_of
from scripts.train.problems.python_tasks.parts import Filter, Reduction, by_name


def _product(items: list[Any]) -> Any:
    result = 1
    for item in items:
        result = result * item
    return result


def without_duplicates(items: list[Any]) -> list[Any]:
    result: list[Any] = []
    for item in items:
        if item not in result:
            result.append(item)
    return result


def insertion_sorted(items: list[Any]) -> list[Any]:
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
        apply=lambda v, k: without_duplicates(v),
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
        apply=lambda v, k: len(without_duplicates(v)),
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
        apply=lambda v, k: insertion_sorted(v),
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
        apply=lambda v, k: insertion_sorted(v)[::-1],
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
        draw=number_between(2, 9),
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
        apply=lambda v, k: insertion_sorted(v)[-1] if v else None,
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
        apply=lambda v, k: insertion_sorted(v)[0] if v else None,
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
        apply=lambda v, k: insertion_sorted(v)[-1] - insertion_sorted(v)[0] if v else 0,
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
        apply=lambda v, k: insertion_sorted(without_duplicates(v))[-2] if len(set(v)) > 1 else None,
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
        apply=lambda v, k: insertion_sorted(v)[::-1][:k],
        draw=number_between(2, 9),
    ),
    Reduction(
        "smallest",
        label="smallest",
        phrases=("return{s} the {k} smallest of {of}", "find{s} the {k} smallest of {of}"),
        steps=("return{s} the {k} smallest results",),
        code="return sorted({gen})[:{k}]",
        apply=lambda v, k: insertion_sorted(v)[:k],
        draw=number_between(2, 9),
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
        draw=draw_separator,
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
        draw=draw_separator,
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

QUANTIFIERS = _quantifiers(NUMBER_FILTERS)
REDUCTIONS = by_name([*_COMMON_REDUCTIONS, *_NUMBER_REDUCTIONS, *_TEXT_REDUCTIONS, *QUANTIFIERS])
COMMON = words_of(
    "count list reversed first last distinct distinct_count ascending descending take tally"
)
NUMBERS = words_of(
    "sum product maximum minimum average spread second_largest largest smallest running "
    "joined_numbers"
)
# Reductions of the lengths of words.
LENGTH_REDUCTIONS = words_of(
    "list sum maximum minimum average ascending descending distinct product reversed tally running"
)
