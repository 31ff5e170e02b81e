"""The text of token ids as far as it is certain.

A text is not certain while a character is incomplete, or while its end may be the beginning of a
stop string.
"""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_REPLACEMENT = "\ufffd"
"""The character that decoders write for bytes that are no character, or an incomplete one."""
_CONTEXT = 8
"""The number of the prompt's last tokens that the answer is decoded with, if they have text."""
_WINDOW = 64
"""The number of tokens without any text after which the window moves nevertheless."""
_PARTS = 3
"""The largest number of tokens of an incomplete character: of at most 4 bytes one is missing."""


class TextStream:
    """A text that grows token by token. `push` takes an id and returns the text that is certain.

    The returned texts together are the text behind the prompt when `prompt_ids` and all pushed ids
    are decoded at once. The stop string that is complete first ends the text right before itself,
    wherever token boundaries fall. `num_amended` is the number of U+FFFD at the end of the prompt's
    text that stand for a part of the answer's first character.
    """

    def __init__(
        self, decode: Decode, stop: tuple[str, ...] = (), prompt_ids: Sequence[int] = ()
    ) -> None:
        self._decode = decode
        self._stop = stop
        # The window is the ids from `_begin` on, which are decoded together. `_known` is the text
        # of those up to `_seen`, which has been returned. `_moved` is the number of ids when the
        # window moved last.
        self._ids = list(_context(decode, prompt_ids))
        self._begin = 0
        self._seen = len(self._ids)
        self._moved = self._seen
        self._known = decode(self._ids) if self._ids else ""
        # A prompt may end in the middle of a character. `_whole` is its text before that character.
        self._ends_in_part = self._known.endswith(_REPLACEMENT)
        self._whole = self._known
        if self._ends_in_part:
            self._whole = _without_part(decode, self._ids)
        # The text that may be the beginning of a stop string.
        self._held = ""
        self.num_amended = 0
        self.is_stopped = False

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """Add a token. Return the text that became certain.

        Return nothing once a stop string has ended the text. A stop string that is complete while
        `may_stop` is False is plain text.
        """
        if self.is_stopped:
            return ""
        self._ids.append(token_id)
        text = self._decode(self._ids[self._begin :])
        if text.endswith(_REPLACEMENT):
            return ""
        new = self._behind_known(text, self._ids[self._seen :])
        self._move(text)
        return self._release(new, may_stop)

    def peek(self, token_id: int) -> str:
        """Return the text that a token would add next, stop strings aside.

        Return nothing while a character is incomplete.
        """
        text = self._decode([*self._ids[self._begin :], token_id])
        if text.endswith(_REPLACEMENT):
            return ""
        return self._behind_known(text, [*self._ids[self._seen :], token_id])

    def flush(self) -> str:
        """Return the rest of the text.

        It is the text that was held back as the possible beginning of a stop string, and an
        incomplete character as U+FFFD.
        """
        if self.is_stopped:
            return ""
        rest = ""
        if self._seen < len(self._ids):
            text = self._decode(self._ids[self._begin :])
            rest = self._behind_known(text, self._ids[self._seen :])
            self._move(text)
        text = self._release(rest, may_stop=True)
        held = self._held
        self._held = ""
        return text + held

    def _behind_known(self, text: str, new_ids: Sequence[int]) -> str:
        """Return the part of `text` behind the known text.

        `text` is that of the whole window, at whose end are `new_ids`.
        """
        known = self._known_in(text)
        if text.startswith(known):
            return text[len(known) :]
        # The decoder has changed text that it gave before, so the new ids are decoded alone.
        return self._decode(new_ids)

    def _known_in(self, text: str) -> str:
        """Return the known text, less the prompt's incomplete character if `text` completes it."""
        known = self._known
        while self._ends_in_part and known.endswith(_REPLACEMENT) and not text.startswith(known):
            known = known[:-1]
        if text.startswith(self._whole) and len(self._whole) > len(known):
            known = self._whole
        return known

    def _move(self, text: str) -> None:
        """Note the window's `text` as known.

        Let the window begin with the newest ids, if these can be decoded by themselves.
        """
        self.num_amended += len(self._known) - len(self._known_in(text))
        newest = self._decode(self._ids[self._seen :])
        # In a window without text the next token would lose its space. In one that begins in the
        # middle of a character, that character would be lost.
        stands_alone = newest != "" and not newest.startswith(_REPLACEMENT)
        if stands_alone or len(self._ids) - self._moved > _WINDOW:
            self._begin = self._seen
            self._moved = len(self._ids)
            text = newest
        self._seen = len(self._ids)
        self._known = text
        self._whole = text
        self._ends_in_part = False

    def _release(self, new: str, may_stop: bool) -> str:
        """Return the text that is certain with `new` behind the text that was held back."""
        text = self._held + new
        if may_stop:
            # (end, start) of each stop string that is complete.
            matches: list[tuple[int, int]] = []
            for stop in self._stop:
                # A stop string that was complete before `new` was complete while it might not stop,
                # so it is not searched for.
                start = text.find(stop, max(0, len(self._held) - len(stop) + 1))
                if start >= 0:
                    matches.append((start + len(stop), start))
            if matches:
                self.is_stopped = True
                self._held = ""
                _, start = min(matches)
                return text[:start]

        num_held = 0
        for stop in self._stop:
            num_held = max(num_held, _overlap(text, stop))
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


def _context(decode: Decode, ids: Sequence[int]) -> Sequence[int]:
    """Return the last of `ids`, as the context of an answer.

    They are enough ids to have text and to begin with a whole character.
    """
    size = _CONTEXT
    while size < len(ids):
        text = decode(ids[-size:])
        if text.strip() and not text.startswith(_REPLACEMENT):
            return ids[-size:]
        # At first one more at a time, to complete a character. Later this is a long run without
        # text.
        if size < 2 * _CONTEXT:
            size += 1
        else:
            size *= 2
    return ids


def _without_part(decode: Decode, ids: Sequence[int]) -> str:
    """Return the text of `ids` without the incomplete character at their end.

    Return an empty text if that character cannot be removed with the last `_PARTS` ids.
    """
    for count in range(1, min(_PARTS, len(ids)) + 1):
        text = decode(ids[: len(ids) - count])
        if not text.endswith(_REPLACEMENT):
            return text
    return ""
