"""The parts of the web app by themselves, and the commands that start it."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from streamlit.testing.v1 import AppTest

from scripts.cli import ui
from scripts.cli.aios import main
from scripts.cli.old_names import commands
from scripts.cli.serve import fleet_roles
from scripts.ui import client as client_module
from scripts.ui import run as run_module
from scripts.ui.answer_text import without_pictures
from scripts.ui.client import Client, ServerAway, ServerError
from scripts.ui.page_generate import stop_strings
from scripts.ui.run import Run
from shared.settings.settings import Settings
from shared.shipped import REPO_ROOT
from tests.fixtures.bare_settings import without_settings
from tests.fixtures.polling import wait_until

Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[[Handler], Client]:
    """Return a function that makes a client whose requests a handler answers."""
    monkeypatch.setattr(client_module, "_RETRY_S", 0.0)

    def serve(handler: Handler) -> Client:
        http = httpx.Client(transport=httpx.MockTransport(handler))
        monkeypatch.setattr(client_module, "_HTTP", http)
        return Client("http://front", "a-key")

    return serve


def test_a_stream_that_breaks_off_is_resumed(served: Callable[[Handler], Client]) -> None:
    seen = []
    streams = [
        'retry: 1000\nid: 7.1\ndata: {"text": "a"}\n\n: keep-alive\n\nid: 7.2\ndata: {"text": "b"}\n\n',
        'id: 7.3\ndata: {"text": "c"}\n\ndata: [DONE]\n\n',
    ]

    def front(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("Last-Event-ID"))
        assert request.headers["Authorization"] == "Bearer a-key"
        return httpx.Response(200, text=streams.pop(0))

    frames = list(served(front).events("7"))
    assert [frame.body for frame in frames if frame.body] == [
        {"text": "a"},
        {"text": "b"},
        {"text": "c"},
    ]
    assert seen == [None, "7.2"]


def test_a_stream_that_breaks_off_again_and_again_ends(
    served: Callable[[Handler], Client],
) -> None:
    client = served(lambda request: httpx.Response(200, text="retry: 1000\n\n"))
    with pytest.raises(ServerError, match="again and again"):
        list(client.events("7"))

    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(ServerAway, match="http://front does not answer"):
        list(served(away).events("7"))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(401, json={"error": {"message": "no"}}), "wants a key"),
        (
            httpx.Response(429, json={"error": "full."}, headers={"Retry-After": "3"}),
            "cannot take this now: full. Try again in 3 s.",
        ),
        (httpx.Response(400, json={"error": {"message": "top_p: too big"}}), "top_p: too big"),
        (httpx.Response(502, text="<html>"), "status 502"),
    ],
)
def test_a_refusal_is_in_words_for_people(
    answer: httpx.Response, words: str, served: Callable[[Handler], Client]
) -> None:
    with pytest.raises(ServerError, match=words):
        served(lambda request: answer).post("/generate", {})


class SlowFront(httpx.SyncByteStream):
    """A stream whose second frame comes when `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield b'id: 7.1\ndata: {"text": "now"}\n\n'
        self.go.wait(60)
        yield b'id: 7.2\ndata: {"text": " later"}\n\ndata: [DONE]\n\n'

    def close(self) -> None:
        self.is_closed = True

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return httpx.Response(200, stream=self)
        return httpx.Response(200, json={"state": "done", "usage": {"prompt_tokens": 1}})


def texts(run: Run) -> list[str]:
    return [frame["text"] for frame in run.frames]


def has_ended(run: Run) -> bool:
    """Return whether a run has ended, as a page that is drawn now sees it."""
    run.watch()
    return run.is_done


def test_a_run_has_what_has_come_so_far(served: Callable[[Handler], Client]) -> None:
    front = SlowFront()
    run = Run(served(front.answer), "7")
    wait_until(lambda: texts(run) == ["now"], "the first frame is there")
    front.go.set()
    wait_until(lambda: run.job, "the run has ended")
    assert not run.is_done, "the page that is being drawn has begun with a run that goes on"
    wait_until(partial(has_ended, run), "the run is known to have ended")
    assert texts(run) == ["now", " later"]
    assert (run.job["state"], run.error) == ("done", "")


def test_a_run_that_nobody_looks_at_is_left(
    served: Callable[[Handler], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is closed, upon which the fleet cancels the work."""
    monkeypatch.setattr(run_module, "_LEFT_S", -1.0)
    front = SlowFront()
    run = Run(served(front.answer), "7")
    wait_until(partial(has_ended, run), "the run has ended")
    assert front.is_closed
    assert "given up" in run.error
    front.go.set()


def test_texts_are_read() -> None:
    assert stop_strings(r"\n\n|END") == ["\n\n", "END"]
    assert stop_strings("") == []
    assert without_pictures("a ![b](http://c/d.png)") == "a !\\[b](http://c/d.png)"


def test_it_finds_no_fleet_where_none_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIOS_RUN_DIR", str(tmp_path))
    monkeypatch.delenv("API_URL", raising=False)
    assert main(["ui"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("aios ui: server_url: expected a URL in --server-url or API_URL")


def test_it_becomes_streamlit_for_the_given_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A81: by `aios ui`, and by the name of the older documents."""
    became = []

    def execve(path: str, command: list[str], env: dict[str, str]) -> None:
        became.append((command, env))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execve)
    for start in (lambda words: main(["ui", *words]), commands.hrm_ui):
        with pytest.raises(SystemExit):
            start(["--server-url", "http://front", "--port", "1234"])
    for command, env in became:
        assert command[-3:] == [str(ui.APP), "--server.address=127.0.0.1", "--server.port=1234"]
        assert env["API_URL"] == "http://front"

    def nothing_installed(name: str) -> None:
        return None

    monkeypatch.setattr(ui, "find_spec", nothing_installed)
    assert main(["ui", "--server-url", "http://front"]) == 2


def test_a_fleet_runs_it_and_does_without_it() -> None:
    """A77: the app is a client, and knows nothing of the fleet's Redis or keys."""
    settings = Settings(
        ui=True, ui_port=1234, port=8123, redis_url="redis://u:secret@r/0", api_keys=("ann:secret",)
    )
    *_, app = fleet_roles(settings, [{}])
    assert app.name == "ui"
    assert not app.is_needed
    assert app.argv[-1] == "--server.port=1234"
    assert app.env["API_URL"] == "http://127.0.0.1:8123"
    assert "secret" not in str(app.env)
    assert "ui" not in [role.name for role in fleet_roles(Settings(), [{}])]


def test_the_older_names_are_installed(tmp_path: Path) -> None:
    """A81, C22."""
    older = REPO_ROOT / "scripts" / "entry_points"
    path = os.pathsep.join([str(REPO_ROOT), str(older)])
    done = subprocess.run(
        [sys.executable, "-m", "aios.serve.hrm_ui", "--help"],
        cwd=tmp_path,
        env={**without_settings(os.environ), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    assert "Usage: python -m aios.serve.hrm_ui" in done.stdout

    demo = older / "inference" / "demo"
    config = (demo / ".streamlit" / "config.toml").read_text()
    assert config == (ui.APP.parent / ".streamlit" / "config.toml").read_text()
    assert "gatherUsageStats = false" in config

    page = AppTest.from_file(str(demo / "app.py"), default_timeout=60).run()
    assert not page.exception
    assert page.title[0].value == "Generate"
