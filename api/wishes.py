"""What the headers of a POST that creates work ask for, beside its body."""

import re
from dataclasses import dataclass
from typing import Annotated, TypeVar, get_args

from fastapi import Depends, Header

from api.record import OnDisconnect
from shared.errors import InvalidRequest
from shared.messages import PRIORITIES, Priority

_MOST_KEY = 255
_Choice = TypeVar("_Choice", bound=str)
_DIGITS = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True)
class Wishes:
    """`wait_s`: None is until the answer is there, 0 is not at all. `last_event_id` names the frame to go on behind."""

    priority: Priority = "default"
    deadline_s: float | None = None
    key: str = ""
    wait_s: float | None = None
    on_disconnect: OnDisconnect | None = None
    last_event_id: str = ""
    accept: str = ""


async def wishes_of(
    x_priority: Annotated[str | None, Header(description="interactive, default or bulk")] = None,
    x_deadline_ms: Annotated[str | None, Header(description="Milliseconds in which an answer is of use.")] = None,
    idempotency_key: Annotated[str | None, Header(description="Equal keys and bodies are one request.")] = None,
    prefer: Annotated[list[str] | None, Header(description="respond-async, or wait=SECONDS")] = None,
    x_on_disconnect: Annotated[str | None, Header(description="cancel, continue or grace")] = None,
    last_event_id: Annotated[str | None, Header(description="The stream goes on behind this frame.")] = None,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Wishes:
    """Raises InvalidRequest that names the header."""
    return Wishes(
        _one_of("X-Priority", x_priority, PRIORITIES) or "default",
        _deadline_s(x_deadline_ms),
        _key(idempotency_key),
        _wait_s(",".join(prefer or ())),
        _one_of("X-On-Disconnect", x_on_disconnect, get_args(OnDisconnect)),
        last_event_id or "",
        (accept or "").lower(),
    )


WishesDep = Annotated[Wishes, Depends(wishes_of)]


def _one_of(header: str, value: str | None, allowed: tuple[_Choice, ...]) -> _Choice | None:
    if value is None:
        return None
    found = next((item for item in allowed if item == value.strip().lower()), None)
    if found is None:
        raise _refusal(header, f"one of {', '.join(allowed)}")
    return found


def _deadline_s(value: str | None) -> float | None:
    if value is None:
        return None
    if not _DIGITS.fullmatch(value) or int(value) == 0:
        raise _refusal("X-Deadline-Ms", "a positive number of milliseconds")
    return int(value) / 1000


def _key(value: str | None) -> str:
    if value is None:
        return ""
    if not 1 <= len(value) <= _MOST_KEY or not value.isprintable():
        raise _refusal("Idempotency-Key", f"1 to {_MOST_KEY} printable characters")
    return value


def _wait_s(value: str) -> float | None:
    """RFC 7240; preferences of other names are none of ours. `wait` says how long to wait before responding later."""
    preferences = [part.partition(";")[0].strip().lower() for part in value.split(",")]
    waits = [part.partition("=")[2].strip() for part in preferences if part.startswith("wait=")]
    if waits and not _DIGITS.fullmatch(waits[0]):
        raise _refusal("Prefer", "wait=SECONDS, a whole number")
    if waits:
        return float(waits[0])
    return 0.0 if "respond-async" in preferences else None


def _refusal(header: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"{header}: expected {expected}.", field=header)
