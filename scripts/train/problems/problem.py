"""The problem that every family makes, and the choice of those held out of training."""

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

HELD_OUT_ONE_IN = 20


@dataclass(frozen=True)
class Problem:
    """A prompt and the expected response: the steps, then the boxed answer on the last line.

    `key` is the problem without its wording. It decides whether the problem is held out.
    """

    kind: str
    key: str
    prompt: str
    response: str
    answer: str


Maker = Callable[[random.Random], Problem]


def is_held_out(key: str) -> bool:
    """Return whether the problem with this key is held out of training."""
    return zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0


def boxed(steps: Sequence[str], answer: str) -> str:
    """Return a response: the steps, one a line, then the answer in its box."""
    return "\n".join([*steps, f"\\boxed{{{answer}}}"])


def typed_loosely(rng: random.Random, prompt: str) -> str:
    """Return a prompt as people type it: now and then without the capital or the final mark."""
    draw = rng.random()
    if draw > 0.2 or len(prompt) < 4:
        return prompt
    if draw < 0.12:
        prompt = prompt[0].lower() + prompt[1:]
    if draw > 0.08:
        prompt = prompt.removesuffix("?").removesuffix(".").rstrip()
    return prompt


def pick(rng: random.Random, wordings: Sequence[str]) -> str:
    """Draw a wording. The first one is drawn in a quarter of the cases."""
    draw = rng.random() * 4
    if draw < 1:
        return wordings[0]
    return wordings[int(draw * len(wordings)) % len(wordings)]
