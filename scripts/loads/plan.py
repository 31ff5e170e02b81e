"""What is asked and when: lengths, classes and arrivals, drawn from one seed so that two runs ask
for the same."""

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
        total = sum(weight for _, weight in self.lengths)
        return sum(length.tokens * weight for length, weight in self.lengths) / total

    def asks(
        self, seed: int, rate_per_s: float = 0.0, *, is_poisson: bool = True
    ) -> Iterator[ClientRequest]:
        """Without end. At a rate they are due one after the other: evenly, or as if they knew
        nothing of each other."""
        rng, at_s = random.Random(seed), 0.0
        while True:
            if rate_per_s > 0:
                at_s += rng.expovariate(rate_per_s) if is_poisson else 1 / rate_per_s
            length: Length = _drawn(rng, self.lengths)
            prompts = tuple(_prompt(rng, length.characters) for _ in range(self.num_prompts))
            yield ClientRequest(
                at_s, prompts, length.tokens, _drawn(rng, self.classes), may_end=self.may_end
            )


def lengths_of(text: str) -> tuple[tuple[Length, float], ...]:
    """`32:16x2,400:64` is 32 characters with 16 tokens twice as often as 400 with 64. Raises
    ValueError."""
    found = []
    for part in text.split(","):
        sizes, _, weight = part.partition("x")
        characters, _, tokens = sizes.partition(":")
        length = Length(int(characters), int(tokens))
        if min(length.characters, length.tokens) < 1:
            raise ValueError(f"expected characters and tokens of 1 or more, got {part!r}")
        found.append((length, float(weight or 1)))
    return tuple(found)


def classes_of(text: str) -> tuple[tuple[str, float], ...]:
    """`interactive=1,bulk=3` with their weights. Raises ValueError."""
    found = []
    for part in text.split(","):
        name, _, weight = part.partition("=")
        if name not in CLASSES:
            raise ValueError(f"expected one of {', '.join(CLASSES)}, got {name!r}")
        found.append((name, float(weight or 1)))
    return tuple(found)


def _drawn(rng: random.Random, options: Sequence[tuple[Any, float]]) -> Any:
    return rng.choices([option for option, _ in options], [weight for _, weight in options])[0]


def _prompt(rng: random.Random, characters: int) -> str:
    """No two begin alike, so that nothing is computed once for several."""
    words = f"{rng.getrandbits(32):08x}"
    while len(words) < characters:
        words += f" {rng.choice(_WORDS)}"
    return words[:characters]
