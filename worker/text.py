"""From token ids to text that is certain: no half characters, no text that may turn out to be a stop string."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]


class TextStream:
    """Feed ids one by one with `push`; each call answers the text that became certain.

    The stop string that is complete first ends the text right before it, wherever token boundaries fall.
    """

    def __init__(self, decode: Decode, stop: tuple[str, ...] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._ids: list[int] = []
        self._clean = 0
        self._seen = 0
        self._held = ""
        self.is_stopped = False

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """Add a token; once a stop string was met nothing more comes. One met when it may not stop is plain text."""
        if self.is_stopped:
            return ""
        self._ids.append(token_id)
        known = self._decode(self._ids[self._clean : self._seen])
        text = self._decode(self._ids[self._clean :])
        if text.endswith("\ufffd"):
            return ""
        self._clean, self._seen = self._seen, len(self._ids)
        return self._release(text[len(known) :], may_stop)

    def peek(self, token_id: int) -> str:
        """The text that a token would add next, stop strings aside; nothing while a character is unfinished."""
        known = self._decode(self._ids[self._clean : self._seen])
        text = self._decode([*self._ids[self._clean :], token_id])
        return "" if text.endswith("\ufffd") else text[len(known) :]

    def flush(self) -> str:
        """The rest: what was held back as a possible stop string, and an unfinished character as U+FFFD."""
        if self.is_stopped:
            return ""
        known = self._decode(self._ids[self._clean : self._seen])
        rest = self._decode(self._ids[self._clean :])[len(known) :]
        self._clean = self._seen = len(self._ids)
        text = self._release(rest, may_stop=True)
        held, self._held = self._held, ""
        return text + held

    def _release(self, new: str, may_stop: bool) -> str:
        """What is certain with `new` behind what was held; a stop string that was complete before came too early."""
        text = self._held + new
        places = [(text.find(stop, max(0, len(self._held) - len(stop) + 1)), stop) for stop in self._stop]
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
