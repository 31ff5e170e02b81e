"""Asked for now, later, or as a stream: each dialect's answer is the same, on whichever front."""

from typing import Any

import httpx
import pytest

from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.frames import frames

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
_OWN = {"generation_time", "metrics", "correlation_id"}


def common(body: Any) -> Any:
    """Without what is this answer's own: its times, and its name."""
    return (
        {name: item for name, item in body.items() if name not in _OWN}
        if isinstance(body, dict)
        else body
    )


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_the_result_of_a_job_is_the_endpoints_own_answer(
    client: httpx.AsyncClient, able: EchoWorker, path: str, body: dict[str, Any]
) -> None:
    whole = await client.post(path, json=body)
    assert whole.status_code == 200, whole.text
    later = await client.post(path, json=body, headers={"Prefer": "respond-async"})
    assert later.status_code == 202
    at = later.headers["Location"]
    await client.get(f"{at}/events")
    job = (await client.get(at)).json()
    assert job["state"] == "done"
    assert common(job["result"]) == common(whole.json())


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_its_stream_can_be_read_again_from_any_frame(
    client: httpx.AsyncClient, able: EchoWorker, path: str, body: dict[str, Any]
) -> None:
    answer = await client.post(path, json=body)
    events = f"/v1/jobs/{answer.headers['X-Job-Id']}/events"
    told = [frame for frame in frames(await client.get(events)) if frame.data != "[DONE]"]
    for at, frame in enumerate(told):
        rest = frames(await client.get(events, headers={"Last-Event-ID": frame.id}))
        assert len([other for other in rest if other.data != "[DONE]"]) == len(told) - at - 1


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_a_key_makes_it_one_request(
    client: httpx.AsyncClient, able: EchoWorker, path: str, body: dict[str, Any]
) -> None:
    answers = [
        await client.post(path, json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)
    ]
    assert answers[0].headers["X-Job-Id"] == answers[1].headers["X-Job-Id"]
    assert common(answers[0].json()) == common(answers[1].json())
