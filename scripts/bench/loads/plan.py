"""The requests of a load: their lengths, classes and arrivals are drawn from one seed, so that two
runs ask for the same."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

CLASSES = ("interactive", "default", "bulk")
_WORDS = (
    "three",
    "apples",
    "and",
    "four",
    "pears",
    "make",
    "how",
    "many",
    "pieces",
    "of",
    "fruit",
    "in",
    "all",
)


@dataclass(frozen=True)
class Length:
    """A prompt of so many characters, answered with at most so many tokens."""

    characters: int
    tokens: int


@dataclass(frozen=True)
class ClientRequest:
    """One request, due `at_s` after the load began (0 where a client asks as soon as it can).

    Each of its prompts is answered with `tokens` tokens, or with fewer where the model may end by
    itself.
    """

    at_s: float
    prompts: tuple[str, ...]
    tokens: int
    priority: str
    may_end: bool = False


@dataclass(frozen=True)
class Mix:
    """Lengths and classes with their weights, and how many prompts a request has."""

    lengths: tuple[tuple[Length, float], ...]
    classes: tuple[tuple[str, float], ...] = (("default", 1.0),)
    num_prompts: int = 1
    may_end: bool = False

    @property
    def mean_tokens(self) -> float:
        """The tokens of an answer on average."""
        total_tokens = 0.0
        total_weight = 0.0
        for length, weight in self.lengths:
            total_tokens += length.tokens * weight
            total_weight += weight
        return total_tokens / total_weight

    def asks(
        self, seed: int, rate_per_s: float = 0.0, *, is_poisson: bool = True
    ) -> Iterator[ClientRequest]:
        """Yield requests without end.

        At a rate they are due one after the other, either evenly or as a Poisson process, in which
        they know nothing of each other. Without a rate all are due at 0.
        """
        rng = random.Random(seed)
        at_s = 0.0
        while True:
            if rate_per_s > 0 and is_poisson:
                at_s += rng.expovariate(rate_per_s)
            elif rate_per_s > 0:
                at_s += 1 / rate_per_s
            length: Length = _drawn(rng, self.lengths)
            prompts = tuple(_prompt(rng, length.characters) for _ in range(self.num_prompts))
            yield ClientRequest(
                at_s,
                prompts,
                tokens=length.tokens,
                priority=_drawn(rng, self.classes),
                may_end=self.may_end,
            )


def lengths_of(text: str) -> tuple[tuple[Length, float], ...]:
    """Read lengths with their weights: `32:16x2,400:64` is 32 characters with 16 tokens twice as
    often as 400 with 64. Raises ValueError."""
    lengths = []
    for part in text.split(","):
        sizes, _, weight = part.partition("x")
        characters, _, tokens = sizes.partition(":")
        length = Length(int(characters), int(tokens))
        if min(length.characters, length.tokens) < 1:
            raise ValueError(f"expected characters and tokens of 1 or more, got {part!r}")
        lengths.append((length, float(weight or 1)))
    return tuple(lengths)


def classes_of(text: str) -> tuple[tuple[str, float], ...]:
    """Read classes with their weights, as `interactive=1,bulk=3`. Raises ValueError."""
    classes = []
    for part in text.split(","):
        name, _, weight = part.partition("=")
        if name not in CLASSES:
            raise ValueError(f"expected one of {', '.join(CLASSES)}, got {name!r}")
        classes.append((name, float(weight or 1)))
    return tuple(classes)


def _drawn(rng: random.Random, options: Sequence[tuple[Any, float]]) -> Any:
    """Draw one of the options by their weights."""
    values = []
    weights = []
    for value, weight in options:
        values.append(value)
        weights.append(weight)
    return rng.choices(values, weights)[0]


def _prompt(rng: random.Random, characters: int) -> str:
    """Return a prompt of so many characters. No two begin alike, so that no prefix is computed once
    for several."""
    words = f"{rng.getrandbits(32):08x}"
    while len(words) < characters:
        words += f" {rng.choice(_WORDS)}"
    return words[:characters]
