"""Every dialect on one real fleet with a batch of one.

A request has the same answer now, later and as a stream. A caller who hangs up in the middle of a
stream makes room for the next.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from api.routes.submit import TASKS
from shared.settings.settings import DEFAULT_MODEL
from tests.fixtures.api.frames import frames
from tests.fixtures.e2e.asked import (
    EVENTS,
    EVERYTHING,
    IN_ONE_CALL,
    JSON,
    LONG,
    PROMPT,
    STREAMS,
    Asked,
)
from tests.fixtures.e2e.serving import serving
from tests.fixtures.polling import wait_until
from tests.fixtures.posts import creating
from tests.fixtures.worker.arc_nets import write_arc
from tests.fixtures.worker.puzzle_nets import Net, write_checkpoint

LATER = {"Prefer": "respond-async"}
CANCEL = {"X-On-Disconnect": "cancel"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    sudoku = tmp_path_factory.mktemp("sudoku")
    write_checkpoint(
        sudoku, Net(halt_max_steps=3), filename="step_1", data_path="data/sudoku-extreme"
    )
    arc = tmp_path_factory.mktemp("arc")
    write_arc(arc)
    flags = ["--model", f"sample={DEFAULT_MODEL}", "--model", f"sudoku={sudoku}"]
    flags += ["--model", f"arc={arc}"]
    flags += ["--model", "tasks=echo-task", "--default-model", "sample"]
    flags += ["--max-batch-size", "1", "--max-new-tokens", "400"]
    flags += ["--threads", "1", "--log-level", "error"]
    with serving(*flags) as fleet, httpx.Client(base_url=fleet.url, timeout=60) as client:
        yield client


def ended(client: httpx.Client, job_id: str) -> Any:
    """Wait until the job has ended, and return its body from `/v1/jobs`."""
    path = f"/v1/jobs/{job_id}"
    wait_until(
        lambda: client.get(path).json()["state"] not in ("queued", "running"), "the job ends"
    )
    return client.get(path).json()


def lasting(body: Any) -> Any:
    """Return an answer without its id, its times and its use of the prefix cache."""
    if isinstance(body, list):
        return [lasting(part) for part in body]
    if not isinstance(body, dict):
        return body

    volatile = {"id", "created", "generation_time", "metrics", "correlation_id"}
    volatile.add("prompt_tokens_details")
    return {name: lasting(value) for name, value in body.items() if name not in volatile}


def joined(asked: Asked, answer: httpx.Response) -> list[str]:
    """Return the text that the frames of a stream add up to, for each choice."""
    assert asked.form is not None
    texts: dict[int, str] = defaultdict(str)
    for frame in frames(answer):
        if frame.data == "[DONE]":
            continue
        for index, piece in asked.form.pieces(frame.json):
            texts[index] += piece
    return [text for _, text in sorted(texts.items())]


@pytest.mark.parametrize(
    "asked", EVERYTHING, ids=lambda asked: f"{asked.path} {next(iter(asked.body))}"
)
def test_now_later_and_as_a_stream_it_is_the_same(client: httpx.Client, asked: Asked) -> None:
    """P3, X11: three views of one log agree.

    Each view has a run of its own with the same seed.
    """
    whole = client.post(asked.path, json=asked.body)
    assert whole.status_code == 200, whole.text

    accepted = client.post(asked.path, json=asked.body, headers=LATER)
    assert accepted.status_code == 202
    later = ended(client, accepted.json()["id"])
    assert later["state"] == "done"
    assert lasting(later["result"]) == lasting(whole.json())

    events = client.get(f"/v1/jobs/{later['id']}/events")
    if asked.form is None:
        # Some dialects end with a mark that has no body.
        *_, last = [frame for frame in frames(events) if frame.data != "[DONE]"]
        assert lasting(last.json) == lasting(whole.json())
        return

    texts = asked.form.texts(whole.json())
    assert len(set(texts)) == len(texts), "equal texts would hide a mix-up of the choices"
    path, extra = asked.stream
    body = asked.body | extra
    stream = client.post(path, json=body, headers={"Accept": EVENTS})
    assert joined(asked, stream) == texts
    assert joined(asked, events) == texts

    if asked.is_bare:
        if len(texts) > 1:
            body |= {"n": 1, "num_return_sequences": 1}
        assert client.post(path, json=body).text == texts[0]


def test_everything_is_asked() -> None:
    tasks = set(IN_ONE_CALL.values())
    paths = set(IN_ONE_CALL)
    for asked in EVERYTHING:
        tasks.add(asked.task)
        paths.add(asked.path)
        if asked.form:
            paths.add(asked.stream[0])
    assert tasks == TASKS.keys()
    assert paths == {route.path for route in creating()} - {"/v1/jobs"}


def read_some(answer: httpx.Response, form: str) -> None:
    """Read a few pieces of a stream that is not at its end."""
    assert answer.headers["content-type"].partition(";")[0] == form
    text = ""
    for part in answer.iter_text():
        text += part
        if form == EVENTS and text.count("data: ") >= 4:
            return
        if form != EVENTS and len(text) >= 4:
            return
    raise AssertionError(f"the stream ended: {text}")


@pytest.mark.parametrize(("path", "form", "body"), STREAMS)
def test_who_hangs_up_frees_the_place(
    client: httpx.Client, path: str, form: str, body: dict[str, Any]
) -> None:
    headers = {"Accept": form}
    if path == "/v1/jobs":
        headers |= CANCEL | {"Prefer": "wait=60"}
    with client.stream("POST", path, json=body, headers=headers) as answer:
        read_some(answer, form)
    check_freed(client, answer.headers["X-Job-Id"])


def test_who_stops_following_a_job_frees_the_place(client: httpx.Client) -> None:
    body = {"prompt": PROMPT} | LONG
    job_id = client.post("/v1/completions", json=body, headers=LATER | CANCEL).json()["id"]
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        read_some(answer, EVENTS)
    check_freed(client, job_id)


def check_freed(client: httpx.Client, job_id: str) -> None:
    """P6: the batch of one serves the next caller, and the job has not run to its end."""
    assert client.post("/generate", json={"prompts": ["a"], "max_tokens": 1}).status_code == 200
    assert client.post("/v1/echo-task", json={"text": "a", "model": "tasks"}).status_code == 200

    job = ended(client, job_id)
    assert job["state"] == "cancelled"
    assert job["error"]["code"] == "cancelled"
    assert ("partial" in job) == (job["task"] == "generate")


def test_no_place_is_taken_at_the_end(client: httpx.Client) -> None:
    """The worker itself reports no job in flight."""
    wait_until(lambda: client.get("/api/health").json()["in_flight"] == 0, "all places are free")


def test_every_stream_is_left(client: httpx.Client) -> None:
    """STREAMS has every route of the app, with every form that its document names."""
    document = client.get("/openapi.json").json()
    for route in creating():
        if route.path in IN_ONE_CALL:
            continue
        answer = document["paths"][route.path]["post"]["responses"]["200"]
        forms = answer["content"].keys() - {JSON}
        assert forms == {form for path, form, _ in STREAMS if path == route.path}
