"""Turn the payloads of a stream into bytes: events, events with names, or nothing but the text.

Every block of an event stream has data, because some clients take a block without data for an
event, and fail. So `retry:` and `id:` stand in the block of a frame, and no blank line follows a
comment or the last words of a front that drains.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

_RETRY = b"retry: 1000\n"
_KEEP_ALIVE = b": keep-alive\n"
_RECONNECT = b"retry: 100\n: reconnect\n"


@dataclass(frozen=True)
class NamedEvent:
    """A payload that is an event with a name."""

    name: str
    data: Any


@dataclass(frozen=True)
class StreamFormat:
    """The format of a stream.

    `frame` makes bytes of a payload and of the frame's id, "" for none. A reader can ask for what
    comes behind that id. A format without `tells_errors`, such as bare text, has no form for an
    error: the connection breaks instead.
    """

    frame: Callable[[Any, str], bytes]
    end: bytes = b""
    media_type: str = "text/event-stream"
    opening: bytes = _RETRY
    keep_alive: bytes = _KEEP_ALIVE
    reconnect: bytes = _RECONNECT
    tells_errors: bool = True


def _event(payload: Any, id: str) -> bytes:
    """Return the event of a payload, with its name if it is a NamedEvent."""
    head = ""
    data = payload
    if isinstance(payload, NamedEvent):
        head += f"event: {payload.name}\n"
        data = payload.data
    if id:
        head += f"id: {id}\n"
    return head.encode() + b"data: " + msgspec.json.encode(data) + b"\n\n"


def _text(payload: Any, id: str) -> bytes:
    text: str = payload.get("text", "")
    return text.encode()


EVENTS = StreamFormat(_event)
EVENTS_WITH_DONE = StreamFormat(_event, end=b"data: [DONE]\n\n")
TEXT = StreamFormat(
    _text,
    media_type="text/plain; charset=utf-8",
    opening=b"",
    keep_alive=b"",
    reconnect=b"",
    tells_errors=False,
)
"""The format of payloads that are objects with a `text`."""
