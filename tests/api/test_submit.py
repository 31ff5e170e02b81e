"""`POST /v1/jobs` takes what any endpoint takes; `Prefer` holds on every path that creates work."""

import asyncio
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.endpoints import dialects
from api.routes.submit import TASKS
from tests.fixtures.api.echo_worker import ALL_TASKS, EchoWorker, announce
from tests.fixtures.api.fronts import in_memory
from tests.fixtures.jobs import LATER, ended, without_names
from tests.fixtures.posts import NOT_JSON, POSTS, creating

BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"prompts": ["a b", "c"], "temperature": 0},
    "/v1/completions": {"prompt": "a b", "n": 2, "logprobs": 1, "seed": 3},
}
"""Bodies that say more than those of `POSTS`."""


def submissions() -> list[tuple[str, str, dict[str, Any]]]:
    """Return the name, path and a body of each task of `/v1/jobs`."""
    bodies = dict(POSTS) | BODIES
    rows = []
    for post in dialects.POSTS:
        if post.job_task:
            rows.append((post.job_task, post.path, bodies[post.path]))
    return rows


SUBMISSIONS = submissions()
HUB = "/hub/{id:path}"
PATHS_WITHOUT_A_TASK = {"/", "/generate_stream", "/api/inference", "/api/inference/stream", HUB}
"""Other ways to ask for something that has a task already."""


def test_every_route_that_creates_work_is_a_row_and_is_tested() -> None:
    paths = set()
    paths_without_a_task = set()
    for post in dialects.POSTS:
        paths.add(post.path)
        if not post.job_task:
            paths_without_a_task.add(post.path)

    # The hub's bodies are made of what comes: tests/e2e/test_hub_client.py.
    assert {route.path for route in creating()} == paths - {HUB} | {"/v1/jobs"}
    assert {path for path, _ in POSTS} == paths - {HUB}
    assert paths_without_a_task == PATHS_WITHOUT_A_TASK
    assert sorted(task for task, _, _ in SUBMISSIONS) == sorted(TASKS)


@pytest.mark.parametrize(("task", "path", "body"), SUBMISSIONS)
async def test_a_job_of_any_task(
    client: httpx.AsyncClient, able: EchoWorker, task: str, path: str, body: dict[str, Any]
) -> None:
    """A job is accepted at once with a 202; its result is the answer of the task's endpoint."""
    accepted = await client.post("/v1/jobs", json={"task": task, **body})
    id = accepted.json()["id"]
    location = accepted.headers["Location"]
    assert (accepted.status_code, location) == (202, f"/v1/jobs/{id}")
    assert accepted.headers["X-Job-Id"] == id
    assert "Preference-Applied" not in accepted.headers

    job = await ended(client, location)
    direct = await client.post(path, json=body)
    if path in NOT_JSON:
        assert job.json()["result"]["bytes"] == len(direct.content) > 0
        return
    assert without_names(job.json()["result"]) == without_names(direct.json())


EVERYWHERE: list[tuple[str, Any]] = list(POSTS)
for job_task, _, job_body in SUBMISSIONS:
    EVERYWHERE.append(("/v1/jobs", {"task": job_task} | job_body))


@pytest.mark.parametrize(
    ("asked", "applied"),
    [
        ("respond-async", "respond-async"),
        ("wait=0", "wait=0"),
        ('respond-async, wait="1"', "respond-async, wait=1"),
        ("foo, WAIT = 1", "wait=1"),
    ],
)
async def test_preferences_hold_on_every_path(redis: Redis, asked: str, applied: str) -> None:
    """`Prefer` is applied on every path that creates work.

    No worker takes the work, so every answer says that the job is queued."""
    await announce(redis, "echo", tasks=ALL_TASKS)
    waits = "1" in applied
    async with in_memory(redis) as client:

        async def check(path: str, body: dict[str, Any]) -> None:
            answer = await client.post(path, json=body, headers={"Prefer": asked})
            assert (answer.status_code, answer.json()["state"]) == (202, "queued"), path
            assert answer.headers["Preference-Applied"] == applied
            assert answer.headers["Location"] == f"/v1/jobs/{answer.json()['id']}"

        checks = []
        for path, body in EVERYWHERE:
            # A stream that waits begins with a 200 and cannot become a 202.
            if waits and "stream" in body:
                continue
            checks.append(check(path, body))
        await asyncio.gather(*checks)


@pytest.mark.parametrize(("task", "path", "body"), SUBMISSIONS)
async def test_who_waits_for_a_job_gets_its_answer(
    client: httpx.AsyncClient, able: EchoWorker, task: str, path: str, body: dict[str, Any]
) -> None:
    waits = {"Prefer": "respond-async, wait=10"}
    direct = await client.post(path, json=body, headers=waits)
    job = await client.post("/v1/jobs", json={"task": task} | body, headers=waits)

    for answer in (direct, job):
        assert (answer.status_code, answer.headers["Preference-Applied"]) == (200, "wait=10")
        if path not in NOT_JSON:
            assert "state" not in answer.json()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompts": ["a"]}, "task"),
        ({"task": 7, "prompts": ["a"]}, "task"),
        ({"task": "sing", "prompts": ["a"]}, "task"),
        ({"task": "generate"}, "prompts"),
        ({"task": "generate", "prompts": [3]}, "prompts"),
        ({"task": "score", "prompts": ["a", "b"], "continuations": ["a"]}, "continuations"),
        ({"task": "solve", "grid": "1", "grids": ["1"]}, "grid"),
    ],
)
async def test_what_is_wrong_is_named(
    client: httpx.AsyncClient, able: EchoWorker, body: dict[str, Any], field: str
) -> None:
    answer = await client.post("/v1/jobs", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (400, field)
    assert error["message"].startswith(field)
    assert able.jobs == []


async def test_a_job_with_a_key_is_one(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    body = {"task": "completions", "prompt": "a b", "stream": True}
    key = {"Idempotency-Key": "k"}
    first = await client.post("/v1/jobs", json=body, headers=key)
    second = await client.post("/v1/jobs", json=body, headers=key)

    assert first.json()["id"] == second.json()["id"]
    assert len(worker.jobs) == 1
    assert worker.jobs[0].is_streamed


async def test_what_waits_tells_its_place(redis: Redis, redis_url: str) -> None:
    """Positions count from 1; the expected wait is known once a job has ended."""
    await announce(redis, "echo")
    async with in_memory(redis) as client:

        async def submit() -> str:
            answer = await client.post("/generate", json={"prompts": ["a b"]}, headers=LATER)
            location: str = answer.headers["Location"]
            return location

        async def status(location: str) -> tuple[str, int | None, float | None]:
            body = (await client.get(location)).json()
            return body["state"], body["queue_position"], body["starts_in_s"]

        first = await submit()
        second = await submit()
        third = await submit()
        assert await status(first) == ("queued", 1, None)
        assert await status(second) == ("queued", 2, None)
        assert await status(third) == ("queued", 3, None)

        async with EchoWorker(redis_url):
            for location in (first, second, third):
                await ended(client, location)
                _, position, starts_in_s = await status(location)
                assert (position, starts_in_s) == (None, None)

        late = await submit()
        state, position, starts_in_s = await status(late)
        assert (state, position) == ("queued", 1)
        assert starts_in_s is not None
        # Three jobs ended within the last one or two buckets of ten seconds.
        assert 10 / 3 <= starts_in_s <= 20 / 3


async def test_the_document_has_a_body_for_every_task(client: httpx.AsyncClient) -> None:
    """Bodies are told apart by `task`; each has the fields of its endpoint's body."""
    document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    paths = document["paths"]

    def body_of(path: str) -> dict[str, Any]:
        request_body = paths[path]["post"]["requestBody"]
        schema = dict(request_body["content"]["application/json"]["schema"])
        schema.pop("title", None)
        return schema

    def resolve(ref: str) -> Any:
        return schemas[ref.rpartition("/")[2]]

    submission = resolve(body_of("/v1/jobs")["$ref"])
    mapping = submission["discriminator"]["mapping"]
    assert submission["discriminator"]["propertyName"] == "task"
    assert submission["oneOf"] == [{"$ref": mapping[task]} for task in TASKS]

    for task, path, _ in SUBMISSIONS:
        task_schema, body_schema = resolve(mapping[task])["allOf"]
        assert task_schema["properties"]["task"]["const"] == task
        assert task_schema["required"] == ["task"]
        assert body_schema == body_of(path)
