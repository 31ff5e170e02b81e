"""`/v1/jobs`: submitted on any endpoint, asked for on any front, called off once."""

import asyncio
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from shared.messages import Failed
from shared.queue.broker import Broker, connect
from shared.queue.submission import Submissions
from tests.fixtures.api.echo_worker import EchoWorker, announce
from tests.fixtures.api.frames import frames
from tests.fixtures.api.fronts import in_memory, live, states
from tests.fixtures.desk import Desk
from tests.fixtures.jobs import LATER, ended, without_names
from tests.fixtures.polling import until
from tests.fixtures.posts import POSTS, TASKS_OF_PATHS

WAITS = [{"prompts": ["a b"]}, {"prompts": ["a b", "c d"]}]


@pytest.mark.parametrize(
    ("path", "body"), [(path, body) for path, body in POSTS if "stream" not in body]
)
async def test_the_result_is_the_answer(
    redis: Redis, able: EchoWorker, path: str, body: dict[str, Any]
) -> None:
    """The very body that the endpoint would have given, told by another front."""
    async with in_memory(redis) as one, in_memory(redis) as two:
        accepted = await one.post(path, json=body, headers=LATER)
        assert accepted.status_code == 202
        assert accepted.headers["Preference-Applied"] == "respond-async"
        id = accepted.json()["id"]
        assert accepted.headers["Location"] == f"/v1/jobs/{id}"
        assert accepted.json()["state"] in ("queued", "running", "done")
        told = (await ended(two, accepted.headers["Location"])).json()
        waited = (await two.post(path, json=body)).json()
    assert (told["id"], told["state"], told["model"], told["object"]) == (id, "done", "echo", "job")
    assert told["task"] == TASKS_OF_PATHS.get(path, "generate")
    assert told["usage"]["prompt_tokens"] >= 0
    if "usage" in waited:
        assert told["usage"]["total_tokens"] == waited["usage"]["total_tokens"]
    assert without_names(told["result"]) == without_names(waited)


async def test_states_of_a_request_of_several_jobs(redis: Redis, worker: EchoWorker) -> None:
    worker.gate.clear()
    async with in_memory(redis) as client:
        accepted = await client.post("/generate", json={"prompts": ["a b", "c d"]}, headers=LATER)
        location = accepted.headers["Location"]
        await until(lambda: len(worker.jobs) == 2, "the jobs run")
        running = (await client.get(location)).json()
        assert (running["state"], running["usage"]) == ("running", None)
        assert "result" not in running
        worker.gate.set()
        assert (await ended(client, location)).json()["result"]["completions"] == ["a b", "c d"]


async def test_a_job_that_waits_is_queued(redis: Redis) -> None:
    await announce(redis, "echo")
    async with in_memory(redis) as client:
        accepted = await client.post("/generate", json={"prompts": ["a"]}, headers=LATER)
        assert accepted.json()["state"] == "queued"
        assert (await client.get(accepted.headers["Location"])).json()["state"] == "queued"


@pytest.mark.parametrize("also", ["", "respond-async, "])
async def test_who_waits_a_while_gets_the_answer_or_a_job(
    redis: Redis, worker: EchoWorker, also: str
) -> None:
    async with in_memory(redis) as client:
        long = {"Prefer": f"{also}wait=60"}
        whole = await client.post("/generate", json={"prompts": ["a b"]}, headers=long)
        assert (whole.status_code, whole.json()["completions"]) == (200, ["a b"])
        worker.gate.clear()
        short = {"Prefer": f"{also}wait=1"}
        part = await client.post("/generate", json={"prompts": ["c d"]}, headers=short)
        assert (part.status_code, part.json()["state"]) == (202, "running")
        worker.gate.set()
        assert (await ended(client, part.headers["Location"])).json()["result"]["completions"] == [
            "c d"
        ]


@pytest.mark.parametrize("body", WAITS)
async def test_cancelling_is_idempotent_and_keeps_what_was_said(
    redis: Redis, worker: EchoWorker, body: dict[str, list[str]]
) -> None:
    worker.gate.clear()
    async with in_memory(redis) as client:
        location = (await client.post("/generate", json=body, headers=LATER)).headers["Location"]
        await until(
            lambda: _has_said(redis, worker, len(body["prompts"])),
            "each job has said its first word",
        )
        for _ in range(2):
            told = await client.delete(location)
            assert (told.status_code, told.json()["state"]) == (200, "cancelled")
            assert told.json()["error"]["code"] == "cancelled"
            assert told.json()["partial"]["completions"] == [
                prompt[:2] for prompt in body["prompts"]
            ]
            assert "result" not in told.json()
        id = location.rpartition("/")[2]
        assert (await client.post(f"/api/inference/cancel/{id}")).json() == told.json()
        worker.gate.set()
        await until(lambda: len(worker.stale) == len(body["prompts"]), "the worker is told")
    assert await Desk(redis, "echo").counts() == (0, 0)


async def test_who_follows_a_job_hears_that_it_was_called_off(
    redis: Redis, worker: EchoWorker
) -> None:
    """P4: one end, in a stream as well; and the same when it is read again."""
    worker.gate.clear()
    async with live(redis) as (client, _):
        body = {"prompt": "a b", "stream": True}
        id = (await client.post("/v1/completions", json=body, headers=LATER)).json()["id"]
        follower = asyncio.create_task(client.get(f"/v1/jobs/{id}/events"))
        await until(lambda: _has_said(redis, worker, 1), "the job has said its first word")
        await client.delete(f"/v1/jobs/{id}")
        for told in (frames(await follower), frames(await client.get(f"/v1/jobs/{id}/events"))):
            assert [frame.text for frame in told[:2]] == ["", "a "]
            assert told[2].json["error"]["code"] == "cancelled"
            assert told[3].data == "[DONE]"


async def test_what_is_done_stays_done(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    id = (await client.post("/generate", json={"prompts": ["a"]})).headers["X-Job-Id"]
    assert (await client.delete(f"/v1/jobs/{id}")).json()["state"] == "done"
    assert (await client.get(f"/v1/jobs/{id}")).json()["result"]["completions"] == ["a"]


async def test_a_failure_is_told_and_takes_its_siblings_along(
    redis: Redis, worker: EchoWorker
) -> None:
    worker.gate.clear()
    async with in_memory(redis) as client:
        body = {"prompts": ["a b", "c d", "e f"]}
        location = (await client.post("/generate", json=body, headers=LATER)).headers["Location"]
        await until(lambda: len(worker.jobs) == 3, "the jobs run")
        await Submissions(Broker(redis)).end([worker.jobs[1]], Failed("worker_failed", "It broke."))
        await until(
            lambda: _all_are(redis, ["cancelled", "cancelled", "failed"]),
            "the siblings are cancelled",
        )
        told = (await client.get(location)).json()
    assert (told["state"], told["error"]["code"], told["error"]["message"]) == (
        "failed",
        "worker_failed",
        "It broke.",
    )


@pytest.mark.parametrize(
    "id",
    [
        "0" * 34,
        "x",
        "00" + "g" * 32,
        "0" * 33,
        "0" * 35,
        "00%2F..",
        "*",
        "00" + "é" * 32,
        "a" * 5000,
    ],
)
async def test_an_unknown_id_is_404_in_every_use(client: httpx.AsyncClient, id: str) -> None:
    for method, path in (
        ("GET", f"/v1/jobs/{id}"),
        ("GET", f"/v1/jobs/{id}/events"),
        ("DELETE", f"/v1/jobs/{id}"),
        ("POST", f"/api/inference/cancel/{id}"),
    ):
        assert (await client.request(method, path)).status_code == 404, (method, path)


async def test_a_foreign_id_is_404_in_every_use(redis: Redis) -> None:
    """The same as an unknown one; nothing is ended."""
    await announce(redis, "echo")
    desk = Desk(redis, "echo")
    request, (job,) = await desk.request(tenant="somebody else")
    async with in_memory(redis) as client:
        unknown = await client.get(f"/v1/jobs/{'0' * 34}")
        for method, path in (
            ("GET", f"/v1/jobs/{request.id}"),
            ("GET", f"/v1/jobs/{request.id}/events"),
            ("DELETE", f"/v1/jobs/{request.id}"),
            ("POST", f"/api/inference/cancel/{request.id}"),
        ):
            answer = await client.request(method, path)
            told = {name: answer.json()["error"][name] for name in ("code", "message")}
            assert answer.status_code == 404
            assert told.items() <= unknown.json()["error"].items()
            assert request.id not in answer.text
        body = {"prompt": "a", "stream": True}
        stolen = {"Last-Event-ID": f"{request.id}.0"}
        assert (await client.post("/v1/completions", json=body, headers=stolen)).status_code == 404
    assert await desk.counts() == (1, 0)
    assert await desk.events(job) == []


async def test_a_job_of_another_version_is_404(redis: Redis) -> None:
    for record in (b"\x93", b"\x83\xa4kind\xa5other\xa5model\xa1m\xa7created\x01"):
        request, _ = await Desk(redis).request(record=record)
        async with in_memory(redis) as client:
            assert (await client.get(f"/v1/jobs/{request.id}")).status_code == 404


@pytest.mark.parametrize(
    ("limit", "code"), [("queue_timeout_s", "queue_timeout"), ("deadline_s", "deadline_exceeded")]
)
async def test_what_is_overdue_ends_when_it_is_asked_for(
    redis: Redis, limit: str, code: str
) -> None:
    """P4: the front that took it is gone, and there is no worker."""
    await announce(redis, "echo")
    async with in_memory(redis) as client:
        first = (await client.post("/generate", json={"prompts": ["a"]}, headers=LATER)).json()[
            "id"
        ]
        record = await Desk(redis).requests.find(first, "public")
        request, _ = await Desk(redis, "echo").request(record=record.record, **{limit: 0.001})
        told = (await ended(client, f"/v1/jobs/{request.id}")).json()
    assert (told["state"], told["error"]["code"]) == ("failed", code)


async def test_a_front_ends_what_it_took_and_nobody_waits_for(redis: Redis) -> None:
    await announce(redis, "echo")
    async with in_memory(redis, queue_timeout_s=0.2) as client:
        await client.post("/generate", json={"prompts": ["a"]}, headers=LATER)
        await until(lambda: _all_are(redis, ["failed"]), "the job is failed")


async def test_events_of_what_has_no_stream_of_its_own(
    client: httpx.AsyncClient, able: EchoWorker
) -> None:
    for path, body in POSTS[1:3]:
        id = (await client.post(path, json=body, headers=LATER)).json()["id"]
        opening, whole, done = frames(await client.get(f"/v1/jobs/{id}/events"))
        assert opening.json == {"id": id, "object": "job", "model": "echo"}
        assert whole.json == (await client.get(f"/v1/jobs/{id}")).json()["result"]
        assert done.data == "[DONE]"


async def test_a_job_tells_how_far_it_has_come(client: httpx.AsyncClient, able: EchoWorker) -> None:
    """To those who poll, and to those who follow; each step once."""
    able.gate.clear()
    id = (
        await client.post("/v1/jobs", json={"task": "echo_task", "text": "a", "steps": 3})
    ).json()["id"]

    async def progress() -> Any:
        return (await client.get(f"/v1/jobs/{id}")).json()["progress"]

    async def has_begun() -> bool:
        return await progress() is not None

    await until(has_begun, "the first step is told")
    assert await progress() == {"done": 1, "total": 3, "note": ""}
    able.gate.set()
    told = (await ended(client, f"/v1/jobs/{id}")).json()
    made = {
        "steps": 3,
        "file": {"id": "file-3", "media_type": "text/plain", "bytes": 3, "digest": "0a"},
    }
    assert (told["progress"], told["result"]) == (None, made)
    opening, *steps, whole, done = frames(await client.get(f"/v1/jobs/{id}/events"))
    assert opening.json["object"] == "job"
    expected = [
        {"id": id, "object": "job.progress", "job": 0, "done": n, "total": 3, "note": ""}
        for n in (1, 2, 3)
    ]
    assert [step.json for step in steps] == expected
    assert (whole.json, done.data) == (made, "[DONE]")
    rest = frames(await client.get(f"/v1/jobs/{id}/events", headers={"Last-Event-ID": steps[0].id}))
    assert [frame.data for frame in rest] == [frame.data for frame in (*steps[1:], whole, done)]


async def test_progress_of_several_jobs_is_how_many_have_ended(
    redis: Redis, able: EchoWorker
) -> None:
    able.gate.clear()
    async with in_memory(redis) as client:
        id = (await client.post("/generate", json={"prompts": ["a", "b c"]}, headers=LATER)).json()[
            "id"
        ]
        await until(lambda: len(able.jobs) == 2, "the jobs run")
        assert (await client.get(f"/v1/jobs/{id}")).json()["progress"] == {
            "done": 0,
            "total": 2,
            "note": "",
        }


async def test_a_job_outlives_its_front(redis: Redis, redis_url: str, worker: EchoWorker) -> None:
    worker.gate.clear()
    other = connect(redis_url)
    async with live(other) as (client, _):
        accepted = await client.post("/v1/completions", json={"prompt": "a b c"}, headers=LATER)
        await until(lambda: len(worker.jobs) == 1, "the job runs")
    await other.aclose()
    worker.gate.set()
    async with in_memory(redis) as client:
        told = (await ended(client, accepted.headers["Location"])).json()
    assert told["result"]["choices"][0]["text"] == "a b c"


async def _all_are(redis: Redis, expected: list[str]) -> bool:
    return await states(redis) == expected


async def _has_said(redis: Redis, worker: EchoWorker, count: int) -> bool:
    logs = [await Desk(redis, "echo").events(job) for job in worker.jobs]
    return len(logs) == count and all(len(log) == 2 for log in logs)
