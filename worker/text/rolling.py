"""The whole of a text as a task. A text too long for the context window becomes several windows,
whose scores add up.

Every token is predicted once. Plain Python over token ids. A model family's runner chooses the
form.
"""

from collections.abc import Sequence
from dataclasses import replace

from shared.errors import InvalidRequest
from worker.engine.sequence import Encoded

Ids = tuple[int, ...]


def encode_rolling(start: Ids, text: Ids, window: int) -> Encoded:
    """Cut a text into disjoint windows, as lm-evaluation-harness does with one token of context.

    The first window follows `start`. Later ones follow the text's own token before them; the last
    one reaches back as far as the context window does.
    """
    _check(start, text)
    # One more than the context window: a window's last token is predicted and never read, so it
    # needs no room.
    room = window + 1
    windows: list[Encoded] = []
    for shown, begin, end in _spans(len(text), room - len(start), room):
        context = text[shown:begin] or start
        windows.append(Encoded(context, continuations=(text[begin:end],)))
    return _join(windows)


def encode_rolling_response(start: Ids, text: Ids, window: int) -> Encoded:
    """Cut a text that is a response: `start`, the prompt, stands before every window.

    A later window is given the tokens before it as the beginning of the response.
    """
    _check(start, text)
    room = window + 1 - len(start)
    windows: list[Encoded] = []
    for shown, begin, end in _spans(len(text), room, room):
        windows.append(Encoded(start, continuations=(text[shown:end],), num_given=begin - shown))
    return _join(windows)


def encode_stretches(start: Ids, text: Ids, window: int, *, size: int) -> Encoded:
    """Cut a text into stretches of `size` tokens, each with all the context that fits.

    For models that read the context again for each token.
    """
    _check(start, text)
    whole = (*start, *text)
    windows: list[Encoded] = []
    for begin in range(len(start), len(whole), size):
        context = whole[max(0, begin - window) : begin]
        windows.append(Encoded(context, continuations=(whole[begin : begin + size],)))
    return _join(windows)


def _check(start: Ids, text: Ids) -> None:
    if not text:
        raise InvalidRequest("The text has no tokens.", field="prompts")
    if not start:
        raise InvalidRequest(
            "The model has no start token, so nothing predicts the first token.", field="prompts"
        )


def _spans(num_tokens: int, first: int, later: int) -> list[tuple[int, int, int]]:
    """Return (shown from, scored from, end) of each window.

    The first window scores `first` tokens. The others show `later` tokens, of which at least one is
    not scored.
    """
    begin = min(first, num_tokens)
    spans = [(0, 0, begin)]
    while begin < num_tokens:
        end = min(num_tokens, begin + later - 1)
        spans.append((max(0, end - later), begin, end))
        begin = end
    return spans


def _join(windows: Sequence[Encoded]) -> Encoded:
    """Return the first window, with the others as its own."""
    first, *others = windows
    return replace(first, windows=tuple(others))
