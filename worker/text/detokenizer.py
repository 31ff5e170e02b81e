"""The text of token ids as far as it is certain: no half characters, and nothing that may turn out
to be a stop string."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_REPLACEMENT = "\ufffd"
"""The character that decoders write for bytes that are no character, or not one yet."""
_CONTEXT = 8
"""The last tokens of a prompt that its answer is decoded with, if they have text."""
_WINDOW = 64
"""The tokens without any text after which a window moves on all the same."""
_PARTS = 3
"""The most tokens of a character that is not complete: its last byte is missing."""


class TextStream:
    """A text that grows with its tokens: `push` takes the ids one by one, and returns the text that
    became certain.

    The texts joined are the same as decoding `prompt_ids` and all the pushed ids together shows
    behind the prompt. The stop string that is complete first ends the text right before it,
    wherever token boundaries fall. `num_amended` U+FFFD at the prompt's end are a part of the
    text's first character.
    """

    def __init__(
        self, decode: Decode, stop: tuple[str, ...] = (), prompt_ids: Sequence[int] = ()
    ) -> None:
        self._decode = decode
        self._stop = stop
        # The ids from `_begin` on are decoded together. Up to `_seen` their text is `_known`, and
        # has been returned. At `_moved` the window moved last.
        self._ids = list(_context(decode, prompt_ids))
        self._begin = 0
        self._seen = len(self._ids)
        self._moved = self._seen
        self._known = decode(self._ids) if self._ids else ""
        # A prompt that ends in the middle of a character: its text up to there.
        self._ends_in_part = self._known.endswith(_REPLACEMENT)
        self._whole = _without_part(decode, self._ids) if self._ends_in_part else self._known
        self._held = ""
        self.num_amended = 0
        self.is_stopped = False

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """Add a token. Once a stop string was met nothing more comes; one that is met when it may
        not stop is plain text."""
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
        """Return the text that a token would add next, stop strings aside; nothing while a
        character is unfinished."""
        text = self._decode([*self._ids[self._begin :], token_id])
        if text.endswith(_REPLACEMENT):
            return ""
        return self._behind_known(text, [*self._ids[self._seen :], token_id])

    def flush(self) -> str:
        """Return the rest: the text that was held back as a possible stop string, and an unfinished
        character as U+FFFD."""
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
        """Return the part of `text`, which is of the known ids and `new_ids`, behind the known
        text."""
        known = self._still_true(text)
        if text.startswith(known):
            return text[len(known) :]
        # A decoder that takes back text which it showed before: the new ids are decoded alone.
        return self._decode(new_ids)

    def _still_true(self, text: str) -> str:
        """Return the known text, less the character that the prompt ended in the middle of if that
        is whole now."""
        known = self._known
        while self._ends_in_part and known.endswith(_REPLACEMENT) and not text.startswith(known):
            known = known[:-1]
        if text.startswith(self._whole) and len(self._whole) > len(known):
            known = self._whole
        return known

    def _move(self, text: str) -> None:
        """Begin the window where the newest text begins, if that can be decoded by itself."""
        self.num_amended += len(self._known) - len(self._still_true(text))
        newest = self._decode(self._ids[self._seen :])
        # Behind no text at all the next token would lose its space; behind half a character the
        # other half would be lost.
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
                # One that was complete before `new` came when it might not stop.
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
    """Return the last of `ids`: enough that they have text, and do not begin in the middle of a
    character."""
    size = _CONTEXT
    while size < len(ids):
        text = decode(ids[-size:])
        if text.strip() and not text.startswith(_REPLACEMENT):
            return ids[-size:]
        # One by one at first, for half a character; then it is a long run without text.
        if size < 2 * _CONTEXT:
            size += 1
        else:
            size *= 2
    return ids


def _without_part(decode: Decode, ids: Sequence[int]) -> str:
    """Return the text of `ids` without the character in the middle of which they end, as far as one
    can tell."""
    for count in range(1, min(_PARTS, len(ids)) + 1):
        text = decode(ids[: len(ids) - count])
        if not text.endswith(_REPLACEMENT):
            return text
    return ""
