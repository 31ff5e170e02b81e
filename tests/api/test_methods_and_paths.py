"""What is served at a path besides what its route says: HEAD, OPTIONS, a slash at its end, a
prefix."""

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.http.app import TABLE
from tests.fixtures.api.echo_worker import EchoWorker, announce, model_info
from tests.fixtures.api.fronts import has_followers, in_memory, live, states
from tests.fixtures.api.staying import staying_worker
from tests.fixtures.polling import until

ROUTES = [entry.route for entry in TABLE.entries]
GETS = sorted({route.path for route in ROUTES if "GET" in route.methods})
PATHS = sorted({route.path for route in ROUTES})
DOCUMENTS = ["/docs", "/redoc", "/openapi.json"]
UNEQUAL = {"x-request-id", "date"}
LATER = {"Prefer": "respond-async"}


def url(path: str, job_id: str) -> str:
    path = re.sub(r"\{(model_)?id:path\}", "org/name", path)
    return path.replace("{id}", job_id).replace("{task}", "embed")


def methods_of(path: str) -> set[str]:
    """What the routes with this template, and those that match it too, say."""
    filled = url(path, "00" * 17)
    return {
        method for route in ROUTES if route.path_regex.match(filled) for method in route.methods
    }


def shape_of(answer: httpx.Response) -> str:
    body = answer.json()
    if "error_type" in body:
        return "tgi"
    return {"field": "plain", "param": "openai", "details": "api"}[
        (body["error"].keys() - {"code", "message", "type"}).pop()
    ]


@pytest.fixture
async def worker(redis_url: str) -> AsyncIterator[EchoWorker]:
    async with staying_worker(redis_url, model_info("org/name")) as worker:
        yield worker


async def a_job(client: httpx.AsyncClient) -> str:
    answer = await client.post("/generate", json={"prompts": ["a b"]}, headers=LATER)
    job_id: str = answer.headers["X-Job-Id"]

    async def is_done() -> bool:
        return bool((await client.get(f"/v1/jobs/{job_id}")).json()["state"] == "done")

    await until(is_done, "the job has ended")
    return job_id


async def test_head_is_what_get_is_without_its_body(redis: Redis, worker: EchoWorker) -> None:
    """On every path that has GET: status, type, length and all else; over a real connection, which
    then goes on."""
    async with live(redis) as (client, _):
        job_id = await a_job(client)
        for path in [*GETS, *DOCUMENTS, "/v1/models/nobody", "/v1/jobs/nothing"]:
            got = await client.get(url(path, job_id))
            head = await client.head(url(path, job_id))
            assert head.status_code == got.status_code, path
            assert head.content == b""
            if path == "/metrics":
                continue  # what it counts has changed meanwhile
            first, second = (
                {k: v for k, v in a.headers.items() if k not in UNEQUAL} for a in (got, head)
            )
            if got.headers["content-type"].startswith("text/event-stream"):
                assert first.keys() - second.keys() <= {
                    "x-effective-max-tokens",
                    "transfer-encoding",
                }
                assert second["content-type"] == first["content-type"]
            else:
                assert first == second, path
                assert int(head.headers["content-length"]) == len(got.content)


async def test_head_of_a_stream_follows_nothing_and_ends_nothing(
    redis: Redis, worker: EchoWorker
) -> None:
    """The request has one follower, whose leaving would end it; HEAD adds none that leaves."""
    worker.gate.clear()
    async with live(redis) as (client, _):
        body = {"prompt": "a b c", "stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            job_id = answer.headers["X-Job-Id"]
            head = await client.head(f"/v1/jobs/{job_id}/events")
            assert (head.status_code, head.headers["X-Job-Id"]) == (200, job_id)
            assert head.headers["content-type"].startswith("text/event-stream")
            assert await has_followers(redis, 1)
            worker.gate.set()
            lines = [line async for line in answer.aiter_lines()]
            assert "data: [DONE]" in lines
        assert await states(redis) == ["done"]


async def test_head_needs_the_key_that_get_needs(redis: Redis) -> None:
    async with in_memory(redis, api_keys="ann:key-a") as client:
        for path in GETS:
            got = await client.get(url(path, "x"))
            head = await client.head(url(path, "x"))
            assert (got.status_code == 401) == (head.status_code == 401), path


@pytest.mark.parametrize("path", PATHS)
async def test_options_and_refusals_say_what_there_is(redis: Redis, path: str) -> None:
    methods = methods_of(path)
    expected = methods | ({"HEAD"} if "GET" in methods else set())
    async with in_memory(redis, api_keys="ann:key-a") as client:
        options = await client.options(url(path, "00" * 17))
        refused = await client.request("PATCH", url(path, "00" * 17))
        head = await client.head(url(path, "00" * 17))
    assert (options.status_code, options.content) == (204, b"")
    assert refused.status_code == 405
    assert refused.json()["error"], "in the shape of the path's dialect"
    assert head.status_code != 405 or "GET" not in methods
    assert set(options.headers["Allow"].split(", ")) == expected | {"OPTIONS"}
    assert set(refused.headers["Allow"].split(", ")) == expected
    if head.status_code == 405:
        assert set(head.headers["Allow"].split(", ")) == expected


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
async def test_documents_say_what_there_is_too(redis: Redis, path: str) -> None:
    async with in_memory(redis) as client:
        options = await client.options(path)
        page = await client.get(path)
        head = await client.head(path)
    assert (options.status_code, options.headers["Allow"]) == (204, "GET, HEAD, OPTIONS")
    assert (head.status_code, head.content) == (200, b"")
    assert (
        head.headers["Content-Length"] == page.headers["Content-Length"] == str(len(page.content))
    )


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "TRACE"])
async def test_where_nothing_is_there_is_no_method(redis: Redis, method: str) -> None:
    async with in_memory(redis) as client:
        answer = await client.request(method, "/nothing")
    assert (answer.status_code, "Allow" in answer.headers) == (404, False)


# Slashes


SLASHES = [
    ("GET", "/v1/models/", 200),
    ("GET", "/v1/models/org/name/", 200),
    ("GET", "/v1/models/org%2Fname", 200),
    ("GET", "/v1/models/org%2Fname%2F", 200),
    ("GET", "/api/models/status/", 200),
    ("GET", "/api/models/status/org%2Fname", 200),
    ("GET", "/model/info/", 200),
    ("POST", "/v1/completions/", 200),
    ("POST", "/v1/chat/completions/", 200),
    ("POST", "/generate/", 200),
    ("POST", "/api/inference/", 200),
    ("POST", "/v1/jobs/", 202),
    ("GET", "/docs/", 200),
    ("GET", "/v1/jobs/", 405),
    ("GET", "/metrics/", 404),
    ("GET", "/healthz/", 404),
    ("GET", "/health/", 404),
    ("GET", "/v1/models//", 404),
    ("GET", "//v1/models", 404),
    ("GET", "/v1//models", 404),
    ("POST", "/v1/completions//", 404),
    ("POST", "/generate//", 404),
    ("POST", "//", 404),
    ("GET", "/nothing/", 404),
    ("GET", "/v1/nothing/", 404),
]
BODY = {
    "prompt": "a",
    "inputs": "a",
    "messages": [{"role": "user", "content": "a"}],
    "task": "text-generation",
}


@pytest.mark.parametrize(("method", "path", "status"), SLASHES)
async def test_a_slash_at_the_end_is_served_or_nothing_is_there(
    redis: Redis, worker: EchoWorker, method: str, path: str, status: int
) -> None:
    body: dict[str, Any] = {"prompt": "a"}
    if path.startswith("/api"):
        body = {"task": "text-generation", "inputs": "a"}
    elif "chat" in path:
        body = {"messages": [{"role": "user", "content": "a"}]}
    elif "jobs" in path:
        body = {"task": "completions", "prompt": "a"}
    async with in_memory(redis) as client:
        answer = await client.request(
            method, f"http://front{path}", json=body if method == "POST" else None
        )
    assert answer.status_code == status, answer.text
    assert "location" not in answer.headers or status == 202
    if status == 404:
        assert shape_of(answer) == ("openai" if path.startswith("/v1") else "plain")
        assert "''" not in answer.text


async def test_admin_routes_and_metrics_have_one_name(redis: Redis) -> None:
    """A proxy that denies them by their exact path has denied them."""
    admin = {"Authorization": "Bearer root"}
    await announce(redis, "echo")
    async with in_memory(redis, admin_keys="ops:root") as client:
        for method, path in (
            ("POST", "/api/models/unload/echo/"),
            ("DELETE", "/api/models/text-generation/echo/"),
        ):
            assert (await client.request(method, path, headers=admin)).status_code == 404
        assert (await client.get("/metrics/", headers=admin)).status_code == 404


async def test_a_key_is_asked_for_with_a_slash_too(redis: Redis) -> None:
    async with in_memory(redis, api_keys="ann:key-a") as client:
        for path in ("/v1/models/", "/model/info/"):
            assert (await client.get(path)).status_code == 401
        assert (await client.post("/v1/completions/", json={"prompt": "a"})).status_code == 401


# A prefix


@pytest.mark.parametrize("root", ["/hrm", "/teams/hrm", "/api", "/v1"])
@pytest.mark.parametrize("is_stripped", [True, False])
async def test_a_prefix_is_served_whether_or_not_it_was_taken_off(
    redis: Redis, worker: EchoWorker, root: str, is_stripped: bool
) -> None:
    """Also one that our own paths begin with."""
    before = "" if is_stripped else root
    async with in_memory(redis, root_path=root) as client:
        listed = await client.get(f"{before}/v1/models")
        assert [item["id"] for item in listed.json()["data"]] == ["org/name"]
        assert (await client.get(f"{before}/v1/models/org/name")).status_code == 200
        assert (await client.get(f"{before}/api/models/status/org/name")).status_code == 200
        accepted = await client.post(
            f"{before}/v1/completions/", json={"prompt": "a b"}, headers=LATER
        )
        assert accepted.status_code == 202
        location = accepted.headers["Location"]
        assert location == f"{root}/v1/jobs/{accepted.headers['X-Job-Id']}"
        followed = await client.get(location.removeprefix(root) if is_stripped else location)
        assert followed.json()["id"] == accepted.headers["X-Job-Id"]
        document = (await client.get(f"{before}/openapi.json")).json()
        assert document["servers"] == [{"url": root}]
        assert "/v1/models" in document["paths"]
        assert f"'{root}/openapi.json'" in (await client.get(f"{before}/docs")).text.replace(
            '"', "'"
        )
        refused = await client.post(f"{before}/v1/completions", json={"prompt": 3.5})
        assert shape_of(refused) == "openai", "the dialect is known by the path without its prefix"
        local = await client.post(f"{before}/api/inference", json={"task": "none"})
        assert (local.status_code, shape_of(local)) == (422, "api")
        assert (await client.get("/healthz")).status_code == 200, "probes ask without it"
        assert (await client.get(f"{root}x/v1/models")).status_code == 404


async def test_one_key_and_one_body_are_one_request_with_a_prefix_and_without(
    redis: Redis, worker: EchoWorker
) -> None:
    again = {"Idempotency-Key": "k"}
    async with in_memory(redis, root_path="/hrm") as client:
        paths = ("/generate", "/hrm/generate", "/hrm/generate/")
        answers = [
            await client.post(path, json={"prompts": ["a"]}, headers=again) for path in paths
        ]
    assert len({answer.headers["X-Job-Id"] for answer in answers}) == 1


async def test_rates_and_admin_doors_hold_below_a_prefix(redis: Redis) -> None:
    await announce(redis, "org/name")
    async with in_memory(
        redis,
        root_path="/hrm",
        endpoint_rate_limits="/generate=1/60",
        admin_keys="ops:root",
        require_key="no",
    ) as client:
        tries = [
            await client.post(path, json={"prompts": ["a"]}, headers=LATER)
            for path in ("/hrm/generate", "/generate")
        ]
        assert [answer.status_code for answer in tries] == [202, 429]
        assert (await client.post("/hrm/api/models/unload/org/name")).status_code == 401
        assert 'route="/generate"' in (await client.get("/hrm/metrics")).text
