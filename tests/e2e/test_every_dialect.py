"""Every dialect on one real fleet with a single place: asked for now, later or as a stream it says
the same, and who hangs up in the middle of a stream makes room for the next."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from api.routes.submit import TASKS
from shared.settings.settings import SAMPLE_MODEL
from tests.fixtures.api.frames import frames
from tests.fixtures.e2e.asked import EVENTS, EVERYTHING, JSON, LONG, PROMPT, STREAMS, Asked
from tests.fixtures.e2e.serving import serving
from tests.fixtures.polling import wait_until
from tests.fixtures.posts import creating
from tests.fixtures.worker.sapient_fixtures import Net, write_checkpoint

LATER = {"Prefer": "respond-async"}
CANCEL = {"X-On-Disconnect": "cancel"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    place = tmp_path_factory.mktemp("sudoku")
    write_checkpoint(
        place, Net(halt_max_steps=3), filename="step_1", data_path="data/sudoku-extreme"
    )
    models = {"sample": SAMPLE_MODEL, "sudoku": place, "tasks": "echo-task"}
    flags = [flag for name, path in models.items() for flag in ("--model", f"{name}={path}")]
    flags += ["--default-model", "sample"]
    limits = (
        "--max-batch-size",
        "1",
        "--max-new-tokens",
        "400",
        "--threads",
        "1",
        "--log-level",
        "error",
    )
    with serving(*flags, *limits) as fleet, httpx.Client(base_url=fleet.url, timeout=60) as client:
        yield client


def ended(client: httpx.Client, job_id: str) -> Any:
    """What `/v1/jobs` tells, once the job has ended."""
    path = f"/v1/jobs/{job_id}"
    wait_until(
        lambda: client.get(path).json()["state"] not in ("queued", "running"), "the job ends"
    )
    return client.get(path).json()


def lasting(body: Any) -> Any:
    """An answer without what is its own: its name, its times, and what was in the prefix cache."""
    if isinstance(body, list):
        return [lasting(item) for item in body]
    if not isinstance(body, dict):
        return body
    own = {"id", "created", "generation_time", "metrics", "correlation_id", "prompt_tokens_details"}
    return {name: lasting(item) for name, item in body.items() if name not in own}


def joined(asked: Asked, answer: httpx.Response) -> list[str]:
    """The texts that the frames of a stream add up to."""
    assert asked.form is not None
    texts: dict[int, str] = defaultdict(str)
    for frame in frames(answer):
        for index, piece in asked.form.pieces(frame.json) if frame.data != "[DONE]" else ():
            texts[index] += piece
    return [texts[index] for index in sorted(texts)]


@pytest.mark.parametrize(
    "asked", EVERYTHING, ids=lambda asked: f"{asked.path} {next(iter(asked.body))}"
)
def test_now_later_and_as_a_stream_it_is_the_same(client: httpx.Client, asked: Asked) -> None:
    """P3, X11: three views of one log, each by a run of its own with the same seed."""
    whole = client.post(asked.path, json=asked.body)
    assert whole.status_code == 200, whole.text
    accepted = client.post(asked.path, json=asked.body, headers=LATER)
    assert accepted.status_code == 202
    later = ended(client, accepted.json()["id"])
    assert later["state"] == "done"
    assert lasting(later["result"]) == lasting(whole.json())
    events = client.get(f"/v1/jobs/{later['id']}/events")
    if asked.form is None:
        [answer] = [frame.json for frame in frames(events) if frame.data != "[DONE]"][-1:]
        assert lasting(answer) == lasting(whole.json())
        return
    texts = asked.form.texts(whole.json())
    assert len(set(texts)) == len(texts), "nobody says the same by chance"
    path, more = asked.stream
    assert (
        joined(asked, client.post(path, json=asked.body | more, headers={"Accept": EVENTS}))
        == texts
    )
    assert joined(asked, events) == texts
    if asked.is_bare:
        [first, *_] = texts
        alone = {"n": 1, "num_return_sequences": 1} if len(texts) > 1 else {}
        assert client.post(path, json=asked.body | more | alone).text == first


def test_everything_is_asked() -> None:
    assert {asked.task for asked in EVERYTHING} == TASKS.keys()
    paths = {asked.path for asked in EVERYTHING} | {
        asked.stream[0] for asked in EVERYTHING if asked.form
    }
    assert paths == {route.path for route in creating()} - {"/v1/jobs"}


def read_some(answer: httpx.Response, form: str) -> None:
    """A few pieces of a stream that is not at its end."""
    assert answer.headers["content-type"].partition(";")[0] == form
    text = ""
    for part in answer.iter_text():
        text += part
        if (text.count("data: ") if form == EVENTS else len(text)) >= 4:
            return
    raise AssertionError(f"the stream ended: {text}")


@pytest.mark.parametrize(("path", "form", "body"), STREAMS)
def test_who_hangs_up_frees_the_place(
    client: httpx.Client, path: str, form: str, body: dict[str, Any]
) -> None:
    headers = {"Accept": form} | (CANCEL | {"Prefer": "wait=60"} if path == "/v1/jobs" else {})
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
    """P6: the one place there is serves the next caller; the job has not been run to its end for
    that."""
    assert client.post("/generate", json={"prompts": ["a"], "max_tokens": 1}).status_code == 200
    assert client.post("/v1/echo-task", json={"text": "a", "model": "tasks"}).status_code == 200
    told = ended(client, job_id)
    assert (told["state"], told["error"]["code"]) == ("cancelled", "cancelled")
    assert ("partial" in told) == (told["task"] == "generate")


def test_no_place_is_taken_at_the_end(client: httpx.Client) -> None:
    """By what the worker itself says."""
    wait_until(lambda: client.get("/api/health").json()["in_flight"] == 0, "all places are free")


def test_every_stream_is_left(client: httpx.Client) -> None:
    """By the app's own route table, and by what its document says each route sends."""
    document = client.get("/openapi.json").json()
    for route in creating():
        forms = document["paths"][route.path]["post"]["responses"]["200"]["content"].keys() - {JSON}
        assert forms == {form for path, form, _ in STREAMS if path == route.path}
