"""Word problems, from the templates in `word_problems.txt`."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import TypeVar

from scripts.train.problems import vocabulary
from scripts.train.problems.problem import Maker, Problem, boxed, typed_loosely
from scripts.train.problems.step_engine import Step, operand, parse_steps, solve

_T = TypeVar("_T")
_MAX_VARIANTS = 8

_PREFIXES = (
    "Solve: ",
    "Question: ",
    "Problem: ",
    "Word problem: ",
    "Please help: ",
    "Solve this: ",
)
# Nouns by field: the singular's, the plural's, and the list.
_NOUNS = (
    ("box", "boxes", vocabulary.BOXES),
    ("animal", "animals", vocabulary.ANIMALS),
    ("vehicle", "vehicle_plural", vocabulary.VEHICLES),
)
_PRONOUNS = (
    {"she": "she", "she_cap": "She", "her": "her", "her_object": "her"},
    {"she": "he", "she_cap": "He", "her": "his", "her_object": "him"},
)


@dataclass(frozen=True)
class _Range:
    """A number to draw. A bound is a number, or the name of one that is drawn before."""

    name: str
    low: int
    high: int | str
    step: int

    def draw(self, rng: random.Random, values: dict[str, int]) -> int:
        high = values[self.high] if isinstance(self.high, str) else self.high
        count = (high - self.low) // self.step + 1
        return self.low + self.step * int(rng.random() * count)


@dataclass(frozen=True)
class _Wording:
    """A text and its variants, all of which have the same fields.

    Its small numbers may be spelled out if `can_spell` says so.
    """

    texts: tuple[str, ...]
    fields: frozenset[str]
    can_spell: bool


@dataclass(frozen=True)
class Template:
    """A kind of word problem in several wordings.

    `shown` are the numbers that its texts name, and those in `cents` are prices.
    """

    name: str
    draws: tuple[_Range | Step, ...]
    steps: tuple[Step, ...]
    wordings: tuple[_Wording, ...]
    shown: tuple[str, ...]
    cents: frozenset[str]


def _parse_draw(text: str) -> _Range | Step:
    if "=" in text:
        return parse_steps(text)[0]
    name, _, bounds = text.partition(" ")
    bounds, _, step = bounds.partition(":")
    low, _, high = bounds.partition("-")
    return _Range(name, int(low), operand(high), int(step or 1))


def _parse_wording(text: str) -> _Wording:
    fields = frozenset(field for _, field, _, _ in Formatter().parse(text) if field)
    # A number next to a sign stays in digits.
    can_spell = not any(sign in text for sign in ("%", "$", ":", "°", "-{", "}0"))
    return _Wording(_variants(text), fields, can_spell)


def _variants(text: str) -> tuple[str, ...]:
    """Return a text, and what synonyms make of it."""
    texts = [text]
    for phrase, synonym in vocabulary.SYNONYMS:
        if phrase in text and len(texts) < _MAX_VARIANTS:
            texts += [variant.replace(phrase, synonym) for variant in texts]
    if not any(sign in text for sign in ("$", "dollar ", "-dollar", "cent")):
        for currency in vocabulary.CURRENCIES:
            texts.append(text.replace("dollars", currency))
    return tuple(dict.fromkeys(texts))


def _parse_template(block: str) -> Template:
    """Read a template. Its form is described at the top of `word_problems.txt`."""
    head, *lines = block.strip().splitlines()
    name, numbers, steps = head.split("|")
    draws = tuple(_parse_draw(part.strip()) for part in numbers.replace("$", "").split(","))
    cents = set()
    for part in numbers.split(","):
        if "$" in part:
            cents.add(part.split("$")[0].strip())
    wordings = tuple(_parse_wording(line) for line in lines)
    drawn = [draw.name if isinstance(draw, _Range) else draw.target for draw in draws]
    shown = tuple(field for field in drawn if field in wordings[0].fields)
    return Template(name.strip(), draws, parse_steps(steps), wordings, shown, frozenset(cents))


def _read_templates() -> tuple[Template, ...]:
    text = (Path(__file__).parent / "word_problems.txt").read_text(encoding="utf-8")
    blocks = text.split("\n== ")[1:]
    return tuple(_parse_template(block) for block in blocks)


TEMPLATES = _read_templates()


def _draw_numbers(rng: random.Random, template: Template) -> dict[str, int]:
    values: dict[str, int] = {}
    for draw in template.draws:
        if isinstance(draw, Step):
            values[draw.target] = draw.value(values)
        else:
            values[draw.name] = draw.draw(rng, values)
    return values


def _choose(rng: random.Random, items: Sequence[_T]) -> _T:
    return items[int(rng.random() * len(items))]


def _draw_names(rng: random.Random, fields: dict[str, object]) -> None:
    """Set three names, and the pronouns of the first."""
    lists = (vocabulary.WOMEN, vocabulary.MEN)
    first_list = int(rng.random() * 2)
    names = [_choose(rng, lists[first_list])]
    while len(names) < 3:
        name = _choose(rng, lists[int(rng.random() * 2)])
        if name not in names:
            names.append(name)
    fields["A"], fields["B"], fields["C"] = names
    fields.update(_PRONOUNS[first_list])


def _draw_nouns(rng: random.Random, fields: dict[str, object], wanted: frozenset[str]) -> None:
    """Set those of the nouns that a wording has."""
    if "things" in wanted or "thing" in wanted:
        thing = _choose(rng, vocabulary.THINGS)
        other = _choose(rng, vocabulary.THINGS)
        while other == thing:
            other = _choose(rng, vocabulary.THINGS)
        fields["thing"], fields["things"] = thing
        fields["other"], fields["others"] = other
    for singular, plural, nouns in _NOUNS:
        if singular in wanted or plural in wanted:
            fields[singular], fields[plural] = _choose(rng, nouns)
            # Jars of jars would be odd.
            while fields[plural] == fields.get("things"):
                fields[singular], fields[plural] = _choose(rng, nouns)
    if "place" in wanted:
        fields["place"] = _choose(rng, vocabulary.PLACES)
    if "ingredient" in wanted:
        fields["ingredient"] = _choose(rng, vocabulary.INGREDIENTS)
    if "city" in wanted or "town" in wanted:
        fields["city"], fields["town"] = rng.sample(vocabulary.CITIES, 2)


def _dollars(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


def _article(text: str) -> str:
    """Return a text with "an" for "a" where a vowel follows."""
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}")
        text = text.replace(f"A {vowel}", f"An {vowel}")
    return text


def _aside(rng: random.Random, fields: dict[str, object]) -> str:
    """Return a sentence that has nothing to do with the problem."""
    name = _choose(rng, vocabulary.WOMEN)
    while name in fields.values():
        name = _choose(rng, vocabulary.WOMEN)
    return _choose(rng, vocabulary.ASIDES).format(name=name, n=int(rng.random() * 18) + 2)


def _prompt(rng: random.Random, template: Template, values: dict[str, int]) -> str:
    wording = _choose(rng, template.wordings)
    fields: dict[str, object] = dict(values)
    if wording.can_spell and rng.random() < 0.08:
        for name in template.shown:
            if values[name] <= 12:
                fields[name] = vocabulary.NUMBER_WORDS[values[name]]
    for name in template.cents:
        fields[name] = _dollars(values[name])
    if "A" in wording.fields:
        _draw_names(rng, fields)
    _draw_nouns(rng, fields, wording.fields)
    text = _choose(rng, wording.texts).format(**fields)
    if not wording.fields.isdisjoint(("thing", "other", "vehicle")):
        text = _article(text)
    text = text[0].upper() + text[1:]
    draw = rng.random()
    if draw < 0.06:
        return _choose(rng, _PREFIXES) + text
    if draw < 0.1:
        return f"{_aside(rng, fields)} {text}"
    return typed_loosely(rng, text)


def word_problem(rng: random.Random, template: Template) -> Problem:
    """Return a problem of the given template.

    The key is the template's name with the numbers that are shown.
    """
    values = _draw_numbers(rng, template)
    key = f"{template.name}: {' '.join([str(values[name]) for name in template.shown])}"
    prompt = _prompt(rng, template, values)

    lines = []
    for name in template.shown:
        if name in template.cents:
            lines.append(f"{_dollars(values[name])} dollars = {values[name]} cents")
    lines += solve(template.steps, values, labelled=True)
    result = values[template.steps[-1].target]
    answer = str(result)
    if template.cents:
        answer = _dollars(result)
        lines.append(f"{result} cents = {answer} dollars")
    return Problem("word_problem", key, prompt, boxed(lines, answer), answer)


def make_word_problem(rng: random.Random) -> Problem:
    """Return a problem of a template drawn at random."""
    return word_problem(rng, _choose(rng, TEMPLATES))


MAKERS: dict[str, Maker] = {"word_problem": make_word_problem}
