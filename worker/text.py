"""From token ids to text that is certain: no half characters, no text that may turn out to be a
stop string."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_REPLACEMENT = "\ufffd"
"""What decoders write for bytes that are no character, or not one yet."""
_CONTEXT = 8
"""Tokens of a prompt before which its answer is decoded, if they have text."""
_WINDOW = 64
"""Tokens without any text behind which a window moves on all the same."""
_PARTS = 3
"""The most tokens of a character that is not complete: its last byte is missing."""


class TextStream:
    """Feed ids one by one with `push`; each call answers the text that became certain.

    The texts joined are what decoding `prompt_ids` and all the pushed ids together shows behind the
    prompt. The stop string that is complete first ends the text right before it, wherever token
    boundaries fall. `num_amended` U+FFFD at the prompt's end are a part of the text's first
    character.
    """

    def __init__(
        self, decode: Decode, stop: tuple[str, ...] = (), prompt_ids: Sequence[int] = ()
    ) -> None:
        self._decode = decode
        self._stop = stop
        # The ids from `_begin` on are decoded together. Up to `_seen` their text is `_known`, and
        # has been told. At `_moved` the window moved last.
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
        """Add a token; once a stop string was met nothing more comes. One met when it may not stop
        is plain text."""
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
        """The text that a token would add next, stop strings aside; nothing while a character is
        unfinished."""
        text = self._decode([*self._ids[self._begin :], token_id])
        if text.endswith(_REPLACEMENT):
            return ""
        return self._behind_known(text, [*self._ids[self._seen :], token_id])

    def flush(self) -> str:
        """The rest: what was held back as a possible stop string, and an unfinished character as
        U+FFFD."""
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
        """What `text`, of the known ids and `new_ids`, shows behind what is known.

        Where a decoder takes back what it showed before, the new ids are decoded alone.
        """
        told = self._still_true(text)
        if text.startswith(told):
            return text[len(told) :]
        return self._decode(new_ids)

    def _still_true(self, text: str) -> str:
        """The known text, less the character that the prompt ended in the middle of if that is
        whole now."""
        told = self._known
        while self._ends_in_part and told.endswith(_REPLACEMENT) and not text.startswith(told):
            told = told[:-1]
        if text.startswith(self._whole) and len(self._whole) > len(told):
            told = self._whole
        return told

    def _move(self, text: str) -> None:
        """Begin the window where the newest text begins, if that can be decoded by itself.

        Behind no text at all the next token would lose its space, behind half a character the other
        half would be lost.
        """
        self.num_amended += len(self._known) - len(self._still_true(text))
        newest = self._decode(self._ids[self._seen :])
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
        """What is certain with `new` behind what was held; a stop string that was complete before
        came too early."""
        text = self._held + new
        places = [
            (text.find(stop, max(0, len(self._held) - len(stop) + 1)), stop) for stop in self._stop
        ]
        found = [(start + len(stop), start) for start, stop in places if start >= 0]
        if found and may_stop:
            self.is_stopped = True
            self._held = ""
            return text[: min(found)[1]]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


def _context(decode: Decode, ids: Sequence[int]) -> Sequence[int]:
    """The last of `ids`: enough that they have text, and do not begin in the middle of a
    character."""
    size = _CONTEXT
    while size < len(ids):
        text = decode(ids[-size:])
        if text.strip() and not text.startswith(_REPLACEMENT):
            return ids[-size:]
        size += 1 if size < 2 * _CONTEXT else size
    return ids


def _without_part(decode: Decode, ids: Sequence[int]) -> str:
    """The text of `ids` without the character in the middle of which they end, as far as one can
    tell."""
    for count in range(1, min(_PARTS, len(ids)) + 1):
        text = decode(ids[: len(ids) - count])
        if not text.endswith(_REPLACEMENT):
            return text
    return ""
