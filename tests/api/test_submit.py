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
from tests.fixtures.posts import POSTS, creating

SUBMISSIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("generate", "/generate", {"prompts": ["a b", "c"], "temperature": 0}),
    ("completions", "/v1/completions", {"prompt": "a b", "n": 2, "logprobs": 1, "seed": 3}),
    ("score", "/loglikelihood", {"prompts": ["a"], "continuations": ["b"]}),
    ("score_rolling", "/loglikelihood_rolling", {"prompts": ["a"]}),
    ("chat", "/v1/chat/completions", {"messages": [{"role": "user", "content": "a b"}]}),
    ("embed", "/v1/embeddings", {"input": "a b"}),
    ("tokenize", "/tokenize", {"prompt": "a b"}),
    ("detokenize", "/detokenize", {"tokens": [1, 2]}),
    ("solve_math", "/solve/math", {"problem": "1 + 1"}),
    ("solve_coding", "/solve/coding", {"problem": "say hi"}),
    ("solve", "/v1/puzzles/solve", {"grid": "12.."}),
    ("echo_task", "/v1/echo-task", {"text": "a", "steps": 2}),
]


OTHER_WAYS = {"/", "/generate_stream", "/api/inference", "/api/inference/stream"}
"""To ask for what has a task of its own already."""


def test_every_route_that_creates_work_is_a_row_and_is_tested() -> None:
    paths = {post.path for post in dialects.POSTS}
    assert {route.path for route in creating()} == paths | {"/v1/jobs"}
    assert {path for path, _ in POSTS} == paths
    assert {post.path for post in dialects.POSTS if not post.job_task} == OTHER_WAYS
    assert sorted(task for task, _, _ in SUBMISSIONS) == sorted(TASKS)


@pytest.mark.parametrize(("task", "path", "body"), SUBMISSIONS)
async def test_a_job_of_any_task(
    client: httpx.AsyncClient, able: EchoWorker, task: str, path: str, body: dict[str, Any]
) -> None:
    """202 at once, with the answer of the endpoint for its result."""
    accepted = await client.post("/v1/jobs", json={"task": task, **body})
    id = accepted.json()["id"]
    assert (accepted.status_code, accepted.headers["Location"]) == (202, f"/v1/jobs/{id}")
    assert accepted.headers["X-Job-Id"] == id
    assert "Preference-Applied" not in accepted.headers
    told = (await ended(client, accepted.headers["Location"])).json()
    assert without_names(told["result"]) == without_names(
        (await client.post(path, json=body)).json()
    )


EVERYWHERE = [*POSTS, *(("/v1/jobs", {"task": task} | body) for task, _, body in SUBMISSIONS)]


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
    """No worker takes it: what has to wait is told to."""
    await announce(redis, "echo", tasks=ALL_TASKS)
    waits = "1" in applied
    async with in_memory(redis) as client:

        async def check(path: str, body: dict[str, Any]) -> None:
            answer = await client.post(path, json=body, headers={"Prefer": asked})
            assert (answer.status_code, answer.json()["state"]) == (202, "queued"), path
            assert answer.headers["Preference-Applied"] == applied
            assert answer.headers["Location"] == f"/v1/jobs/{answer.json()['id']}"

        # a stream that waits has begun
        await asyncio.gather(
            *(check(*item) for item in EVERYWHERE if not (waits and "stream" in item[1]))
        )


@pytest.mark.parametrize(("task", "path", "body"), SUBMISSIONS)
async def test_who_waits_for_a_job_gets_its_answer(
    client: httpx.AsyncClient, able: EchoWorker, task: str, path: str, body: dict[str, Any]
) -> None:
    for to, sent in ((path, body), ("/v1/jobs", {"task": task} | body)):
        answer = await client.post(to, json=sent, headers={"Prefer": "respond-async, wait=10"})
        assert (answer.status_code, answer.headers["Preference-Applied"]) == (200, "wait=10")
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
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, field)
    assert answer.json()["error"]["message"].startswith(field)
    assert able.jobs == []


async def test_a_job_with_a_key_is_one(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    body = {"task": "completions", "prompt": "a b", "stream": True}
    first, second = [
        await client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)
    ]
    assert first.json()["id"] == second.json()["id"]
    assert len(worker.jobs) == 1
    assert worker.jobs[0].is_streamed


async def test_what_waits_tells_its_place(redis: Redis, redis_url: str) -> None:
    """Positions count from 1; the wait is known once something has ended."""
    await announce(redis, "echo")
    async with in_memory(redis) as client:

        async def told(location: str) -> tuple[str, int | None, float | None]:
            body = (await client.get(location)).json()
            return body["state"], body["queue_position"], body["starts_in_s"]

        locations = [
            (await client.post("/generate", json={"prompts": ["a b"]}, headers=LATER)).headers[
                "Location"
            ]
            for _ in range(3)
        ]
        assert [await told(location) for location in locations] == [
            ("queued", place, None) for place in (1, 2, 3)
        ]
        async with EchoWorker(redis_url):
            for location in locations:
                await ended(client, location)
                assert (await told(location))[1:] == (None, None)
        late = await client.post("/generate", json={"prompts": ["a b"]}, headers=LATER)
        state, place, starts_in_s = await told(late.headers["Location"])
        assert (state, place) == ("queued", 1)
        assert starts_in_s is not None
        assert 10 / 3 <= starts_in_s <= 20 / 3


async def test_the_document_has_a_body_for_every_task(client: httpx.AsyncClient) -> None:
    """Told apart by `task`, each with the fields of its endpoint's own body."""
    document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    paths = document["paths"]

    def body_of(path: str) -> Any:
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        return {name: part for name, part in schema.items() if name != "title"}

    submission = schemas[body_of("/v1/jobs")["$ref"].rpartition("/")[2]]
    mapping = submission["discriminator"]["mapping"]
    assert submission["discriminator"]["propertyName"] == "task"
    assert submission["oneOf"] == [{"$ref": mapping[task]} for task in TASKS]
    for task, path, _ in SUBMISSIONS:
        beside, body = schemas[mapping[task].rpartition("/")[2]]["allOf"]
        assert (beside["properties"]["task"]["const"], beside["required"]) == (task, ["task"])
        assert body == body_of(path)
