"""HEAD, OPTIONS, trailing slashes and path prefixes.

A front serves these at every path, besides the methods that the route itself declares."""

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.http.app import TABLE
from tests.fixtures.api.echo_worker import EchoWorker, announce, model_info
from tests.fixtures.api.errors import read_error
from tests.fixtures.api.fronts import has_followers, in_memory, live, states
from tests.fixtures.api.staying import staying_worker
from tests.fixtures.polling import until

ROUTES = [entry.route for entry in TABLE.entries]
GETS = sorted({route.path for route in ROUTES if "GET" in route.methods})
PATHS = sorted({route.path for route in ROUTES})
DOCUMENTS = ["/docs", "/redoc", "/openapi.json"]
LATER = {"Prefer": "respond-async"}


def url(path: str, job_id: str) -> str:
    """Return the route's template with its parameters filled in."""
    path = re.sub(r"\{(model_)?id:path\}", "org/name", path)
    return path.replace("{id}", job_id).replace("{task}", "embed")


def methods_of(path: str) -> set[str]:
    """Return the methods of all routes that match this template."""
    filled = url(path, "00" * 17)
    methods: set[str] = set()
    for route in ROUTES:
        if route.path_regex.match(filled):
            methods |= route.methods or set()
    return methods


def shape_of(answer: httpx.Response) -> str:
    """Return the dialect in whose shape the error is written."""
    body = answer.json()
    if "error_type" in body:
        return "tgi"

    dialects = {"field": "plain", "param": "openai", "details": "api"}
    [distinctive_field] = body["error"].keys() - {"code", "message", "type"}
    return dialects[distinctive_field]


def stable_headers(answer: httpx.Response) -> dict[str, str]:
    """Return the headers that are the same for two equal requests."""
    headers = dict(answer.headers)
    headers.pop("x-request-id", None)
    headers.pop("date", None)
    return headers


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
    """HEAD has the status and all headers of GET, on every path that has GET.

    The connection is a real one and stays usable after each HEAD."""
    async with live(redis) as (client, _):
        job_id = await a_job(client)

        for path in [*GETS, *DOCUMENTS, "/v1/models/nobody", "/v1/jobs/nothing"]:
            got = await client.get(url(path, job_id))
            head = await client.head(url(path, job_id))

            assert head.status_code == got.status_code, path
            assert head.content == b""
            # The GET itself has changed the counters, and with them the length.
            if path == "/metrics":
                continue

            get_headers = stable_headers(got)
            head_headers = stable_headers(head)
            if got.headers["content-type"].startswith("text/event-stream"):
                of_the_body_alone = {"x-effective-max-tokens", "transfer-encoding"}
                assert get_headers.keys() - head_headers.keys() <= of_the_body_alone
                assert head_headers["content-type"] == get_headers["content-type"]
            else:
                assert get_headers == head_headers, path
                assert int(head.headers["content-length"]) == len(got.content)


async def test_head_of_a_stream_follows_nothing_and_ends_nothing(
    redis: Redis, worker: EchoWorker
) -> None:
    """HEAD adds no follower to a request.

    The one follower that the request has would end it by leaving."""
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
            get_is_refused = got.status_code == 401
            head_is_refused = head.status_code == 401
            assert get_is_refused == head_is_refused, path


@pytest.mark.parametrize("path", PATHS)
async def test_options_and_refusals_say_what_there_is(redis: Redis, path: str) -> None:
    """OPTIONS and a 405 list the path's methods in `Allow`."""
    methods = methods_of(path)
    allowed = set(methods)
    if "GET" in methods:
        allowed.add("HEAD")

    filled = url(path, "00" * 17)
    async with in_memory(redis, api_keys="ann:key-a") as client:
        options = await client.options(filled)
        refused = await client.request("PATCH", filled)
        head = await client.head(filled)

    assert (options.status_code, options.content) == (204, b"")
    assert set(options.headers["Allow"].split(", ")) == allowed | {"OPTIONS"}

    assert refused.status_code == 405
    assert read_error(refused).message, "in a form of ours"
    assert set(refused.headers["Allow"].split(", ")) == allowed

    assert head.status_code != 405 or "GET" not in methods
    if head.status_code == 405:
        assert set(head.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
async def test_documents_say_what_there_is_too(redis: Redis, path: str) -> None:
    async with in_memory(redis) as client:
        options = await client.options(path)
        page = await client.get(path)
        head = await client.head(path)
    assert (options.status_code, options.headers["Allow"]) == (204, "GET, HEAD, OPTIONS")
    assert (head.status_code, head.content) == (200, b"")
    assert page.headers["Content-Length"] == str(len(page.content))
    assert head.headers["Content-Length"] == page.headers["Content-Length"]


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
        # A full URL: httpx would take `//v1/models` alone for a host.
        full_url = f"http://front{path}"
        if method == "POST":
            answer = await client.post(full_url, json=body)
        else:
            answer = await client.get(full_url)

    assert answer.status_code == status, answer.text
    assert "location" not in answer.headers or status == 202
    if status == 404:
        dialect = "openai" if path.startswith("/v1") else "plain"
        assert shape_of(answer) == dialect
        assert "''" not in answer.text


async def test_admin_routes_and_metrics_have_one_name(redis: Redis) -> None:
    """A proxy that denies an admin route by its exact path denies it altogether."""
    admin = {"Authorization": "Bearer root"}
    await announce(redis, "echo")
    async with in_memory(redis, admin_keys="ops:root") as client:
        unload = await client.post("/api/models/unload/echo/", headers=admin)
        delete = await client.delete("/api/models/text-generation/echo/", headers=admin)
        metrics = await client.get("/metrics/", headers=admin)

    assert unload.status_code == 404
    assert delete.status_code == 404
    assert metrics.status_code == 404


async def test_a_key_is_asked_for_with_a_slash_too(redis: Redis) -> None:
    async with in_memory(redis, api_keys="ann:key-a") as client:
        models = await client.get("/v1/models/")
        info = await client.get("/model/info/")
        completion = await client.post("/v1/completions/", json={"prompt": "a"})

    assert models.status_code == 401
    assert info.status_code == 401
    assert completion.status_code == 401


# A prefix


@pytest.mark.parametrize("root", ["/hrm", "/teams/hrm", "/api", "/v1"])
@pytest.mark.parametrize("is_stripped", [True, False])
async def test_a_prefix_is_served_whether_or_not_it_was_taken_off(
    redis: Redis, worker: EchoWorker, root: str, is_stripped: bool
) -> None:
    """A front serves its paths below its prefix, even if some of its paths begin the same way."""
    prefix = "" if is_stripped else root
    async with in_memory(redis, root_path=root) as client:
        listed = await client.get(f"{prefix}/v1/models")
        [model] = listed.json()["data"]
        assert model["id"] == "org/name"
        assert (await client.get(f"{prefix}/v1/models/org/name")).status_code == 200
        assert (await client.get(f"{prefix}/api/models/status/org/name")).status_code == 200

        accepted = await client.post(
            f"{prefix}/v1/completions/", json={"prompt": "a b"}, headers=LATER
        )
        assert accepted.status_code == 202
        job_id = accepted.headers["X-Job-Id"]
        location = accepted.headers["Location"]
        assert location == f"{root}/v1/jobs/{job_id}"

        if is_stripped:
            location = location.removeprefix(root)
        followed = await client.get(location)
        assert followed.json()["id"] == job_id

        document = (await client.get(f"{prefix}/openapi.json")).json()
        assert document["servers"] == [{"url": root}]
        assert "/v1/models" in document["paths"]
        docs = await client.get(f"{prefix}/docs")
        assert f"'{root}/openapi.json'" in docs.text.replace('"', "'")

        refused = await client.post(f"{prefix}/v1/completions", json={"prompt": 3.5})
        assert shape_of(refused) == "openai", "the dialect is known by the path without its prefix"
        local = await client.post(f"{prefix}/api/inference", json={"task": "none"})
        assert (local.status_code, shape_of(local)) == (422, "api")

        assert (await client.get("/healthz")).status_code == 200, "probes ask without it"
        assert (await client.get(f"{root}x/v1/models")).status_code == 404


async def test_one_key_and_one_body_are_one_request_with_a_prefix_and_without(
    redis: Redis, worker: EchoWorker
) -> None:
    job_ids = set()
    async with in_memory(redis, root_path="/hrm") as client:
        for path in ("/generate", "/hrm/generate", "/hrm/generate/"):
            answer = await client.post(
                path, json={"prompts": ["a"]}, headers={"Idempotency-Key": "k"}
            )
            job_ids.add(answer.headers["X-Job-Id"])

    assert len(job_ids) == 1


async def test_rates_and_admin_doors_hold_below_a_prefix(redis: Redis) -> None:
    await announce(redis, "org/name")
    async with in_memory(
        redis,
        root_path="/hrm",
        endpoint_rate_limits="/generate=1/60",
        admin_keys="ops:root",
        require_key="no",
    ) as client:
        body = {"prompts": ["a"]}
        with_prefix = await client.post("/hrm/generate", json=body, headers=LATER)
        without_prefix = await client.post("/generate", json=body, headers=LATER)
        unload = await client.post("/hrm/api/models/unload/org/name")
        metrics = await client.get("/hrm/metrics")

    assert with_prefix.status_code == 202
    assert without_prefix.status_code == 429
    assert unload.status_code == 401
    assert 'route="/generate"' in metrics.text
