"""The `logprobs` object of completions: parallel lists over all tokens of a choice, those without
text included.

A token that adds no text by itself - it ends the response, or is part of a character - is named
`token_id:N`; so is a rival whose text a likelier one has already.
"""

from collections.abc import Sequence

from pydantic import BaseModel

from shared.messages import TokenLogprob


class Logprobs(BaseModel):
    """`text_offset` counts characters from the text's beginning, a stop string and what it cut off
    included. Tokens of an echoed prompt that nothing predicts have null."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


def logprobs_body(
    ids: Sequence[int], logprobs: Sequence[TokenLogprob], offset: int = 0
) -> Logprobs | None:
    """The object for some tokens of a choice, the first of them at `offset`; None if they have no
    log-probabilities."""
    if not logprobs or len(logprobs) != len(ids):
        return None
    offsets = []
    for item in logprobs:
        offsets.append(offset)
        offset += len(item.token)
    return Logprobs(
        tokens=[_name(token, item.token) for token, item in zip(ids, logprobs, strict=True)],
        token_logprobs=[item.logprob for item in logprobs],
        top_logprobs=[_top(token, item) for token, item in zip(ids, logprobs, strict=True)],
        text_offset=offsets,
    )


def _top(chosen: int, item: TokenLogprob) -> dict[str, float] | None:
    """The likeliest tokens, and the chosen one, which need not be among them; it keeps its name."""
    if item.logprob is None:
        return None
    named = {_name(chosen, item.token): item.logprob}
    for token, text, value in item.top:
        if token != chosen:
            name = _name(token, text)
            named[f"token_id:{token}" if name in named else name] = value
    return named


def _name(token: int, text: str) -> str:
    return text or f"token_id:{token}"
