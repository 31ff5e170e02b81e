"""The answers of the Python interface. The names are vLLM's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.messages import Done, TokenLogprob
from worker.engine.request import Emission


@dataclass(frozen=True)
class Logprob:
    """The log-probability (nats) of a token at one position, and the text that it adds there.

    `rank` 1 is the likeliest token; None is a chosen token that is not among the likeliest.
    """

    logprob: float
    rank: int | None
    decoded_token: str


Logprobs = list[dict[int, Logprob]]
"""For each token of an answer: the chosen one and the likeliest ones, by their ids."""


@dataclass(frozen=True)
class CompletionOutput:
    """One answer.

    `finish_reason` is `stop` or `length`. `logprobs` and `cumulative_logprob` (nats) are None where
    the parameters do not ask for them. `q_values` are q_halt and q_continue of the state that gave
    the last token; they are None for a model without a q head.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: Logprobs | None = None
    cumulative_logprob: float | None = None
    q_values: tuple[float, float] | None = None


@dataclass(frozen=True)
class RequestOutput:
    """A prompt and its `n` answers. `prompt` is None where it was given as ids or as a dialogue.

    `prompt_token_ids` are the ids that were read. For the first `num_cached_tokens` of them the
    keys and values had been computed before.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0


@dataclass(frozen=True)
class StreamChunk:
    """The part that a step adds to the answer `index`.

    `token_ids` are the new tokens, and `text` is the text that became certain with them. Either may
    be empty. `finish_reason` is set in the last chunk of an answer.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


@dataclass
class _Draft:
    """An answer that is still being written."""

    texts: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str = ""


class Answers:
    """The `n` answers to a prompt, gathered from the emissions of steps until all have ended."""

    def __init__(
        self, request_id: str, prompt: str | None, prompt_ids: tuple[int, ...], n: int
    ) -> None:
        self._request_id = request_id
        self._prompt = prompt
        self._prompt_ids = prompt_ids
        self._drafts = [_Draft() for _ in range(n)]

    def add(self, emission: Emission) -> None:
        """Add the tokens and the text of an emission to its answer."""
        draft = self._drafts[emission.choice]
        draft.texts.append(emission.text)
        draft.ids += emission.ids
        draft.logprobs += emission.logprobs
        if emission.finish_reason is not None:
            draft.finish_reason = emission.finish_reason

    def whole(self, done: Done) -> RequestOutput:
        """Return the finished answers. `done` is the end of their task."""
        outputs = [_completion(index, draft, done) for index, draft in enumerate(self._drafts)]
        return RequestOutput(
            self._request_id, self._prompt, self._prompt_ids, outputs, done.num_cached_tokens
        )


def chunk_of(emission: Emission) -> StreamChunk:
    """Return an emission as a chunk of its answer."""
    return StreamChunk(
        emission.choice,
        emission.text,
        emission.ids,
        logprobs=_logprobs(emission.ids, emission.logprobs),
        finish_reason=emission.finish_reason,
    )


def _completion(index: int, draft: _Draft, done: Done) -> CompletionOutput:
    logprobs = _logprobs(draft.ids, draft.logprobs)
    total = None
    if logprobs is not None:
        values: list[float] = []
        for entry in draft.logprobs:
            if entry.logprob is not None:
                values.append(entry.logprob)
        total = math.fsum(values)

    q_values = None
    if done.generated.q_values:
        q_values = done.generated.q_values[index]
    return CompletionOutput(
        index,
        "".join(draft.texts),
        tuple(draft.ids),
        finish_reason=draft.finish_reason,
        logprobs=logprobs,
        cumulative_logprob=total,
        q_values=q_values,
    )


def _logprobs(ids: Sequence[int], entries: Sequence[TokenLogprob]) -> Logprobs | None:
    if not entries:
        return None
    return [_table(token, entry) for token, entry in zip(ids, entries, strict=True)]


def _table(chosen: int, entry: TokenLogprob) -> dict[int, Logprob]:
    table: dict[int, Logprob] = {}
    # A chosen token that is among the likeliest is overwritten below, with its rank.
    if entry.logprob is not None:
        table[chosen] = Logprob(entry.logprob, rank=None, decoded_token=entry.token)
    for rank, (token, text, value) in enumerate(entry.top, start=1):
        table[token] = Logprob(value, rank=rank, decoded_token=text)
    return table
