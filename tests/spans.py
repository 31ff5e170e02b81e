"""Spans that a test's own processes have made, as an exporter in memory has them."""

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shared.otel import OpenTracing

PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


class Kept:
    """`tracing` for a front and its workers; what they made is found by name."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracing = OpenTracing(SimpleSpanProcessor(self._exporter), "test")

    @property
    def spans(self) -> list[ReadableSpan]:
        """All that have ended, the first that began before the others."""
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.spans]

    def all(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        [span] = self.all(name)
        return span


def told(span: ReadableSpan) -> dict[str, object]:
    """Its attributes."""
    return dict(span.attributes or {})


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def trace_ids(spans: list[ReadableSpan]) -> set[str]:
    return {f"{span.context.trace_id:032x}" for span in spans if span.context is not None}
