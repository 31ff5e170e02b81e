"""The requests of a load.

Their lengths, classes and arrivals are drawn from one seed, so that all runs have the same
requests.
"""

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
    """The number of characters of a prompt, and the most tokens of its answer."""

    characters: int
    tokens: int


@dataclass(frozen=True)
class ClientRequest:
    """One request, which is due `at_s` seconds after the load began.

    In a closed loop `at_s` is 0. Each prompt is answered with `tokens` tokens, or with fewer if
    `may_end` lets the model end the answer.
    """

    at_s: float
    prompts: tuple[str, ...]
    tokens: int
    priority: str
    may_end: bool = False


@dataclass(frozen=True)
class Mix:
    """The lengths and classes of requests with their weights, and the prompts of each request."""

    lengths: tuple[tuple[Length, float], ...]
    classes: tuple[tuple[str, float], ...] = (("default", 1.0),)
    num_prompts: int = 1
    may_end: bool = False

    @property
    def mean_tokens(self) -> float:
        """The mean number of tokens of an answer."""
        total_tokens = 0.0
        total_weight = 0.0
        for length, weight in self.lengths:
            total_tokens += length.tokens * weight
            total_weight += weight
        return total_tokens / total_weight

    def requests(
        self, seed: int, rate_per_s: float = 0.0, *, is_poisson: bool = True
    ) -> Iterator[ClientRequest]:
        """Yield requests without end.

        With a rate they are due one after the other, evenly or as a Poisson process, whose arrivals
        are independent. Without a rate all are due at 0.
        """
        rng = random.Random(seed)
        at_s = 0.0
        while True:
            if rate_per_s > 0 and is_poisson:
                at_s += rng.expovariate(rate_per_s)
            elif rate_per_s > 0:
                at_s += 1 / rate_per_s
            length: Length = _draw(rng, self.lengths)
            prompts = tuple(_prompt(rng, length.characters) for _ in range(self.num_prompts))
            yield ClientRequest(
                at_s,
                prompts,
                tokens=length.tokens,
                priority=_draw(rng, self.classes),
                may_end=self.may_end,
            )


def lengths_of(text: str) -> tuple[tuple[Length, float], ...]:
    """Return the lengths and weights of a text such as `32:16x2,400:64`.

    It means 32 characters with 16 tokens, twice as often as 400 characters with 64 tokens. Raises
    ValueError if the text means nothing.
    """
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
    """Return the classes and weights of a text such as `interactive=1,bulk=3`.

    Raises ValueError if the text means nothing.
    """
    classes = []
    for part in text.split(","):
        name, _, weight = part.partition("=")
        if name not in CLASSES:
            raise ValueError(f"expected one of {', '.join(CLASSES)}, got {name!r}")
        classes.append((name, float(weight or 1)))
    return tuple(classes)


def _draw(rng: random.Random, options: Sequence[tuple[Any, float]]) -> Any:
    """Return one of the options, drawn by their weights."""
    values = []
    weights = []
    for value, weight in options:
        values.append(value)
        weights.append(weight)
    return rng.choices(values, weights)[0]


def _prompt(rng: random.Random, characters: int) -> str:
    """Return a prompt of `characters` characters.

    Each prompt begins differently, so that none finds its prefix in a cache.
    """
    words = f"{rng.getrandbits(32):08x}"
    while len(words) < characters:
        words += f" {rng.choice(_WORDS)}"
    return words[:characters]
