"""OpenTelemetry behind `shared.telemetry.tracing`; loaded only where tracing is on.

Its own variables hold as well: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER,
OTEL_BSP_*, OTEL_EXPORTER_OTLP_HEADERS, OTEL_SDK_DISABLED.
"""

import os
import threading
from collections.abc import Sequence

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.telemetry.tracing import Attributes, Kind, Span, Trace, Tracing

_CLOSE_S = 0.5
_KINDS: dict[Kind, api.SpanKind] = {
    "internal": api.SpanKind.INTERNAL,
    "server": api.SpanKind.SERVER,
    "producer": api.SpanKind.PRODUCER,
    "consumer": api.SpanKind.CONSUMER,
}
_w3c = TraceContextTextMapPropagator()

PresentAttributes = dict[str, str | bool | int | float | Sequence[str]]


class OpenSpan(Span):
    """A span that is kept, and sent when it has ended."""

    def __init__(self, tracer: api.Tracer, span: api.Span) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def trace(self) -> Trace:
        headers: dict[str, str] = {}
        _w3c.inject(headers, api.set_span_in_context(self._span, Context()))
        return Trace(**headers)

    def child(
        self,
        name: str,
        kind: Kind = "internal",
        attributes: Attributes | None = None,
        *,
        start_ns: int | None = None,
    ) -> Span:
        parent = api.set_span_in_context(self._span, Context())
        return _begin(
            self._tracer, name, parent, kind=kind, attributes=attributes, start_ns=start_ns
        )

    def link(self, trace: Trace) -> None:
        context = api.get_current_span(_context_of(trace)).get_span_context()
        if context.is_valid:
            self._span.add_link(context)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(_present(attributes))

    def end(self, error: str | None = None, *, at_ns: int | None = None) -> None:
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(api.StatusCode.ERROR, error)
        self._span.end(at_ns)


class OpenTracing(Tracing):
    """Sends the spans of the process `role` to `processor`."""

    is_on = True

    def __init__(self, processor: SpanProcessor, role: str) -> None:
        attributes = {}
        given = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        # The operator's own name of the service outranks ours.
        if "OTEL_SERVICE_NAME" not in os.environ and SERVICE_NAME not in given:
            attributes[SERVICE_NAME] = f"aios-{role}"
        resource = Resource.create(attributes)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("aios")

    def span(
        self,
        name: str,
        within: Trace,
        kind: Kind = "internal",
        attributes: Attributes | None = None,
        *,
        start_ns: int | None = None,
    ) -> Span:
        return _begin(
            self._tracer,
            name,
            _context_of(within),
            kind=kind,
            attributes=attributes,
            start_ns=start_ns,
        )

    def close(self) -> None:
        """Send the spans that are left, for half a second at most."""
        # A collector that is away must not hold up the end of the process.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_S)


def over_http(endpoint: str, role: str) -> OpenTracing:
    """Return a tracing that sends spans in batches to `endpoint`/v1/traces."""
    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")
    return OpenTracing(BatchSpanProcessor(exporter), role)


def _context_of(trace: Trace) -> Context:
    headers = {"traceparent": trace.traceparent, "tracestate": trace.tracestate}
    return _w3c.extract(headers, Context())


def _begin(
    tracer: api.Tracer,
    name: str,
    parent: Context,
    *,
    kind: Kind,
    attributes: Attributes | None,
    start_ns: int | None,
) -> OpenSpan:
    """Begin a span below the span, or in the trace, that the context `parent` names."""
    span = tracer.start_span(
        name,
        parent,
        kind=_KINDS[kind],
        attributes=_present(attributes or {}),
        start_time=start_ns,
    )
    return OpenSpan(tracer, span)


def _present(attributes: Attributes) -> PresentAttributes:
    """Return the attributes that are not None."""
    return {name: value for name, value in attributes.items() if value is not None}
