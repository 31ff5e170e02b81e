"""The scoring load: contexts, each with continuations whose log-likelihoods are asked for.

It is what an evaluation harness sends for a question with some answers. Each client sends its next
context when its last one is scored.
"""

import asyncio
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter as now
from typing import Any

import httpx

_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Question:
    """A context, and continuations of it, as letters: each is a token of the nets."""

    context: str
    continuations: tuple[str, ...]


ScoreRequest = Callable[[Question], tuple[str, dict[str, Any]]]
"""The path and the JSON of the request that scores a question."""


def draw_questions(
    count: int, *, context: int, continuations: int, length: int, seed: int = 0
) -> list[Question]:
    """Return questions of random letters. Lengths are in tokens."""
    rng = random.Random(seed)

    def letters(size: int) -> str:
        return "".join(rng.choices(string.ascii_lowercase, k=size))

    questions = []
    for _ in range(count):
        answers = tuple(letters(length) for _ in range(continuations))
        questions.append(Question(letters(context), answers))
    return questions


def score_all(
    url: str, request_of: ScoreRequest, questions: Sequence[Question], *, num_clients: int
) -> float:
    """Score all questions, and return the continuations per second.

    Raise RuntimeError with the server's words if one is not scored.
    """
    begun_s = now()
    asyncio.run(_score_all(url, request_of, questions, num_clients))
    num_scored = sum(len(question.continuations) for question in questions)
    return num_scored / (now() - begun_s)


async def _score_all(
    url: str, request_of: ScoreRequest, questions: Sequence[Question], num_clients: int
) -> None:
    waiting = list(questions)

    async def client(http: httpx.AsyncClient) -> None:
        while waiting:
            path, body = request_of(waiting.pop())
            response = await http.post(path, json=body)
            if response.status_code != 200:
                raise RuntimeError(f"not scored: {response.text[:500]}")

    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S) as http:
        await asyncio.gather(*(client(http) for _ in range(num_clients)))
