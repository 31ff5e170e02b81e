"""Each dialect's answer is the same now, later and as a stream, on whichever front."""

from typing import Any

import httpx
import pytest

from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.frames import Frame, frames

ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"prompts": ["a b", "c"], "n": 2}),
    ("/generate", {"prompt": "a b x = 3", "num_return_sequences": 2}),
    ("/generate", {"inputs": "a b", "parameters": {"details": True, "seed": 1}}),
    ("/", {"inputs": "a b"}),
    ("/solve/math", {"problem": "a", "template": "{problem} x = 3"}),
    ("/solve/coding", {"problem": "a", "template": "{problem}\n```\nb\n```"}),
    ("/api/inference", {"task": "text-generation", "inputs": "a b"}),
    ("/api/inference", {"task": "text-classification", "inputs": "a b"}),
    ("/api/inference", {"task": "feature-extraction", "inputs": "a b"}),
]
_VOLATILE = ("generation_time", "metrics", "correlation_id")


def without_volatile(body: Any) -> Any:
    """Return the body without its times and its id, which differ from run to run."""
    if not isinstance(body, dict):
        return body
    return {name: value for name, value in body.items() if name not in _VOLATILE}


async def events_behind(client: httpx.AsyncClient, path: str, last_id: str = "") -> list[Frame]:
    """Return the events behind the one with this id, or all of them, without [DONE]."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    answer = await client.get(path, headers=headers)
    return [frame for frame in frames(answer) if frame.data != "[DONE]"]


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_the_result_of_a_job_is_the_endpoints_own_answer(
    client: httpx.AsyncClient, able: EchoWorker, path: str, body: dict[str, Any]
) -> None:
    whole = await client.post(path, json=body)
    assert whole.status_code == 200, whole.text

    submitted = await client.post(path, json=body, headers={"Prefer": "respond-async"})
    assert submitted.status_code == 202
    location = submitted.headers["Location"]

    # Reading the stream to its end waits for the job.
    await client.get(f"{location}/events")
    job = (await client.get(location)).json()
    assert job["state"] == "done"
    assert without_volatile(job["result"]) == without_volatile(whole.json())


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_its_stream_can_be_read_again_from_any_frame(
    client: httpx.AsyncClient, able: EchoWorker, path: str, body: dict[str, Any]
) -> None:
    answer = await client.post(path, json=body)
    events_path = f"/v1/jobs/{answer.headers['X-Job-Id']}/events"

    events = await events_behind(client, events_path)
    for index, event in enumerate(events):
        rest = await events_behind(client, events_path, last_id=event.id)
        assert len(rest) == len(events) - index - 1


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_a_key_makes_it_one_request(
    client: httpx.AsyncClient, able: EchoWorker, path: str, body: dict[str, Any]
) -> None:
    key = {"Idempotency-Key": "k"}
    first = await client.post(path, json=body, headers=key)
    second = await client.post(path, json=body, headers=key)

    assert first.headers["X-Job-Id"] == second.headers["X-Job-Id"]
    assert without_volatile(first.json()) == without_volatile(second.json())
