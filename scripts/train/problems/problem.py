"""A problem that a sample model learns to answer, and the rule that holds problems out."""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

HELD_OUT_ONE_IN = 20


@dataclass(frozen=True)
class Problem:
    """A request and the response that a model is to learn.

    `key` is the task without its wording. It decides whether the problem is held out.
    """

    kind: str
    key: str
    prompt: str
    response: str
    answer: str


Maker = Callable[[random.Random], Problem]


def is_held_out(key: str) -> bool:
    """Return whether the problems with this key are held out of training."""
    return zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0
