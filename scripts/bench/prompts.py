"""Random prompts, the same in every run, and how far two sides agree on their answers."""

import random
from collections.abc import Sequence

from scripts.bench.model import FIRST_WORD
from scripts.bench.theirs import Theirs


def draw_prompts(count: int, least: int, most: int, vocab: int, seed: int = 0) -> list[list[int]]:
    """Return the token ids of `count` prompts of random lengths."""
    rng = random.Random(seed)
    prompts = []
    for _ in range(count):
        length = rng.randint(least, most)
        prompts.append([rng.randrange(FIRST_WORD, vocab) for _ in range(length)])
    return prompts


def agreement(
    theirs: Theirs,
    prompts: Sequence[Sequence[int]],
    ours_ids: list[list[int]],
    their_ids: list[list[int]],
) -> str:
    """Return a line of how many answers are equal.

    For an answer that is not, it says how nearly the two likeliest tokens tied where they part.
    """
    parted = []
    for prompt, mine, other in zip(prompts, ours_ids, their_ids, strict=True):
        if mine == other:
            continue
        at = 0
        while mine[at] == other[at]:
            at += 1
        gap = theirs.top_two_gap(prompt, other[:at])
        parted.append(f"token {at} (top-2 gap {gap:.2g})")
    num_equal = len(prompts) - len(parted)
    line = f"  greedy answers equal: {num_equal} of {len(prompts)}"
    if parted:
        line += f"; parted at {', '.join(parted)}"
    return line
