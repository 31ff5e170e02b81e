"""Random prompts, the same in every run, and how far two sides agree on their answers."""

import random
from collections.abc import Sequence

from scripts.bench.model import FIRST_WORD
from scripts.bench.theirs import Theirs


def draw_prompts(count: int, least: int, most: int, vocab: int, seed: int = 0) -> list[list[int]]:
    """Token ids of `count` prompts of random lengths."""
    rng = random.Random(seed)
    return [
        [rng.randrange(FIRST_WORD, vocab) for _ in range(rng.randint(least, most))]
        for _ in range(count)
    ]


def agreement(
    theirs: Theirs,
    prompts: Sequence[Sequence[int]],
    ours_ids: list[list[int]],
    their_ids: list[list[int]],
) -> str:
    """How many answers are equal; where one is not, how nearly the two likeliest tokens tied where
    they part."""
    parted = []
    for prompt, mine, other in zip(prompts, ours_ids, their_ids, strict=True):
        if mine != other:
            at = next(i for i, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b)
            parted.append(f"token {at} (top-2 gap {theirs.top_two_gap(prompt, other[:at]):.2g})")
    equal = len(prompts) - len(parted)
    return f"  greedy answers equal: {equal} of {len(prompts)}" + (
        f"; parted at {', '.join(parted)}" if parted else ""
    )
