"""`/v1/jobs`: jobs are submitted on any endpoint, read on any front, and cancelled once."""

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
from tests.fixtures.posts import NOT_JSON, POSTS, TASKS_OF_PATHS
from tests.fixtures.redis_server import patient

WHOLE_ANSWERS = [(path, body) for path, body in POSTS if "stream" not in body]
WAITS = [{"prompts": ["a b"]}, {"prompts": ["a b", "c d"]}]


async def submit(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> str:
    """Submit work and return the id of its request."""
    accepted = await client.post(path, json=body, headers=LATER)
    return str(accepted.json()["id"])


async def all_are(redis: Redis, expected: list[str]) -> bool:
    """Return whether these are the states of all jobs."""
    return await states(redis) == expected


async def have_begun(redis: Redis, worker: EchoWorker, count: int) -> bool:
    """Return whether the worker has `count` jobs, each with two events: its start and a word."""
    if len(worker.jobs) != count:
        return False
    for job in worker.jobs:
        if len(await Desk(redis, "echo").events(job)) != 2:
            return False
    return True


@pytest.mark.parametrize(("path", "body"), WHOLE_ANSWERS)
async def test_the_result_is_the_answer(
    redis: Redis, able: EchoWorker, path: str, body: dict[str, Any]
) -> None:
    """A job's result, read on another front, is the body that the endpoint would have given."""
    async with in_memory(redis) as one, in_memory(redis) as two:
        accepted = await one.post(path, json=body, headers=LATER)
        assert accepted.status_code == 202
        assert accepted.headers["Preference-Applied"] == "respond-async"
        id = accepted.json()["id"]
        assert accepted.headers["Location"] == f"/v1/jobs/{id}"
        assert accepted.json()["state"] in ("queued", "running", "done")

        job = (await ended(two, accepted.headers["Location"])).json()
        direct = await two.post(path, json=body)
        answer = job["result"] if path in NOT_JSON else direct.json()

    assert job["id"] == id
    assert job["state"] == "done"
    assert job["model"] == "echo"
    assert job["object"] == "job"
    assert job["task"] == TASKS_OF_PATHS.get(path, "generate")
    assert job["usage"]["prompt_tokens"] >= 0
    usage = answer.get("usage", {}) if isinstance(answer, dict) else {}
    if "total_tokens" in usage:
        assert job["usage"]["total_tokens"] == usage["total_tokens"]
    assert without_names(job["result"]) == without_names(answer)


async def test_states_of_a_request_of_several_jobs(redis: Redis, worker: EchoWorker) -> None:
    worker.gate.clear()

    async with in_memory(redis) as client:
        accepted = await client.post("/generate", json={"prompts": ["a b", "c d"]}, headers=LATER)
        location = accepted.headers["Location"]
        await until(lambda: len(worker.jobs) == 2, "the jobs run")

        running = (await client.get(location)).json()
        assert running["state"] == "running"
        assert running["usage"] is None
        assert "result" not in running

        worker.gate.set()
        done = (await ended(client, location)).json()
        assert done["result"]["completions"] == ["a b", "c d"]


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
        long_wait = {"Prefer": f"{also}wait=60"}
        whole = await client.post("/generate", json={"prompts": ["a b"]}, headers=long_wait)
        assert (whole.status_code, whole.json()["completions"]) == (200, ["a b"])

        worker.gate.clear()
        short_wait = {"Prefer": f"{also}wait=5"}
        accepted = await client.post("/generate", json={"prompts": ["c d"]}, headers=short_wait)
        assert (accepted.status_code, accepted.json()["state"]) == (202, "running")

        worker.gate.set()
        done = (await ended(client, accepted.headers["Location"])).json()
        assert done["result"]["completions"] == ["c d"]


@pytest.mark.parametrize("body", WAITS)
async def test_cancelling_is_idempotent_and_keeps_what_was_said(
    redis: Redis, worker: EchoWorker, body: dict[str, list[str]]
) -> None:
    num_jobs = len(body["prompts"])
    first_words = [prompt[:2] for prompt in body["prompts"]]
    worker.gate.clear()

    async with in_memory(redis) as client:
        id = await submit(client, "/generate", body)
        await until(lambda: have_begun(redis, worker, num_jobs), "each job has said its first word")

        for _ in range(2):
            cancelled = await client.delete(f"/v1/jobs/{id}")
            job = cancelled.json()
            assert (cancelled.status_code, job["state"]) == (200, "cancelled")
            assert job["error"]["code"] == "cancelled"
            assert job["partial"]["completions"] == first_words
            assert "result" not in job
        assert (await client.post(f"/api/inference/cancel/{id}")).json() == job

        worker.gate.set()
        await until(lambda: len(worker.stale) == num_jobs, "the worker is told")

    assert await Desk(redis, "echo").counts() == (0, 0)


async def test_who_follows_a_job_hears_that_it_was_called_off(
    redis: Redis, worker: EchoWorker
) -> None:
    """P4: a stream ends once, with the cancellation, and reads the same a second time."""
    worker.gate.clear()

    async with live(redis) as (client, _):
        id = await submit(client, "/v1/completions", {"prompt": "a b", "stream": True})
        following = asyncio.create_task(client.get(f"/v1/jobs/{id}/events"))
        await until(lambda: have_begun(redis, worker, 1), "the job has said its first word")

        await client.delete(f"/v1/jobs/{id}")
        followed = await following
        read_later = await client.get(f"/v1/jobs/{id}/events")

        for answer in (followed, read_later):
            stream = frames(answer)
            assert stream[0].text == ""
            assert stream[1].text == "a "
            assert stream[2].json["error"]["code"] == "cancelled"
            assert stream[3].data == "[DONE]"


async def test_what_is_done_stays_done(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    id = (await client.post("/generate", json={"prompts": ["a"]})).headers["X-Job-Id"]
    assert (await client.delete(f"/v1/jobs/{id}")).json()["state"] == "done"
    assert (await client.get(f"/v1/jobs/{id}")).json()["result"]["completions"] == ["a"]


async def test_a_failure_is_told_and_takes_its_siblings_along(
    redis: Redis, worker: EchoWorker
) -> None:
    worker.gate.clear()

    async with in_memory(redis) as client:
        id = await submit(client, "/generate", {"prompts": ["a b", "c d", "e f"]})
        await until(lambda: len(worker.jobs) == 3, "the jobs run")

        failure = Failed("worker_failed", "It broke.")
        await Submissions(Broker(redis)).end([worker.jobs[1]], failure)
        await until(
            lambda: all_are(redis, ["cancelled", "cancelled", "failed"]),
            "the siblings are cancelled",
        )
        job = (await client.get(f"/v1/jobs/{id}")).json()

    assert job["state"] == "failed"
    assert job["error"]["code"] == "worker_failed"
    assert job["error"]["message"] == "It broke."


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
    """Another tenant's job is refused like an unknown one, and is not ended."""
    await announce(redis, "echo")
    desk = Desk(redis, "echo")
    request, (job,) = await desk.request(tenant="somebody else")

    async with in_memory(redis) as client:
        unknown = (await client.get(f"/v1/jobs/{'0' * 34}")).json()["error"]

        for method, path in (
            ("GET", f"/v1/jobs/{request.id}"),
            ("GET", f"/v1/jobs/{request.id}/events"),
            ("DELETE", f"/v1/jobs/{request.id}"),
            ("POST", f"/api/inference/cancel/{request.id}"),
        ):
            answer = await client.request(method, path)
            error = answer.json()["error"]
            assert answer.status_code == 404
            assert error["code"] == unknown["code"]
            assert error["message"] == unknown["message"]
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
    """P4: an overdue job ends although the front that took it is gone and there is no worker."""
    await announce(redis, "echo")

    async with in_memory(redis) as client:
        # A request that no front took, with a record that one wrote.
        first_id = await submit(client, "/generate", {"prompts": ["a"]})
        first = await Desk(redis).requests.find(first_id, "public")
        request, _ = await Desk(redis, "echo").request(record=first.record, **{limit: 0.001})

        job = (await ended(client, f"/v1/jobs/{request.id}")).json()

    assert (job["state"], job["error"]["code"]) == ("failed", code)


async def test_a_front_ends_what_it_took_and_nobody_waits_for(redis: Redis) -> None:
    await announce(redis, "echo")
    async with in_memory(redis, queue_timeout_s=0.2) as client:
        await client.post("/generate", json={"prompts": ["a"]}, headers=LATER)
        await until(lambda: all_are(redis, ["failed"]), "the job is failed")


async def test_events_of_what_has_no_stream_of_its_own(
    client: httpx.AsyncClient, able: EchoWorker
) -> None:
    # `/loglikelihood` and `/loglikelihood_rolling`.
    for path, body in POSTS[1:3]:
        id = await submit(client, path, body)
        opening, whole, done = frames(await client.get(f"/v1/jobs/{id}/events"))

        assert opening.json == {"id": id, "object": "job", "model": "echo"}
        assert whole.json == (await client.get(f"/v1/jobs/{id}")).json()["result"]
        assert done.data == "[DONE]"


async def test_a_job_tells_how_far_it_has_come(client: httpx.AsyncClient, able: EchoWorker) -> None:
    """Progress is told to those who poll and to those who follow, each step once."""
    able.gate.clear()
    body = {"task": "echo_task", "text": "a", "steps": 3}
    id = (await client.post("/v1/jobs", json=body)).json()["id"]

    async def progress() -> Any:
        return (await client.get(f"/v1/jobs/{id}")).json()["progress"]

    async def has_begun() -> bool:
        return await progress() is not None

    await until(has_begun, "the first step is told")
    assert await progress() == {"done": 1, "total": 3, "note": ""}

    able.gate.set()
    job = (await ended(client, f"/v1/jobs/{id}")).json()
    result = {
        "steps": 3,
        "file": {"id": "file-3", "media_type": "text/plain", "bytes": 3, "digest": "0a"},
    }
    assert job["progress"] is None
    assert job["result"] == result

    stream = frames(await client.get(f"/v1/jobs/{id}/events"))
    opening, *steps, whole, done = stream
    assert opening.json["object"] == "job"
    assert len(steps) == 3
    for number, step in enumerate(steps, 1):
        assert step.json == {
            "id": id,
            "object": "job.progress",
            "job": 0,
            "done": number,
            "total": 3,
            "note": "",
        }
    assert whole.json == result
    assert done.data == "[DONE]"

    # Behind the first step: two steps, the result and the end.
    rest = frames(await client.get(f"/v1/jobs/{id}/events", headers={"Last-Event-ID": steps[0].id}))
    assert [frame.data for frame in rest] == [frame.data for frame in stream[2:]]


async def test_progress_of_several_jobs_is_how_many_have_ended(
    redis: Redis, able: EchoWorker
) -> None:
    able.gate.clear()
    async with in_memory(redis) as client:
        id = await submit(client, "/generate", {"prompts": ["a", "b c"]})
        await until(lambda: len(able.jobs) == 2, "the jobs run")
        job = (await client.get(f"/v1/jobs/{id}")).json()
        assert job["progress"] == {"done": 0, "total": 2, "note": ""}


async def test_a_job_outlives_its_front(redis: Redis, redis_url: str, worker: EchoWorker) -> None:
    worker.gate.clear()

    other_redis = patient(connect(redis_url))
    async with live(other_redis) as (client, _):
        accepted = await client.post("/v1/completions", json={"prompt": "a b c"}, headers=LATER)
        await until(lambda: len(worker.jobs) == 1, "the job runs")
    await other_redis.aclose()

    worker.gate.set()
    async with in_memory(redis) as client:
        job = (await ended(client, accepted.headers["Location"])).json()
    assert job["result"]["choices"][0]["text"] == "a b c"
