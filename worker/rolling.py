"""The whole of a text as a task: if it is too long for the context window, as windows whose scores
add up.

Every token is predicted once. Plain Python over token ids; which form a model family uses is its
runner's affair.
"""

from collections.abc import Iterable
from dataclasses import replace

from shared.errors import InvalidRequest
from worker.sequence import Encoded

Ids = tuple[int, ...]


def encode_rolling(start: Ids, text: Ids, window: int) -> Encoded:
    """Disjoint windows, as lm-evaluation-harness cuts them with one token of context.

    The first follows `start`. Later ones follow the text's own token before them; the last one
    reaches back as far as the context window does. A window's last token is predicted and never
    read, so it needs no room.
    """
    _check(start, text)
    spans = _spans(len(text), window + 1 - len(start), window + 1)
    return _join(
        Encoded(text[shown:begin] or start, continuations=(text[begin:end],))
        for shown, begin, end in spans
    )


def encode_rolling_response(start: Ids, text: Ids, window: int) -> Encoded:
    """The same for a text that is a response: `start`, the prompt, stands before every window.

    Of later windows the tokens before them are given as the beginning of the response.
    """
    _check(start, text)
    room = window + 1 - len(start)
    spans = _spans(len(text), room, room)
    return _join(
        Encoded(start, continuations=(text[shown:end],), num_given=begin - shown)
        for shown, begin, end in spans
    )


def encode_stretches(start: Ids, text: Ids, window: int, *, size: int) -> Encoded:
    """Stretches of `size` tokens, each token with all the context that fits: for models that read
    it again for each."""
    _check(start, text)
    whole = (*start, *text)
    begins = range(len(start), len(whole), size)
    return _join(
        Encoded(whole[max(0, at - window) : at], continuations=(whole[at : at + size],))
        for at in begins
    )


def _check(start: Ids, text: Ids) -> None:
    if not text:
        raise InvalidRequest("The text has no tokens.", field="prompts")
    if not start:
        raise InvalidRequest(
            "The model has no start token, so nothing predicts the first token.", field="prompts"
        )


def _spans(num_tokens: int, first: int, later: int) -> list[tuple[int, int, int]]:
    """(shown from, scored from, end) of each window. The first scores `first` tokens, the others
    show `later` of which at least one is not scored."""
    spans = [(0, 0, min(first, num_tokens))]
    while (begin := spans[-1][2]) < num_tokens:
        end = min(num_tokens, begin + later - 1)
        spans.append((max(0, end - later), begin, end))
    return spans


def _join(windows: Iterable[Encoded]) -> Encoded:
    first, *others = windows
    return replace(first, windows=tuple(others))
