"""The parts of which tasks are composed, the task itself, and the well-known function."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.train.problems.python_tasks.parameters import Parameter, Pick

Arguments = tuple[Any, ...]


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


@dataclass(frozen=True)
class KnownFunction:
    """A function that people ask for by its own name. It is never held out."""

    name: str
    arguments: tuple[str, ...]
    phrases: tuple[str, ...]
    body: str
    reference: Callable[..., Any]
    inputs: Callable[[random.Random], Arguments]
    imports: str = ""


def by_name(parts: Sequence[Any]) -> dict[str, Any]:
    """Return a table of parts, or of families, by their names."""
    return {part.name: part for part in parts}
