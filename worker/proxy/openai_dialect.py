"""Tasks in OpenAI's dialect: `/v1/completions` and `/v1/chat/completions`, and scores by `echo`."""

import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec

from shared.errors import FleetError, InvalidRequest, UpstreamFailed
from shared.messages import (
    UNKNOWN_ID,
    Chat,
    ContinuationScore,
    Done,
    Generate,
    Generated,
    Read,
    Sampling,
    Score,
    Scored,
    Task,
    Text,
    TokenLogprob,
)
from worker.engine.remote_runner import Piece, Unanswered
from worker.proxy.openai_wire import (
    ChatChoice,
    ChatChunk,
    ChatLogprob,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    LogLikelihoods,
    ModelList,
    Usage,
)
from worker.proxy.upstream import Upstream
from worker.text.encoding import text_of

_COMPLETIONS = "/v1/completions"
_CHAT = "/v1/chat/completions"
_NEUTRAL = Sampling(max_tokens=1, seed=0)
_ID_PREFIX = "token_id:"
"""The beginning of the name of a token without a text of its own, as vLLM and this fleet have it."""
_REASONS = frozenset({"stop", "length", "deadline"})

_OF_VLLM = {
    "top_k": "top_k",
    "min_p": "min_p",
    "min_tokens": "min_tokens",
    "ignore_eos": "ignore_eos",
    "stop_ids": "stop_token_ids",
    "repetition_penalty": "repetition_penalty",
}
"""Parameters that OpenAI does not have, by the names of vLLM and this fleet."""
_WITH_DEFAULTS = frozenset({"top_k", "min_p", "repetition_penalty"})
"""Those for which vLLM takes the checkpoint's `generation_config.json`, and llama.cpp its own."""


@dataclass(frozen=True)
class Flavour:
    """The additions of one kind of server to OpenAI's dialect.

    `spellings` are its names of our parameters. Those that are not among them are refused here,
    since most servers pass over what they do not know. Those that are `always_sent` are sent even
    if they are neutral, since the server's own default, or the checkpoint's, is not. `extra` stands
    in every request. A server that `cuts_prompts` obeys `truncate_prompt_tokens`; one that
    `fits_prompts` keeps what fits for -1. Seeds are taken modulo `num_seeds`.
    """

    spellings: Mapping[str, str] = field(default_factory=dict)
    always_sent: frozenset[str] = frozenset()
    extra: Mapping[str, Any] = field(default_factory=dict)
    cuts_prompts: bool = False
    fits_prompts: bool = False
    num_seeds: int = 2**63


FLAVOURS = {
    "aios": Flavour(_OF_VLLM, cuts_prompts=True, fits_prompts=True),
    "vllm": Flavour(_OF_VLLM, _WITH_DEFAULTS, extra={"return_token_ids": True}, cuts_prompts=True),
    "llamacpp": Flavour(
        {
            "top_k": "top_k",
            "min_p": "min_p",
            "ignore_eos": "ignore_eos",
            "repetition_penalty": "repeat_penalty",
        },
        _WITH_DEFAULTS,
        # 2**32 - 1 stands for a seed drawn there.
        num_seeds=2**32 - 1,
    ),
    "sglang": Flavour(_OF_VLLM, _WITH_DEFAULTS),
    "library": Flavour(num_seeds=2**31),
    "tgi": Flavour(),
}
"""The flavours by what `/v1/models` says of who owns a model; `library` is Ollama's word.

The chats of TGI are asked with `tgi`.
"""
OTHER_FLAVOUR = Flavour(_OF_VLLM)
"""A server that is not known is asked in vLLM's words, and may refuse them."""

Scoring = Literal["echo", "loglikelihood"]
"""The way to scores: prompts that are repeated with log-probabilities, or this fleet's own route."""


@dataclass(frozen=True)
class OpenAIFacts:
    """The facts that a server told of itself and of its `model` when it was asked at load.

    `echo_tokens` is the least `max_tokens` of a request that repeats its prompt. It is None where
    the server tells no log-probabilities of prompts. `scoring` is None where it gives no scores.
    """

    model: str
    owner: str = ""
    window: int | None = None
    completes: bool = True
    chats: bool = True
    echo_tokens: int | None = None
    scoring: Scoring | None = None

    @property
    def flavour(self) -> Flavour:
        return FLAVOURS.get(self.owner, OTHER_FLAVOUR)


async def ask_facts(upstream: Upstream, model: str | None) -> OpenAIFacts:
    """Return the facts of a server, and of its model of this name or its only one.

    Raise InvalidRequest where the model is not there, or is one of several; a FleetError, and
    Unanswered, where the server is.
    """
    listed = (await upstream.get("/v1/models", ModelList)).data
    names = [entry.id for entry in listed]
    known = ", ".join(names) or "none"
    if model is None and len(names) != 1:
        raise InvalidRequest(f"upstream_model: which of its models is to be asked? It has {known}.")
    if model is not None and model not in names:
        raise InvalidRequest(f"upstream_model: it has no model {model!r}; it has {known}.")

    chosen = listed[0] if model is None else listed[names.index(model)]
    facts = OpenAIFacts(
        chosen.id,
        chosen.owned_by,
        window=chosen.window,
        completes=await upstream.is_there(_COMPLETIONS),
        chats=await upstream.is_there(_CHAT),
    )
    if not facts.completes:
        return facts
    facts = await _with_echo(upstream, facts)
    if facts.owner == "aios" and await upstream.is_there("/loglikelihood"):
        facts = replace(facts, scoring="loglikelihood")
    return facts


async def _with_echo(upstream: Upstream, facts: OpenAIFacts) -> OpenAIFacts:
    """Return the facts with what the server says of a prompt's log-probabilities, by a trial."""
    # Older servers refuse an answer without a token.
    for num_tokens in (0, 1):
        trial = replace(facts, echo_tokens=num_tokens)
        try:
            echoed = await _echo(upstream, trial, _TRIAL, num_top=1)
        except FleetError:
            continue
        if len(echoed.ids) < 2 or not echoed.text.startswith(_TRIAL):
            continue
        # The first token has none anywhere, and a prefix-LM predicts no token of a prompt.
        are_predicted = all(entry.logprob is not None for entry in echoed.logprobs[1:])
        if are_predicted and await _reads_forwards(upstream, trial, echoed):
            return replace(trial, scoring="echo")
        return trial
    return facts


async def _reads_forwards(upstream: Upstream, facts: OpenAIFacts, echoed: "Echoed") -> bool:
    """Return whether what comes later changes nothing in the log-probabilities of the trial.

    vLLM reads a whole prompt of a prefix-LM bidirectionally, and tells values of tokens that were
    seen before they were predicted. Those are no scores.
    """
    longer = await _echo(upstream, facts, _LONGER_TRIAL, num_top=1)
    tokens = list(zip(echoed.ids, echoed.logprobs, strict=True))
    others = list(zip(longer.ids, longer.logprobs, strict=True))
    for (token, entry), (other, later) in zip(tokens, others, strict=False):
        if (token, entry.token) != (other, later.token):
            break
        if entry.logprob is None or later.logprob is None:
            continue
        if abs(entry.logprob - later.logprob) > _ROUNDING:
            return False
    return True


_TRIAL = "1 + 2 = 3"
_LONGER_TRIAL = f"{_TRIAL} and 3 + 4 = 7"
_ROUNDING = 0.5
"""The most that rounding in another batch changes a log-probability, with room for few bits."""


@dataclass(frozen=True)
class Question:
    """A task, and the body of the request for it where that is known beforehand."""

    task: Task
    body: Mapping[str, Any] = field(default_factory=dict)


def question_of(task: Task, facts: OpenAIFacts) -> Question:
    """Return a task as a question. Raise InvalidRequest for what the server cannot do."""
    if isinstance(task, Generate):
        return Question(task, _generating_body(task, facts))
    if isinstance(task, Score) and facts.scoring is not None:
        _check_score(task, facts.scoring)
        return Question(task)
    if isinstance(task, Read) and facts.echo_tokens is not None:
        _refuse_given(task, ("condition", "depth"))
        return Question(task)
    raise InvalidRequest("The engine elsewhere does no such task.", field="model")


def _check_score(task: Score, scoring: Scoring) -> None:
    _refuse_given(task, ("depth",))
    if scoring == "loglikelihood":
        texts = (task.context, *task.continuations)
        if not all(isinstance(text, str) for text in texts):
            raise InvalidRequest("Only texts are scored elsewhere, no token ids.", field="prompts")
        return
    _refuse_given(task, ("condition", "method"))
    if not task.context and not task.rolling:
        raise InvalidRequest("A score elsewhere needs a context.", field="prompts")
    for continuation in task.continuations:
        if not task.rolling and isinstance(continuation, str) != isinstance(task.context, str):
            raise InvalidRequest("Expected texts, or token ids, of both.", field="continuations")


def _refuse_given(task: Task, names: Sequence[str]) -> None:
    """Raise InvalidRequest where a task has a parameter of this fleet's own mechanisms."""
    for name in names:
        if getattr(task, name) is not None:
            raise InvalidRequest(f"{name}: an engine elsewhere does not have it.", field=name)


def _generating_body(task: Generate, facts: OpenAIFacts) -> dict[str, Any]:
    """Return the body of a request for an answer. Only what differs from a default is in it."""
    _refuse_given(task, ("condition", "depth"))
    flavour = facts.flavour
    body: dict[str, Any] = {
        "model": facts.model,
        "stream": True,
        "stream_options": {"include_usage": True},
        **_sampling_fields(task.sampling, flavour),
        **flavour.extra,
    }
    num_top = task.sampling.logprobs
    if isinstance(task.prompt, Chat):
        if not facts.chats:
            raise InvalidRequest("The engine elsewhere has no chats.", field="messages")
        body["messages"] = messages_of(task.prompt)
        if num_top is not None:
            body["logprobs"] = True
            body["top_logprobs"] = num_top
        return body

    if not facts.completes:
        raise InvalidRequest("The engine elsewhere has chats alone.", field="prompt")
    body["prompt"] = _wire_text(task.prompt)
    if num_top is not None:
        body["logprobs"] = num_top
    if task.max_prompt_tokens is not None:
        if not flavour.cuts_prompts:
            raise InvalidRequest("The engine elsewhere cuts no prompts.", field="prompt")
        body["truncate_prompt_tokens"] = task.max_prompt_tokens
    elif flavour.fits_prompts and task.overflow == "truncate":
        body["truncate_prompt_tokens"] = -1
    return body


def _sampling_fields(sampling: Sampling, flavour: Flavour) -> dict[str, Any]:
    """Return the parameters of sampling as a server of this flavour calls them.

    Raise InvalidRequest for one that it does not have.
    """
    sent: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed % flavour.num_seeds,
    }
    if sampling.stop:
        sent["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        sent["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    for name in ("n", "presence_penalty", "frequency_penalty"):
        value = getattr(sampling, name)
        if value != getattr(_NEUTRAL, name):
            sent[name] = value
    for name in _OF_VLLM:
        value = getattr(sampling, name)
        is_neutral = value == getattr(_NEUTRAL, name)
        if is_neutral and name not in flavour.always_sent:
            continue
        if name not in flavour.spellings:
            raise InvalidRequest(f"{name}: the engine elsewhere does not have it.", field=name)
        sent[flavour.spellings[name]] = value
    return sent


def messages_of(chat: Chat) -> list[dict[str, str]]:
    """Return the turns of a dialogue. Raise InvalidRequest for one that is not text alone."""
    return [{"role": turn.role, "content": text_of(turn)} for turn in chat.messages]


class OpenAIConnection:
    """The answers of one server in OpenAI's dialect."""

    def __init__(self, upstream: Upstream, facts: OpenAIFacts) -> None:
        self._upstream = upstream
        self._facts = facts

    async def check(self) -> None:
        """Raise Unanswered if the server does not answer at all."""
        await self._upstream.look("/v1/models")

    async def answer(self, question: Question) -> AsyncGenerator[Piece | Done]:
        """Yield pieces of an answer, and its end."""
        task = question.task
        if isinstance(task, Generate):
            async with aclosing(generated(self._upstream, task, question.body)) as news:
                async for arrived in news:
                    yield arrived
        elif isinstance(task, Score):
            yield await self._scored(task)
        elif isinstance(task, Read):
            echoed = await self._echoed(task.prompt, task.num_top)
            yield Piece(0, echoed.text, echoed.ids, echoed.logprobs, "read")
            yield Done("read", len(echoed.ids), 0)

    async def _scored(self, task: Score) -> Done:
        if self._facts.scoring == "loglikelihood":
            return await self._scored_by_fleet(task)
        num_given = 0
        if not task.rolling:
            # How a context is cut into tokens is known to the server alone.
            context = await self._echoed(task.context, num_top=1)
            num_given = len(context.ids)

        scores: list[ContinuationScore] = []
        num_tokens = num_given
        for continuation in task.continuations:
            echoed = await self._echoed(_joined(task.context, continuation), num_top=1)
            scores.append(_score_of(echoed.logprobs[num_given:]))
            num_tokens += len(echoed.ids) - num_given
        return Done("score", num_tokens, 0, result=Scored(tuple(scores)))

    async def _scored_by_fleet(self, task: Score) -> Done:
        """Return the scores of another fleet of ours, which knows how its models read."""
        body: dict[str, Any] = {"model": self._facts.model}
        if task.condition is not None:
            body["condition"] = task.condition
        if task.method is not None:
            body["scoring"] = task.method
        path = "/loglikelihood"
        if task.rolling:
            path = "/loglikelihood_rolling"
            body["prompts"] = list(task.continuations)
        else:
            body["prompts"] = [task.context] * len(task.continuations)
            body["continuations"] = list(task.continuations)
        answer = await self._upstream.post(path, body, LogLikelihoods)

        scores: list[ContinuationScore] = []
        for index, value in enumerate(answer.ll):
            is_greedy = index < len(answer.is_greedy) and answer.is_greedy[index]
            scores.append(ContinuationScore(value, answer.num_tokens[index], is_greedy))
        if len(scores) != len(task.continuations):
            raise UpstreamFailed("The engine elsewhere did not score all continuations.")
        return Done("score", sum(answer.num_tokens), 0, result=Scored(tuple(scores)))

    async def _echoed(self, prompt: Text, num_top: int) -> "Echoed":
        return await _echo(self._upstream, self._facts, prompt, num_top)


async def generated(
    upstream: Upstream, task: Generate, body: Mapping[str, Any]
) -> AsyncGenerator[Piece | Done]:
    """Yield the pieces of the answer to a body, and its end. A chat is one with `messages`."""
    num_top = task.sampling.logprobs
    reasons: dict[int, str] = {}
    usage: Usage | None = None
    num_pieces = 0
    chunks: AsyncGenerator[ChatChunk] | AsyncGenerator[Completion]
    if "messages" in body:
        chunks = upstream.stream(_CHAT, body, ChatChunk)
    else:
        chunks = upstream.stream(_COMPLETIONS, body, Completion)
    async with aclosing(chunks):
        async for chunk in chunks:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                if choice.finish_reason is not None:
                    reasons[choice.index] = _reason_of(choice.finish_reason)
                piece = _piece_of(choice, num_top)
                num_pieces += bool(piece.text or piece.ids)
                yield piece
    if len(reasons) < task.sampling.n:
        raise Unanswered("its answer has no end")
    yield _end(task, reasons, usage or Usage(completion_tokens=num_pieces))


def _end(task: Generate, reasons: Mapping[int, str], usage: Usage) -> Done:
    in_order = tuple(reasons[index] for index in sorted(reasons))
    details = usage.prompt_tokens_details
    num_cached = 0
    if details is not None:
        num_cached = details.cached_tokens or 0
    return Done(
        in_order[0],
        usage.prompt_tokens,
        usage.completion_tokens,
        num_cached_tokens=num_cached,
        result=Generated(in_order) if len(in_order) > 1 else None,
    )


def _reason_of(reason: str) -> str:
    """Return why a choice ended, in our words. Whatever is not known stopped it."""
    return reason if reason in _REASONS else "stop"


def _piece_of(choice: CompletionChoice | ChatChoice, num_top: int | None) -> Piece:
    """Return a choice of a chunk as a piece."""
    tokens: list[tuple[int, TokenLogprob]] = []
    if isinstance(choice, ChatChoice):
        text = choice.delta.content or ""
        if choice.logprobs is not None:
            tokens = _chat_tokens(choice.logprobs.content or [], num_top)
    else:
        text = choice.text
        if choice.logprobs is not None:
            tokens = _completion_tokens(choice.logprobs, num_top)

    ids = tuple(choice.token_ids or ())
    logprobs: tuple[TokenLogprob, ...] = ()
    if num_top is not None:
        logprobs = tuple(logprob for _, logprob in tokens)
    if logprobs and len(ids) != len(logprobs):
        ids = tuple(token for token, _ in tokens)
    logprobs = tuple(map(_with_id, ids, logprobs))
    return Piece(choice.index, text, ids, logprobs, choice.finish_reason)


def _with_id(token: int, logprob: TokenLogprob) -> TokenLogprob:
    """Return the log-probability of a token whose id stands among the likeliest, too."""
    top: list[tuple[int, str, float]] = []
    for other, text, value in logprob.top:
        is_chosen = other == UNKNOWN_ID and text == logprob.token
        top.append((token if is_chosen else other, text, value))
    return msgspec.structs.replace(logprob, top=tuple(top))


def _completion_tokens(
    logprobs: CompletionLogprobs, num_top: int | None
) -> list[tuple[int, TokenLogprob]]:
    """Return the ids of the tokens of a completion, and their log-probabilities."""
    if logprobs.content is not None:
        return _chat_tokens(logprobs.content, num_top)
    tokens: list[tuple[int, TokenLogprob]] = []
    for index, name in enumerate(logprobs.tokens):
        ranked: Mapping[str, float] = {}
        if logprobs.top_logprobs:
            ranked = logprobs.top_logprobs[index] or {}
        # The chosen token is among them even if it is none of the likeliest: then it is the last.
        names = sorted(ranked, key=lambda other: -ranked[other])[: num_top or 0]
        top: list[tuple[int, str, float]] = []
        for other in names:
            token, text = _named(other)
            top.append((token, text, ranked[other]))
        token, text = _named(name)
        tokens.append((token, TokenLogprob(logprobs.token_logprobs[index], text, tuple(top))))
    return tokens


def _chat_tokens(
    entries: Sequence[ChatLogprob], num_top: int | None
) -> list[tuple[int, TokenLogprob]]:
    """Return the ids of the tokens of a chat, and their log-probabilities."""
    tokens: list[tuple[int, TokenLogprob]] = []
    for entry in entries:
        top: list[tuple[int, str, float]] = []
        for other in (entry.top_logprobs or [])[: num_top or 0]:
            token, text = _named(other.token, other.id)
            if other.logprob is not None:
                top.append((token, text, other.logprob))
        token, text = _named(entry.token, entry.id)
        tokens.append((token, TokenLogprob(entry.logprob, text, tuple(top))))
    return tokens


def _named(name: str, token: int | None = None) -> tuple[int, str]:
    """Return the id of a token as far as it is told, and its text."""
    number = name.removeprefix(_ID_PREFIX)
    if number != name and number.isdecimal():
        return int(number), ""
    return UNKNOWN_ID if token is None else token, name


@dataclass(frozen=True)
class Echoed:
    """A prompt as a server repeats it: its tokens with their log-probabilities."""

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]


async def _echo(upstream: Upstream, facts: OpenAIFacts, prompt: Text, num_top: int) -> Echoed:
    """Return a prompt with its log-probabilities, and `num_top` of the likeliest tokens each."""
    body = {
        "model": facts.model,
        "prompt": _wire_text(prompt),
        "max_tokens": facts.echo_tokens,
        "temperature": 0.0,
        "echo": True,
        "logprobs": num_top,
    }
    answer = await upstream.post(_COMPLETIONS, body, Completion)
    logprobs = None
    text = ""
    for choice in answer.choices:
        logprobs = choice.logprobs
        text = choice.text
    if logprobs is None or answer.usage is None:
        raise UpstreamFailed("The engine elsewhere did not tell the tokens of a prompt.")
    tokens = _completion_tokens(logprobs, num_top)
    # A token of an answer, which older servers insist on, stands behind the prompt.
    tokens = tokens[: answer.usage.prompt_tokens]
    if facts.echo_tokens:
        text = "".join(logprob.token for _, logprob in tokens)
    return Echoed(
        text,
        tuple(token for token, _ in tokens),
        tuple(logprob for _, logprob in tokens),
    )


def _score_of(logprobs: Sequence[TokenLogprob]) -> ContinuationScore:
    """Return the score of the last tokens of a prompt."""
    values: list[float] = []
    is_greedy = True
    for entry in logprobs:
        if entry.logprob is None:  # the first token of a text
            continue
        values.append(entry.logprob)
        likeliest = max((value for _, _, value in entry.top), default=entry.logprob)
        is_greedy = is_greedy and entry.logprob >= likeliest
    return ContinuationScore(math.fsum(values), len(values), is_greedy)


def _joined(context: Text, continuation: Text) -> Text:
    if isinstance(context, str) and isinstance(continuation, str):
        return context + continuation
    return (*context, *continuation)


def _wire_text(text: Text) -> str | list[int]:
    return text if isinstance(text, str) else list(text)
