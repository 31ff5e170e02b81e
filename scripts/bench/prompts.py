"""Random prompts, which are the same in every run, and the agreement of two sides' answers."""

import random
from collections.abc import Sequence

from scripts.bench.model import FIRST_WORD
from scripts.bench.theirs import Theirs


def draw_prompts(count: int, least: int, most: int, vocab: int, seed: int = 0) -> list[list[int]]:
    """Return the token ids of `count` prompts of random lengths, from `least` to `most` tokens."""
    rng = random.Random(seed)
    prompts = []
    for _ in range(count):
        length = rng.randint(least, most)
        prompts.append([rng.randrange(FIRST_WORD, vocab) for _ in range(length)])
    return prompts


def agreement(
    theirs: Theirs,
    prompts: Sequence[Sequence[int]],
    our_ids: list[list[int]],
    their_ids: list[list[int]],
) -> str:
    """Return a line with the number of equal answers.

    For each other answer it gives the first token that differs, and the gap between the two best
    logits of transformers there. A small gap is a near tie, in which both sides are right.
    """
    differences = []
    for prompt, our_answer, their_answer in zip(prompts, our_ids, their_ids, strict=True):
        if our_answer == their_answer:
            continue
        index = 0
        while our_answer[index] == their_answer[index]:
            index += 1
        gap = theirs.top_two_gap(prompt, their_answer[:index])
        differences.append(f"token {index} (top-2 gap {gap:.2g})")
    num_equal = len(prompts) - len(differences)
    line = f"  greedy answers equal: {num_equal} of {len(prompts)}"
    if differences:
        line += f"; parted at {', '.join(differences)}"
    return line
