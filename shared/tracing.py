"""Traces of requests, as the rooms make them: spans that belong together by W3C trace headers.

Where tracing is off, which it is unless somebody asks for it, every span is `NO_SPAN`: nothing is
kept or sent, and the library (`shared/otel.py`, the one module that knows it) is not loaded.
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Literal, Self

import msgspec

Kind = Literal["internal", "server", "producer", "consumer"]
Attributes = Mapping[str, str | bool | int | float | Sequence[str] | None]
"""None is left out."""

_ID_AT = 1


class Trace(msgspec.Struct, frozen=True, omit_defaults=True):
    """The W3C headers by which a trace is handed on; both are empty where there is none."""

    traceparent: str = ""
    tracestate: str = ""

    @property
    def id(self) -> str | None:
        """32 hex digits."""
        return self.traceparent.split("-")[_ID_AT] if self.traceparent else None


NO_TRACE = Trace()


class Span:
    """A part of a trace, here one that is not there. Times are nanoseconds since 1970; none is now.

    As a context it ends with the block, with the name of the error that left it.
    """

    @property
    def trace(self) -> Trace:
        """By which others go on behind this span."""
        return NO_TRACE

    def child(
        self,
        name: str,
        kind: Kind = "internal",
        attributes: Attributes | None = None,
        *,
        start_ns: int | None = None,
    ) -> "Span":
        return NO_SPAN

    def link(self, trace: Trace) -> None:
        """Point at a span that is not above this one."""

    def rename(self, name: str) -> None: ...

    def set(self, attributes: Attributes) -> None: ...

    def end(self, error: str | None = None, *, at_ns: int | None = None) -> None:
        """Once. With an `error` it has failed of that."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end(None if kind is None else kind.__name__)


class Tracing:
    """Where spans come from, here none."""

    is_on = False

    def span(
        self,
        name: str,
        within: Trace,
        kind: Kind = "internal",
        attributes: Attributes | None = None,
        *,
        start_ns: int | None = None,
    ) -> Span:
        """A span of the trace that `within` names; of a new one if it names none, or nonsense."""
        return NO_SPAN

    def close(self) -> None:
        """Send what there is, for a moment at most."""


NO_SPAN, NO_TRACING = Span(), Tracing()


def open_tracing(endpoint: str | None, role: str) -> Tracing:
    """Tracing of the process `role` to the OTLP collector at `endpoint`; none without. Close it at
    the end.

    Raises SettingsError where the library is missing.
    """
    if endpoint is None:
        return NO_TRACING
    from shared.setting_layers import SettingsError

    try:
        from shared.otel import over_http
    except ImportError as error:
        words = (
            "otlp_endpoint: tracing needs the extra `tracing`, as pip install "
            f"'aios-hrm-fleet[tracing]' ({error})"
        )
        raise SettingsError(words) from error
    return over_http(endpoint, role)
