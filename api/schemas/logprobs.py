"""The `logprobs` object of completions: parallel lists over all tokens of a choice.

Tokens without a text of their own are among them: those that end the response, or are part of a
character. They are named `token_id:N`. So is a token of `top_logprobs` whose text a likelier one
has already.
"""

from collections.abc import Sequence

from pydantic import BaseModel, Field

from api.schemas.q_values import QValues, is_absent, q_values_of, segments_of
from shared.messages import UNKNOWN_ID, TokenLogprob


class Logprobs(BaseModel):
    """The log-probabilities of a choice's tokens.

    `text_offset` counts characters from the beginning of the text, with a stop string and what it
    cut off. Tokens of an echoed prompt that nothing predicts have null.

    For a model with a q head, `q_values` are those of the states that gave the tokens, and
    `act_segments` the ACT segments that it ran for them. Tokens of the prompt have null.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    q_values: list[QValues | None] | None = Field(default=None, exclude_if=is_absent)
    act_segments: list[int | None] | None = Field(default=None, exclude_if=is_absent)


def logprobs_body(
    ids: Sequence[int], logprobs: Sequence[TokenLogprob], offset: int = 0
) -> Logprobs | None:
    """Return the object for some tokens of a choice; None if they have no log-probabilities.

    `offset` is that of the first token, in characters.
    """
    if not logprobs or len(logprobs) != len(ids):
        return None
    body = Logprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for token, logprob in zip(ids, logprobs, strict=True):
        body.tokens.append(token_name(token, logprob.token))
        body.token_logprobs.append(logprob.logprob)
        body.top_logprobs.append(_top(token, logprob))
        body.text_offset.append(offset)
        offset += len(logprob.token)

    halts = [logprob.halt for logprob in logprobs]
    q_values = [q_values_of(halt) for halt in halts]
    segments = [segments_of(halt) for halt in halts]
    if any(q_values):
        body.q_values = q_values
    if any(segments):
        body.act_segments = segments
    return body


def _top(chosen: int, logprob: TokenLogprob) -> dict[str, float] | None:
    """Return the likeliest tokens with the chosen one, which need not be among them.

    The chosen token keeps its name where another one has the same text.
    """
    if logprob.logprob is None:
        return None
    named = {token_name(chosen, logprob.token): logprob.logprob}
    for token, text, value in logprob.top:
        # By their texts, too, as ids may be unknown.
        if (token, text) == (chosen, logprob.token):
            continue
        name = token_name(token, text)
        if name in named:
            name = f"token_id:{token}"
        named[name] = value
    return named


def token_name(token: int, text: str) -> str:
    """Return a token's text, or its id where it has no text of its own."""
    if token == UNKNOWN_ID:
        return text
    return text or f"token_id:{token}"
