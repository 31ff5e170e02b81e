"""The figures of a fleet over time, and requests of the web app that are refused."""

import json
from typing import Any

import httpx
import pytest

from scripts.ui import client as client_module
from scripts.ui import fleet_history
from scripts.ui.client import Client, NotAllowed, NotFound, ServerError
from scripts.ui.fleet_history import KEYS_AND_VALUES, FleetHistory
from scripts.ui.page_batches import endpoint_of
from tests.fixtures.e2e.app_pages import click, page_of
from tests.fixtures.redis_server import free_port


def metrics_of(waiting: int, *, first_tokens: int) -> str:
    """Return metrics of a front: jobs that wait, and first tokens of between 0.1 and 0.2 s."""
    bucket = 'aios_ttft_seconds_bucket{model="m",le='
    return f"""\
# TYPE aios_queue_depth gauge
aios_queue_depth{{model="m",state="queued"}} {waiting}
aios_queue_depth{{model="idle",state="queued"}} 0
# TYPE aios_ttft_seconds histogram
{bucket}"0.1"}} 0
{bucket}"0.2"}} {first_tokens}
{bucket}"+Inf"}} {first_tokens}
aios_ttft_seconds_count{{model="m"}} {first_tokens}
aios_ttft_seconds_sum{{model="m"}} {first_tokens}
"""


FLEET = {
    "workers": [
        {"models": [{"id": "m", "kv_used": 3, "kv_pages": 10}]},
        {"models": [{"id": "m", "kv_used": 2, "kv_pages": 10}]},
    ]
}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the history reads: the only element of a list."""
    now = [1000.0]
    monkeypatch.setattr(fleet_history.time, "monotonic", lambda: now[0])
    return now


def test_curves_are_those_of_the_samples(clock: list[float]) -> None:
    history = FleetHistory()
    assert history.is_due(2)
    history.add(metrics_of(4, first_tokens=0), FLEET)
    clock[0] += 2
    assert history.is_due(2)
    history.add(metrics_of(7, first_tokens=10), FLEET)
    assert not history.is_due(2)

    assert history.curves("Waiting") == {"s": [-2, 0], "m": [4, 7]}
    assert history.curves(KEYS_AND_VALUES) == {"s": [-2, 0], "m": [25, 25]}
    # All ten first tokens came since, in the bucket from 0.1 to 0.2 s.
    latency = history.curves("First token, p95, s")
    assert latency == {"s": [-2, 0], "m": [None, pytest.approx(0.195)]}
    assert history.latest("Waiting") == 7
    assert history.names() == ["Waiting", "First token, p95, s", KEYS_AND_VALUES]


def test_a_history_is_bounded(clock: list[float]) -> None:
    history = FleetHistory()
    for waiting in range(1, 1000):
        history.add(metrics_of(waiting, first_tokens=0), None)
        clock[0] += 2
    curve = history.curves("Waiting")
    assert curve["m"][-1] == 999
    assert curve["s"][0] == pytest.approx(-600, abs=2)
    assert len(curve["s"]) == len(curve["m"]) <= 301


class StandIn:
    """Answers as a front with a dead job does, and notes the requests that change something."""

    def __init__(self) -> None:
        self.changes: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if request.method != "GET":
            self.changes.append(f"{request.method} {path}")
            return httpx.Response(200, json={"id": "j1", "retried_as": "j2"})
        if path == "/metrics":
            return httpx.Response(200, text=metrics_of(1, first_tokens=1))
        dead = {"id": "j1", "model": "m", "tenant": "t", "worker": "w", "takes": 3, "at": "now"}
        totals = dict.fromkeys(("requests", "jobs", "prompt_tokens", "completion_tokens"), 0)
        answers: dict[str, Any] = {
            "/readyz": {"status": "ready"},
            "/api/health": {
                "workers": {"loading": 0, "ready": 1, "draining": 0},
                "models": {"known": 1, "served": 1},
                "in_flight": 0,
                "memory_bytes": 0,
            },
            "/api/models/status": {"models": []},
            "/v1/fleet": {"workers": [], "models": [], "dead_jobs": 1},
            "/api/models/catalogue": {"models": [], "pinned": []},
            "/v1/dead-jobs": {"jobs": [] if self.changes else [dead]},
            "/v1/keys": {"data": []},
            "/v1/usage": {"rows": [], "totals": {**totals, "compute_seconds": 0.0}},
        }
        return httpx.Response(200, json=answers[path])


@pytest.mark.parametrize(
    ("button", "change", "told"),
    [
        ("Retry", "POST /v1/dead-jobs/j1/retry", ["It is job j2 now."]),
        ("Drop", "DELETE /v1/dead-jobs/j1", []),
    ],
)
def test_dead_jobs_are_tried_again_or_dropped(
    button: str, change: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    front = StandIn()
    http = httpx.Client(transport=httpx.MockTransport(front))
    monkeypatch.setattr(client_module, "_HTTP", http)
    monkeypatch.setenv("API_URL", f"http://{button}")
    page = page_of("fleet")
    assert page.selectbox(key="dead_job").value == "j1"
    click(page, button)
    assert front.changes == [change]
    assert "No job was given up because its workers died." in [one.value for one in page.caption]
    assert [one.value for one in page.success] == told


@pytest.mark.parametrize(
    ("status", "kind"), [(401, NotAllowed), (403, NotAllowed), (404, NotFound)]
)
def test_refusals_are_told_apart(
    status: int, kind: type[ServerError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page says more of a key that does not open something than of other errors."""

    def refuse(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, json={"error": {"message": "no"}})

    http = httpx.Client(transport=httpx.MockTransport(refuse))
    monkeypatch.setattr(client_module, "_HTTP", http)
    with pytest.raises(kind):
        Client("http://front").get("/v1/fleet")


def test_a_stream_of_named_events_ends_with_the_last_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Local inference has no [DONE]."""
    text = 'event: progress\nid: 7.1\ndata: {"done": 1}\n\nevent: done\nid: 7.2\ndata: {"result": 2}\n\n'
    asked = []

    def front(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(200, text=text)

    http = httpx.Client(transport=httpx.MockTransport(front))
    monkeypatch.setattr(client_module, "_HTTP", http)
    frames = [frame.body for frame in Client("http://front").events("7")]
    assert frames == [{"done": 1}, {"result": 2}]
    assert asked == ["/v1/jobs/7/events"]


def test_a_batch_has_the_endpoint_of_its_first_line() -> None:
    line: dict[str, Any] = {"custom_id": "a", "url": "/generate", "body": {}}
    assert endpoint_of(b"\n" + json.dumps(line).encode() + b"\nrubbish") == "/generate"
    for data, message in ((b" \n", "Choose a file first"), (b"{}", "needs a url"), (b"x", "url")):
        with pytest.raises(ServerError, match=message):
            endpoint_of(data)


@pytest.mark.parametrize("path", ["tasks", "batches", "fleet"])
def test_a_server_that_is_away_is_told(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("API_URL", url)
    page = page_of(path)
    assert page.title[0].value
    assert url in page.warning[0].value
    assert [error.value for error in page.error] == [f"The server at {url} does not answer."]
