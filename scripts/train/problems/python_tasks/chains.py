"""Tasks of the family `each`: the elements of a source are filtered, mapped and reduced."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.train.problems.python_tasks.filters import FILTERS
from scripts.train.problems.python_tasks.maps import LENGTH_MAPS, MAPS, gives_number, maps_fit
from scripts.train.problems.python_tasks.parameters import Parameter, Pick, literal_of, words_of
from scripts.train.problems.python_tasks.parts import (
    Arguments,
    Filter,
    Map,
    Reduction,
    Source,
    Task,
)
from scripts.train.problems.python_tasks.reductions import LENGTH_REDUCTIONS, REDUCTIONS
from scripts.train.problems.python_tasks.sources import SOURCES
from scripts.train.problems.python_tasks.wording import apply_maps, enumeration, fill, mapped_code

NO_PARTS = "-"
_SIGNS = ("positive", "negative")
_PARITIES = ("even", "odd")
# A pair of filters begins with one of these, which stand before the noun.
_LEADING_FILTERS = (*_SIGNS, *_PARITIES, "capitalized", "palindrome")


@dataclass(frozen=True)
class Chain:
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
                kept.append(apply_maps(mapped, self.maps, self.map_values))
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
            conditions.append(part.code.format(x=source.tested, k=literal_of(value)))

        element = mapped_code(source.mapped, self.maps, self.map_values)
        literal = literal_of(self.reduction_value)
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
            of = fill(pick(part.plurals), pick, value, of=of)
            if not part.follows:
                of = f"the {of}"
        return fill(phrase, pick, self.reduction_value, of=of, these=these)

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
            steps.append(fill(pick(part.steps), pick, value, it=it))
        steps.append(fill(pick(self.reduction.steps), pick, self.reduction_value))
        return enumeration(steps)

    def elements(self, pick: Pick, place: str) -> str:
        """Return the name of the filtered elements and their place, without an article."""
        around = self.source.around
        noun = pick(self.source.nouns)
        if self.filters and "{predicates}" in around:
            predicates = []
            for part, value in zip(self.filters, self.filter_values, strict=True):
                predicates.append(fill(pick(part.predicates), pick, value))
            return around.format(noun=noun, place=place, predicates=" and ".join(predicates))

        for index, (part, value) in enumerate(zip(self.filters, self.filter_values, strict=True)):
            phrase = part.phrases[0]
            # The first filter of two is an adjective, which stands next to the noun.
            if index == len(self.filters) - 1:
                phrase = pick(part.phrases)
            noun = fill(phrase, pick, value, noun=noun)
        if "{position}" in around:
            position = pick(("positions", "indexes", "indices"))
            noun = around.format(position=position, phrase=noun)
        return f"{noun} {place}".rstrip()

    def _removed(self, pick: Pick) -> str:
        """Return what the code removes from a text, empty if that is not all that it does."""
        if self.reduction.name != "text" or self.maps or len(self.filters) != 1:
            return ""
        return fill(self.filters[0].removes, pick, self.filter_values[0])


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


def are_independent(first: str, second: str) -> bool:
    """Return whether a filter may be of use after the other."""
    for related in (_PARITIES, (*_SIGNS, "nonzero")):
        if first in related and second in related:
            return False
    return first != second


def _reduction_fits(source: Source, filters: Sequence[str], maps: Sequence[str], name: str) -> bool:
    if maps and not REDUCTIONS[name].takes_maps:
        return False
    if name.startswith(("any_", "all_")):
        return len(filters) == 0 or (len(filters) == 1 and are_independent(filters[0], name[4:]))
    if source.name.endswith("positions"):
        return bool(filters)
    if filters or maps or source.condition or source.loop == "x, y":
        return True
    # A list of all elements of a list is no task.
    return name != "list" or source.name not in ("list", "words", "characters", "keys")


# These parts are asked for more often than the others.
_POPULAR_PARTS = frozenset(
    words_of(
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
        if maps and self.source.type == "text" and gives_number(maps[-1]):
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
        later = source.maps + LENGTH_MAPS
    map_pairs = []
    for first in source.maps:
        for second in later:
            if maps_fit((first, second)):
                map_pairs.append((first, second))
    maps.append(list(map_pairs))
    return _SourceChoices(
        source,
        filters[: source.max_filters + 1],
        maps[: source.max_maps + 1],
        own_reductions=_with_popular(source.reductions),
        length_reductions=_with_popular(LENGTH_REDUCTIONS),
    )


CHOICES = [_source_choices(source) for source in SOURCES.values()]
_SOURCE_WEIGHTS = list(itertools.accumulate(choices.source.weight for choices in CHOICES))
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


def draw_chain(rng: random.Random) -> tuple[str, ...]:
    """Draw the parts of a chain."""
    choices = rng.choices(CHOICES, cum_weights=_SOURCE_WEIGHTS)[0]
    while True:
        filters = rng.choice(choices.filters[_how_many(rng, _FILTER_SHARES, choices.filters)])
        maps = rng.choice(choices.maps[_how_many(rng, _MAP_SHARES, choices.maps)])
        reduction = rng.choice(choices.reductions(maps))
        if _reduction_fits(choices.source, filters, maps, reduction):
            return choices.source.name, joined(filters), joined(maps), reduction


def all_chains() -> Iterator[tuple[str, ...]]:
    for choices in CHOICES:
        all_filters = list(dict.fromkeys(itertools.chain(*choices.filters)))
        for maps in dict.fromkeys(itertools.chain(*choices.maps)):
            for reduction in dict.fromkeys(choices.reductions(maps)):
                for filters in all_filters:
                    if _reduction_fits(choices.source, filters, maps, reduction):
                        yield choices.source.name, joined(filters), joined(maps), reduction


def joined(names: Sequence[str]) -> str:
    return " ".join(names) or NO_PARTS


def parts_named(table: dict[str, Any], names: str) -> list[Any]:
    """Return the parts with these names, which `joined` has put together."""
    if names == NO_PARTS:
        return []
    return [table[name] for name in names.split(" ")]


def chain_parts(parts: Sequence[str]) -> list[Any]:
    reduction = REDUCTIONS[parts[3]]
    return [*parts_named(FILTERS, parts[1]), *parts_named(MAPS, parts[2]), reduction]


def compose_chain(parts: Sequence[str], values: Sequence[Parameter]) -> Task:
    filters = parts_named(FILTERS, parts[1])
    maps = parts_named(MAPS, parts[2])
    reduction = REDUCTIONS[parts[3]]
    source = SOURCES[parts[0]]
    middle = len(filters)
    chain = Chain(
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
