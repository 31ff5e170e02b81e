"""Traces of requests: spans of fronts and workers that belong together by W3C trace headers.

Tracing is off unless a setting turns it on. While it is off, every span is `NO_SPAN`: nothing is
kept or sent, and OpenTelemetry is not loaded. `shared/telemetry/otel.py` is the one module that
knows that library.
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Literal, Self

import msgspec

Kind = Literal["internal", "server", "producer", "consumer"]
Attributes = Mapping[str, str | bool | int | float | Sequence[str] | None]
"""Attributes of a span. Those that are None are left out."""

# A traceparent is VERSION-TRACE_ID-SPAN_ID-FLAGS.
_TRACE_ID = 1


class Trace(msgspec.Struct, frozen=True, omit_defaults=True):
    """The W3C headers that hand a trace on; both are empty where there is none."""

    traceparent: str = ""
    tracestate: str = ""

    @property
    def id(self) -> str | None:
        """The id of the trace, 32 hex digits; None where there is no trace."""
        if not self.traceparent:
            return None
        return self.traceparent.split("-")[_TRACE_ID]


NO_TRACE = Trace()


class Span:
    """A part of a trace. This class keeps nothing: it is the span of a process without tracing.

    Times are nanoseconds since 1970; None is now. As a context manager a span ends with the block,
    with the name of the error that left it.
    """

    @property
    def trace(self) -> Trace:
        """The headers by which other processes add spans below this one."""
        return NO_TRACE

    def child(
        self,
        name: str,
        kind: Kind = "internal",
        attributes: Attributes | None = None,
        *,
        start_ns: int | None = None,
    ) -> "Span":
        """Begin a span below this one."""
        return NO_SPAN

    def link(self, trace: Trace) -> None:
        """Link to a span of another branch, or of another trace."""

    def rename(self, name: str) -> None: ...

    def set(self, attributes: Attributes) -> None: ...

    def end(self, error: str | None = None, *, at_ns: int | None = None) -> None:
        """End the span, once only. `error` is the name of the error that made it fail."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.end()
        else:
            self.end(kind.__name__)


class Tracing:
    """The source of a process's spans. This class makes none."""

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
        """Begin a span of the trace `within`, or of a new trace if that is empty or malformed."""
        return NO_SPAN

    def close(self) -> None:
        """Send the spans that are left, for a moment at most."""


NO_SPAN = Span()
NO_TRACING = Tracing()


def open_tracing(endpoint: str | None, role: str) -> Tracing:
    """Return the tracing of the process `role` to the OTLP collector at `endpoint`.

    Without an endpoint tracing is off. Close the tracing at the end of the process. Raise
    SettingsError where the library is missing.
    """
    if endpoint is None:
        return NO_TRACING
    from shared.settings.layers import SettingsError

    try:
        from shared.telemetry.otel import over_http
    except ImportError as error:
        problem = (
            "otlp_endpoint: tracing needs the extra `tracing`, as pip install "
            f"'aios-hrm-fleet[tracing]' ({error})"
        )
        raise SettingsError(problem) from error
    return over_http(endpoint, role)
