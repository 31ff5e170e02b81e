"""From the payloads of a stream to its bytes: events with a payload each, events with names, or
nothing but the text.

Every block of events has data: some clients take one without for an event, and fail. So `retry:`
and `id:` stand in the block of a frame, and no blank line follows a comment or the last words of a
front that drains.
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
    """`frame` makes bytes of a payload and of the id by which a reader can ask for what comes
    behind it. Text cannot tell of an error: there the connection breaks."""

    frame: Callable[[Any, str], bytes]
    end: bytes = b""
    media_type: str = "text/event-stream"
    opening: bytes = _RETRY
    keep_alive: bytes = _KEEP_ALIVE
    reconnect: bytes = _RECONNECT
    tells_errors: bool = True


def _event(payload: Any, id: str) -> bytes:
    """A NamedEvent, or any other as it is."""
    name = f"event: {payload.name}\n" if isinstance(payload, NamedEvent) else ""
    data = payload.data if isinstance(payload, NamedEvent) else payload
    head = name + (f"id: {id}\n" if id else "")
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
