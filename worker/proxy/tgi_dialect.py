"""Tasks in the dialect of text-generation-inference: `/generate_stream`, and chats as OpenAI's.

The wire's facts are in TGI's own documentation. It tells the id of every token.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec

from shared.errors import InvalidRequest
from shared.messages import Chat, Done, Generate, Generated, Sampling, Task, TokenLogprob
from worker.engine.noise import fold
from worker.engine.remote_runner import Piece, Unanswered
from worker.proxy.openai_dialect import OpenAIFacts, Question, generated, question_of
from worker.proxy.upstream import Upstream
from worker.text.detokenizer import TextStream

_CHAT = "/v1/chat/completions"
_MOST_TOP_P = 1.0
_REASONS = {"length": "length"}
_NEUTRAL = Sampling(max_tokens=1, seed=0)
_NOT_THERE = (
    "min_p",
    "min_tokens",
    "ignore_eos",
    "stop_ids",
    "logit_bias",
    "presence_penalty",
)
"""Parameters that TGI does not have."""


class TgiInfo(msgspec.Struct):
    """The answer of `/info`."""

    max_total_tokens: int
    model_id: str = ""


class TgiToken(msgspec.Struct):
    id: int
    text: str
    logprob: float | None = None
    special: bool = False


class TgiStreamDetails(msgspec.Struct):
    finish_reason: str
    generated_tokens: int
    input_length: int = 0


class TgiFrame(msgspec.Struct):
    """A frame of `/generate_stream`: a token, and the end of the answer with the last one."""

    token: TgiToken
    top_tokens: list[TgiToken] = []
    generated_text: str | None = None
    details: TgiStreamDetails | None = None


@dataclass(frozen=True)
class TgiFacts:
    """The facts that a server told of itself when it was asked at load."""

    model: str = ""
    window: int | None = None
    chats: bool = True


async def ask_tgi_facts(upstream: Upstream) -> TgiFacts:
    """Return the facts of a server. Raise a FleetError for one that is no TGI, and Unanswered."""
    info = await upstream.get("/info", TgiInfo)
    return TgiFacts(info.model_id, info.max_total_tokens, await upstream.is_there(_CHAT))


def tgi_question_of(task: Task, facts: TgiFacts) -> Question:
    """Return a task as a question. Raise InvalidRequest for what the server cannot do."""
    if not isinstance(task, Generate):
        raise InvalidRequest("The engine elsewhere does no such task.", field="model")
    if isinstance(task.prompt, Chat):
        # Its name for every model.
        return question_of(task, OpenAIFacts("tgi", owner="tgi", chats=facts.chats))
    for name in ("condition", "depth"):
        if getattr(task, name) is not None:
            raise InvalidRequest(f"{name}: an engine elsewhere does not have it.", field=name)
    if not isinstance(task.prompt, str):
        raise InvalidRequest("The engine elsewhere takes no token ids.", field="prompt")
    for name in _NOT_THERE:
        if getattr(task.sampling, name) != getattr(_NEUTRAL, name):
            raise InvalidRequest(f"{name}: the engine elsewhere does not have it.", field=name)
    body = {"inputs": task.prompt, "parameters": _parameters(task)}
    return Question(task, body)


def _parameters(task: Generate) -> dict[str, Any]:
    """Return the parameters of a request. TGI has no temperature 0, and no top_p of 1."""
    sampling = task.sampling
    sent: dict[str, Any] = {
        "max_new_tokens": sampling.max_tokens,
        "do_sample": sampling.temperature > 0,
        "details": True,
    }
    if sampling.temperature > 0:
        sent["temperature"] = sampling.temperature
        if sampling.top_p < _MOST_TOP_P:
            sent["top_p"] = sampling.top_p
        if sampling.top_k:
            sent["top_k"] = sampling.top_k
    if sampling.stop:
        sent["stop"] = list(sampling.stop)
    if sampling.frequency_penalty:
        sent["frequency_penalty"] = sampling.frequency_penalty
    if sampling.repetition_penalty != 1.0:
        sent["repetition_penalty"] = sampling.repetition_penalty
    if sampling.logprobs:
        sent["top_n_tokens"] = sampling.logprobs
    if task.max_prompt_tokens is not None:
        sent["truncate"] = task.max_prompt_tokens
    return sent


class TgiConnection:
    """The answers of one server in TGI's dialect."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def check(self) -> None:
        """Raise Unanswered if the server does not answer at all."""
        await self._upstream.look("/health")

    async def answer(self, question: Question) -> AsyncGenerator[Piece | Done]:
        """Yield pieces of an answer, and its end. The choices follow each other: TGI has one."""
        task = question.task
        assert isinstance(task, Generate)
        if "messages" in question.body:
            async with aclosing(generated(self._upstream, task, question.body)) as news:
                async for arrived in news:
                    yield arrived
            return

        ends: list[TgiStreamDetails] = []
        for index in range(task.sampling.n):
            choice = _Choice(index, task.sampling)
            parameters = {**question.body["parameters"], "seed": fold(task.sampling.seed, index)}
            body = {**question.body, "parameters": parameters}
            async with aclosing(
                self._upstream.stream("/generate_stream", body, TgiFrame)
            ) as frames:
                async for frame in frames:
                    yield choice.piece_of(frame)
            if choice.end is None:
                raise Unanswered("its answer has no end")
            ends.append(choice.end)
        yield _end(ends)


def _end(ends: list[TgiStreamDetails]) -> Done:
    reasons = tuple(_REASONS.get(end.finish_reason, "stop") for end in ends)
    return Done(
        reasons[0],
        ends[0].input_length,
        num_completion_tokens=sum(end.generated_tokens for end in ends),
        result=Generated(reasons) if len(reasons) > 1 else None,
    )


class _Choice:
    """One choice of an answer. TGI tells stop strings with the text, so they are cut here."""

    def __init__(self, index: int, sampling: Sampling) -> None:
        self._index = index
        self._num_top = sampling.logprobs
        self._texts: list[str] = []
        # To the stream each token is its number in this answer.
        self._text = TextStream(self._text_of, sampling.stop)
        self.end: TgiStreamDetails | None = None

    def piece_of(self, frame: TgiFrame) -> Piece:
        """Return a frame as a piece."""
        token = frame.token
        self._texts.append("" if token.special else token.text)
        text = self._text.push(len(self._texts) - 1)
        if frame.details is not None:
            self.end = frame.details
            text += self._text.flush()
        logprobs: tuple[TokenLogprob, ...] = ()
        if self._num_top is not None:
            top: list[tuple[int, str, float]] = []
            for other in frame.top_tokens[: self._num_top]:
                if other.logprob is not None:
                    top.append((other.id, other.text, other.logprob))
            logprobs = (TokenLogprob(token.logprob, self._texts[-1], tuple(top)),)
        return Piece(self._index, text, (token.id,), logprobs)

    def _text_of(self, numbers: Sequence[int]) -> str:
        return "".join(self._texts[number] for number in numbers)
