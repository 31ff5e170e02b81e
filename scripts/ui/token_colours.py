"""Tokens coloured by how likely the model found them, drawn without trust in their texts."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scripts.ui.client import Body


@dataclass(frozen=True)
class Token:
    """A token with its log-probability in nats, and the likeliest tokens in its place.

    The text of one without a text of its own is `token_id:N`. `logprob` is None for a token that
    the model was given, and did not predict. `q_values` are those of the q head, by their names, and
    `segments` the ACT segments that ran for the token: {} and None for a model without them.
    """

    text: str
    logprob: float | None = None
    top: Mapping[str, float] = field(default_factory=dict)
    q_values: Mapping[str, float] = field(default_factory=dict)
    segments: int | None = None

    @property
    def probability(self) -> float | None:
        return None if self.logprob is None else math.exp(self.logprob)


@dataclass(frozen=True)
class Level:
    """A step of the scale: probabilities from `least` up.

    The line below a token has a width as well as a colour, for those who do not see the colour.
    """

    name: str
    least: float
    opacity: float
    line_px: int


LEVELS = (
    Level("90 % and more", least=0.9, opacity=0.0, line_px=0),
    Level("50 to 90 %", least=0.5, opacity=0.14, line_px=1),
    Level("10 to 50 %", least=0.1, opacity=0.28, line_px=2),
    Level("1 to 10 %", least=0.01, opacity=0.42, line_px=3),
    Level("below 1 %", least=0.0, opacity=0.56, line_px=5),
)
"""The scale, from the surest to the least likely."""

_BLOCK = "white-space: pre-wrap; overflow-wrap: anywhere; line-height: 2"
_GIVEN = "opacity: .7; font-style: italic"
_UNNAMED = "font-size: .75em"
_KEY = "padding: 0 .4em; display: inline-block; white-space: nowrap"
_ID = "token_id:"


def tokens_of(logprobs: Body | None) -> list[Token]:
    """Return the tokens of a `logprobs` object of completions."""
    if not logprobs:
        return []
    texts = logprobs["tokens"]
    nothing = [None] * len(texts)
    tokens = []
    for text, logprob, top, q_values, segments in zip(
        texts,
        logprobs["token_logprobs"],
        logprobs["top_logprobs"],
        logprobs.get("q_values", nothing),
        logprobs.get("act_segments", nothing),
        strict=True,
    ):
        tokens.append(Token(text, logprob, top or {}, q_values or {}, segments))
    return tokens


def level_of(probability: float) -> Level:
    """Return the step of the scale to which a probability belongs."""
    for level in LEVELS:
        if probability >= level.least:
            return level
    raise AssertionError(f"{probability} is no probability")


def coloured(tokens: Sequence[Token]) -> str:
    """Return a block of HTML with the tokens; each tells its value to a pointer above it."""
    spans = []
    for token in tokens:
        style = _GIVEN
        if token.probability is not None:
            style = _style(level_of(token.probability))
        if token.text.startswith(_ID):
            style += f"; {_UNNAMED}"
        title = html.escape(title_of(token))
        spans.append(f'<span style="{style}" title="{title}">{_shown(token.text)}</span>')
    return f'<div style="{_BLOCK}">{"".join(spans)}</div>'


def legend() -> str:
    """Return a line of HTML that explains the scale."""
    spans = []
    for level in LEVELS:
        spans.append(f'<span style="{_style(level)}; {_KEY}">{level.name}</span>')
    return f'<div style="line-height: 2; font-size: .85em">{" ".join(spans)}</div>'


def title_of(token: Token) -> str:
    """Return what there is to say of a token, a line for each alternative."""
    if token.logprob is None or token.probability is None:
        return "given, not predicted"
    lines = [f"{nats(token.logprob)}, {percent(token.probability)}"]
    likeliest = sorted(token.top.items(), key=lambda pair: pair[1], reverse=True)
    for text, logprob in likeliest:
        lines.append(f"{text!r} {percent(math.exp(logprob))}")
    return "\n".join(lines)


def nats(value: float) -> str:
    if abs(value) < 0.001:
        return f"{value:.1e} nats"
    return f"{value:.3f} nats"


def percent(probability: float) -> str:
    return f"{100 * probability:.3g} %"


def total(tokens: Sequence[Token]) -> float:
    """Return the sum of the log-probabilities that are known."""
    return sum(token.logprob for token in tokens if token.logprob is not None)


def _style(level: Level) -> str:
    return (
        f"background: rgba(214, 96, 32, {level.opacity}); "
        f"border-bottom: {level.line_px}px solid rgba(214, 96, 32, .9)"
    )


def _shown(text: str) -> str:
    """Return the text of a token as HTML. The end of a line is seen, and ends it."""
    return html.escape(text).replace("\n", "\u21b5\n")
