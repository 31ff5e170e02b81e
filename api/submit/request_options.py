"""The options of a POST that creates work, from its headers."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from fastapi import Depends, Header
from pydantic import WithJsonSchema

from api.submit.request_record import OnDisconnect
from shared.errors import InvalidRequest
from shared.messages import PRIORITIES, Priority

_MOST_KEY = 255
_MOST_AB_KEY = 256
_Choice = TypeVar("_Choice", bound=str)
CacheDirective = Literal["no-store", "no-cache"]
"""`no-store` neither looks for an earlier answer nor keeps the new one. `no-cache` keeps it."""

_FLAGS = ("1", "0", "true", "false")
_DIGITS = re.compile(r"[0-9]{1,12}")


def _shown(**limits: Any) -> WithJsonSchema:
    """Return the schema of a header for the OpenAPI document: text, and never null."""
    return WithJsonSchema({"type": "string", **limits})


KeyHeader = Annotated[
    str | None,
    Header(alias="idempotency-key", description="Equal keys and bodies are one request."),
    _shown(minLength=1, maxLength=_MOST_KEY),
]


@dataclass(frozen=True)
class RequestOptions:
    """The options of a request, as its headers give them.

    `wait_s` is None to wait until the answer is there, 0 not to wait. `preferences` are those of
    `Prefer` that are honoured. `last_event_id` names the frame behind which a stream is to go on.
    `ab_key` is sticky: requests of an experiment with equal keys get the same arm. A request that
    `is_part` belongs to a batch or an evaluation.
    """

    priority: Priority = "default"
    deadline_s: float | None = None
    key: str = ""
    wait_s: float | None = None
    preferences: tuple[str, ...] = ()
    on_disconnect: OnDisconnect | None = None
    last_event_id: str = ""
    with_timings: bool = False
    cache: CacheDirective | None = None
    accept: str = ""
    ab_key: str = ""
    is_part: bool = False


async def request_options_of(
    *,
    x_priority: Annotated[str | None, Header(), _shown(enum=list(PRIORITIES))] = None,
    x_deadline_ms: Annotated[
        str | None,
        Header(description="Milliseconds in which an answer is of use."),
        _shown(pattern=r"^[1-9]\d{0,11}$"),
    ] = None,
    idempotency_key: KeyHeader = None,
    prefer: Annotated[
        list[str] | None,
        Header(description="respond-async, or wait=SECONDS"),
        WithJsonSchema({"type": "array", "items": {"type": "string"}}),
    ] = None,
    x_on_disconnect: Annotated[
        str | None, Header(), _shown(enum=list(get_args(OnDisconnect)))
    ] = None,
    last_event_id: Annotated[
        str | None, Header(description="A stream goes on behind this frame."), _shown()
    ] = None,
    x_timings: Annotated[
        str | None,
        Header(description="1: tell how long it took, in headers."),
        _shown(enum=list(_FLAGS)),
    ] = None,
    cache_control: Annotated[
        str | None, Header(description="no-store, or no-cache for a new answer"), _shown()
    ] = None,
    x_ab_key: Annotated[
        str | None,
        Header(description="With an experiment as the model: equal keys get the same arm."),
        _shown(minLength=1, maxLength=_MOST_AB_KEY),
    ] = None,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> RequestOptions:
    """Return the options that the headers ask for. Raise InvalidRequest, which names a header."""
    wait_s, preferences = _preferences(",".join(prefer or ()))
    return RequestOptions(
        priority=_one_of("X-Priority", x_priority, PRIORITIES) or "default",
        deadline_s=_deadline_s(x_deadline_ms),
        key=_key("Idempotency-Key", idempotency_key, _MOST_KEY),
        wait_s=wait_s,
        preferences=preferences,
        on_disconnect=_one_of("X-On-Disconnect", x_on_disconnect, get_args(OnDisconnect)),
        last_event_id=last_event_id or "",
        with_timings=_one_of("X-Timings", x_timings, _FLAGS) in ("1", "true"),
        cache=_cache_directive(cache_control or ""),
        accept=(accept or "").lower(),
        ab_key=_key("X-AB-Key", x_ab_key, _MOST_AB_KEY),
    )


RequestOptionsDep = Annotated[RequestOptions, Depends(request_options_of)]


async def key_of(idempotency_key: KeyHeader = None) -> str:
    """Return the idempotency key alone, "" if there is none. Raise InvalidRequest."""
    return _key("Idempotency-Key", idempotency_key, _MOST_KEY)


KeyDep = Annotated[str, Depends(key_of)]


def _one_of(header: str, value: str | None, allowed: tuple[_Choice, ...]) -> _Choice | None:
    if value is None:
        return None
    for choice in allowed:
        if choice == value.strip().lower():
            return choice
    raise _refusal(header, f"one of {', '.join(allowed)}")


def _deadline_s(value: str | None) -> float | None:
    if value is None:
        return None
    if not _DIGITS.fullmatch(value) or int(value) == 0:
        raise _refusal("X-Deadline-Ms", "a positive number of milliseconds")
    return int(value) / 1000


def _key(header: str, value: str | None, most: int) -> str:
    if value is None:
        return ""
    if not 1 <= len(value) <= most or not value.isprintable():
        raise _refusal(header, f"1 to {most} printable characters")
    return value


def _preferences(value: str) -> tuple[float | None, tuple[str, ...]]:
    """Return the seconds to wait, and the preferences that are honoured, by RFC 7240.

    None waits for the answer, 0 does not wait. Other preferences are ignored. The first of each
    name counts.
    """
    given: dict[str, str] = {}
    for part in value.split(","):
        name, _, argument = part.partition(";")[0].partition("=")
        given.setdefault(name.strip().lower(), argument.strip().strip('"'))
    wait_s = None
    honoured: list[str] = []
    if "respond-async" in given:
        wait_s = 0.0
        honoured.append("respond-async")
    wait = given.get("wait")
    if wait is not None:
        if not _DIGITS.fullmatch(wait):
            raise _refusal("Prefer", "wait=SECONDS, a whole number")
        wait_s = float(wait)
        honoured.append(f"wait={wait}")
    return wait_s, tuple(honoured)


def _cache_directive(value: str) -> CacheDirective | None:
    """Return the directive of RFC 9111 that concerns this cache. Others are ignored."""
    directives = {part.strip().lower() for part in value.split(",")}
    if "no-store" in directives:
        return "no-store"
    if directives & {"no-cache", "max-age=0"}:
        return "no-cache"
    return None


def _refusal(header: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"{header}: expected {expected}.", field=header)
