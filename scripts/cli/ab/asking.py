"""Sends questions to the sides of a comparison, and times their answers."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from scripts.cli.ab.questions import Question
from scripts.cli.ab.sides import Sampling, Side, completion_body, piece_of
from scripts.cli.runs.progress import counting

_DATA = "data:"
_SHOWN = 200


@dataclass(frozen=True)
class Answer:
    """The answer of a side to one question.

    `seconds` is the time from the request to the end of the answer, `first_s` that to its first
    piece of text. An answer with an `error` does not count.
    """

    seconds: float
    first_s: float | None = None
    text: str = ""
    num_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Likelihood:
    """The log-likelihood of a text behind a prompt, in nats, and the number of its tokens."""

    log_likelihood: float
    num_tokens: int


@dataclass(frozen=True)
class SideAnswers:
    """The answers of one side, in the order of the questions, and the seconds that all took together.

    `likelihoods` has None for questions without a reference.
    """

    side: Side
    answers: Sequence[Answer]
    seconds: float
    likelihoods: Sequence[Likelihood | None]


async def ask(client: httpx.AsyncClient, side: Side, prompt: str, sampling: Sampling) -> Answer:
    """Ask one question, and return its answer, which may be an error."""
    started = time.perf_counter()
    first_s = None
    text = ""
    num_tokens = None
    num_frames = 0
    error = None
    body = completion_body(side, side.prompt_of(prompt), sampling)
    try:
        async with client.stream("POST", side.completions_url, json=body) as response:
            if response.status_code != 200:
                content = (await response.aread()).decode(errors="replace")
                seconds = time.perf_counter() - started
                return Answer(seconds, error=f"{response.status_code}: {content[:_SHOWN]}")
            async for frame in _frames(response):
                piece = piece_of(side.dialect, frame)
                error = error or piece.error
                if piece.text:
                    num_frames += 1
                    if first_s is None:
                        first_s = time.perf_counter() - started
                text += piece.text
                num_tokens = piece.num_tokens if piece.num_tokens is not None else num_tokens
    except httpx.HTTPError as failure:
        error = repr(failure)
    seconds = time.perf_counter() - started
    # A server that tells no usage sends a frame for each token.
    return Answer(seconds, first_s, text, num_frames if num_tokens is None else num_tokens, error)


async def _frames(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if not line.startswith(_DATA):
            continue
        data = line[len(_DATA) :].strip()
        if data and data != "[DONE]":
            yield json.loads(data)


async def ask_all(
    client: httpx.AsyncClient,
    side: Side,
    questions: Sequence[Question],
    sampling: Sampling,
    concurrency: int,
) -> SideAnswers:
    """Ask every question once, at most `concurrency` at a time.

    Afterwards measure the log-likelihood of each reference.
    """
    places = asyncio.Semaphore(concurrency)
    num_references = sum(question.reference is not None for question in questions)
    with counting(side.name, len(questions) + num_references) as done:

        async def ask_in_turn(question: Question) -> Answer:
            async with places:
                answer = await ask(client, side, question.prompt, sampling)
            done()
            return answer

        async def measure_in_turn(question: Question) -> Likelihood | None:
            if question.reference is None:
                return None
            async with places:
                found = await likelihood(client, side, question.prompt, question.reference)
            done()
            return found

        started = time.perf_counter()
        answers = await asyncio.gather(*(ask_in_turn(question) for question in questions))
        seconds = time.perf_counter() - started
        likelihoods = await asyncio.gather(*(measure_in_turn(question) for question in questions))
    return SideAnswers(side, answers, seconds, likelihoods)


async def likelihood(
    client: httpx.AsyncClient, side: Side, prompt: str, reference: str
) -> Likelihood | None:
    """Return the log-likelihood of a text behind a prompt, None if the side cannot tell it."""
    prompt = side.prompt_of(prompt)
    body: dict[str, Any]
    if side.dialect == "aios":
        body = {"prompts": [prompt], "continuations": [reference]}
        if side.model is not None:
            body["model"] = side.model
        response = await client.post(f"{side.url}/loglikelihood", json=body)
        if response.status_code != 200:
            return None
        found = response.json()
        return Likelihood(found["ll"][0], found["num_tokens"][0])
    if side.dialect == "openai":
        return await _echoed_likelihood(client, side, prompt, reference)
    return None


async def _echoed_likelihood(
    client: httpx.AsyncClient, side: Side, prompt: str, reference: str
) -> Likelihood | None:
    """Add up what a server tells of the tokens of a prompt that it repeats."""
    body = {
        "model": side.model or "local",
        "prompt": prompt + reference,
        "max_tokens": 0,
        "echo": True,
        "logprobs": 1,
        "temperature": 0,
    }
    response = await client.post(side.completions_url, json=body)
    if response.status_code != 200:
        return None
    found = response.json()["choices"][0].get("logprobs") or {}
    offsets = found.get("text_offset")
    values = found.get("token_logprobs")
    if not offsets or not values:
        return None
    total = 0.0
    count = 0
    for offset, value in zip(offsets, values, strict=True):
        if offset >= len(prompt) and value is not None:
            total += value
            count += 1
    return Likelihood(total, count) if count else None


async def ask_sides(
    sides: Sequence[Side],
    questions: Sequence[Question],
    sampling: Sampling,
    *,
    concurrency: int,
    key: str | None = None,
) -> list[SideAnswers]:
    """Ask one side after the other, so that they do not compete for the machine.

    All sides are warmed up with the first question. The key, if there is one, goes to all of them.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    results = []
    async with httpx.AsyncClient(timeout=300, headers=headers) as client:
        for side in sides:
            await ask(client, side, questions[0].prompt, sampling)
        for side in sides:
            results.append(await ask_all(client, side, questions, sampling, concurrency))
    return results
