"""Tracing is a switch.

When it is off nothing of it is loaded, when it is on spans go out by OTLP, and without the library
there is a sentence.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from shared.settings.layers import SettingsError
from shared.settings.settings import Settings, resolve
from shared.telemetry.tracing import NO_SPAN, NO_TRACE, NO_TRACING, Trace, Tracing, open_tracing
from tests.fixtures.collector import collecting
from tests.fixtures.polling import wait_until
from tests.fixtures.redis_server import free_port
from tests.fixtures.slowness import within
from tests.fixtures.spans import PARENT

ROOT = Path(__file__).parents[2]
WORKER = """
import worker.__main__, worker.host.service, worker.runners.echo, scripts.cli.serve, scripts.cli.jobs
from shared.telemetry.tracing import open_tracing
open_tracing(None, "worker")
"""
FRONT = """
import fastapi
of_its_own.update(sys.modules)  # FastAPI loads the library's interface by itself
from api.http.app import create_app
from api.__main__ import serve
from shared.queue.broker import Broker, connect
from shared.settings.settings import Settings
app = create_app(Settings(), Broker(connect("redis://127.0.0.1:1")))
assert "Traced" not in [item.cls.__name__ for item in app.user_middleware]
"""


@pytest.mark.parametrize("role", [WORKER, FRONT], ids=["worker", "front"])
def test_when_off_nothing_of_it_is_loaded(role: str) -> None:
    code = f"""
import sys
of_its_own = {{}}
{role}
for name in sys.modules:
    if name.startswith(("opentelemetry", "shared.telemetry.otel")) and name not in of_its_own:
        print(name)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""


def test_one_module_knows_the_library() -> None:
    importing = set()
    for room in ("api", "shared", "worker", "scripts"):
        for file in (ROOT / room).rglob("*.py"):
            for name in imports_of(file):
                if name.startswith("opentelemetry"):
                    importing.add(file.name)
    assert importing == {"otel.py"}


def imports_of(file: Path) -> list[str]:
    """Return the names of all modules that a file imports."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names.append(alias.name)
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")

    return names


def test_without_an_endpoint_there_is_none() -> None:
    tracing = open_tracing(None, "api")
    assert tracing is NO_TRACING

    with tracing.span("x", Trace(PARENT)) as span:
        assert span is NO_SPAN
        assert span.child("y") is NO_SPAN
        assert span.trace is NO_TRACE
        span.set({"a": 1})

    tracing.close()


def test_a_missing_library_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shared.telemetry.otel", None)
    with pytest.raises(SettingsError, match=r"otlp_endpoint: .*aios-hrm-fleet\[tracing\]"):
        open_tracing("http://localhost:4318", "api")


def test_the_endpoint_comes_by_both_variables() -> None:
    url = "http://collector:4318"
    for name in ("AIOS_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        assert resolve({}, {name: url}, None).settings.otlp_endpoint == url
    assert Settings().otlp_endpoint is None
    with pytest.raises(SettingsError, match="otlp_endpoint"):
        resolve({"otlp_endpoint": "collector:4318"}, {}, None)


def test_the_id_is_read_without_the_library() -> None:
    assert Trace(PARENT).id == "ab" * 16
    assert NO_TRACE.id is None


def test_spans_arrive_at_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    with collecting() as collector:
        _post_two(open_tracing(collector.url, "worker"))
        wait_until(lambda: collector.posted, "they came; closing waits for that only so long")

    [(path, body)] = collector.posted
    assert path == "/v1/traces"

    [resource] = ExportTraceServiceRequest.FromString(body).resource_spans
    [service] = [each for each in resource.resource.attributes if each.key == "service.name"]
    assert service.value.string_value == "aios-worker"

    # A span is sent when it ends, so the child comes first.
    below, above = resource.scope_spans[0].spans
    assert below.name == "below"
    assert below.parent_span_id == above.span_id
    assert above.name == "above"
    assert above.trace_id.hex() == "ab" * 16
    assert above.status.message == "KeyError"


def _post_two(tracing: Tracing) -> None:
    with pytest.raises(KeyError), tracing.span("above", Trace(PARENT, "a=b")) as span:
        span.child("below").end()
        assert span.trace.tracestate == "a=b"
        raise KeyError("x")
    tracing.close()


def test_a_collector_that_is_away_holds_nobody_up() -> None:
    tracing = open_tracing(f"http://127.0.0.1:{free_port()}", "api")
    tracing.span("x", NO_TRACE).end()
    # Half a second; all attempts to send, with the pauses between them, take about seven.
    with within(3, "it is closed"):
        tracing.close()
