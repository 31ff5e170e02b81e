"""The scoring of whole texts of any length.

A text that is too long for the context window is cut into several windows, whose scores are added.
Every token is predicted once. This is plain Python over token ids. The runner of a model family
chooses one of the three forms.
"""

from collections.abc import Sequence
from dataclasses import replace

from shared.errors import InvalidRequest
from worker.engine.sequence import Encoded

Ids = tuple[int, ...]


def encode_rolling(start: Ids, text: Ids, window: int) -> Encoded:
    """Cut a text into disjoint windows, as lm-evaluation-harness does with one token of context.

    The context of the first window is `start`. That of later windows is the text's own token before
    them. The last window has as much context as fits.
    """
    _check(start, text)
    # One token more than the context window, because a window's last token is predicted and never
    # read.
    room = window + 1
    windows: list[Encoded] = []
    for shown, begin, end in _spans(len(text), room - len(start), room):
        context = text[shown:begin] or start
        windows.append(Encoded(context, continuations=(text[begin:end],)))
    return _join(windows)


def encode_rolling_response(start: Ids, text: Ids, window: int) -> Encoded:
    """Cut a text that is a response to the prompt `start`, which stands before every window.

    The response of a later window begins with tokens before it, which are given and not scored.
    """
    _check(start, text)
    room = window + 1 - len(start)
    windows: list[Encoded] = []
    for shown, begin, end in _spans(len(text), room, room):
        windows.append(Encoded(start, continuations=(text[shown:end],), num_given=begin - shown))
    return _join(windows)


def encode_stretches(start: Ids, text: Ids, window: int, *, size: int) -> Encoded:
    """Cut a text into stretches of `size` tokens, each with all the context that fits.

    This form is for models that compute the context again for each token.
    """
    _check(start, text)
    whole = (*start, *text)
    windows: list[Encoded] = []
    for begin in range(len(start), len(whole), size):
        context = whole[max(0, begin - window) : begin]
        windows.append(Encoded(context, continuations=(whole[begin : begin + size],)))
    return _join(windows)


def _check(start: Ids, text: Ids) -> None:
    """Raise InvalidRequest for a text without tokens, or a model without a start token."""
    if not text:
        raise InvalidRequest("The text has no tokens.", field="prompts")
    if not start:
        raise InvalidRequest(
            "The model has no start token, so nothing predicts the first token.", field="prompts"
        )


def _spans(num_tokens: int, first: int, later: int) -> list[tuple[int, int, int]]:
    """Return (begin of the context, begin of the scored tokens, end) of each window.

    The first window scores `first` tokens. Each other window has `later` tokens, of which at least
    the first one is context.
    """
    begin = min(first, num_tokens)
    spans = [(0, 0, begin)]
    while begin < num_tokens:
        end = min(num_tokens, begin + later - 1)
        spans.append((max(0, end - later), begin, end))
        begin = end
    return spans


def _join(windows: Sequence[Encoded]) -> Encoded:
    """Return the first window, with the others as its `windows`."""
    first, *others = windows
    return replace(first, windows=tuple(others))
