"""A Redis that takes connections and answers nothing: every question to a front has its answer in
time all the same."""

import asyncio
import time
from typing import Any

import httpx

from shared.fleet.presence import Presence
from shared.queue import keys
from shared.queue.broker import connect
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.frames import frames
from tests.fixtures.api.fronts import live
from tests.fixtures.polling import until
from tests.fixtures.redis_server import RedisServer
from tests.fixtures.slowness import slowness, within

LIMIT_S = 3.0
STREAM = {"prompt": "a b", "stream": True}


async def test_every_question_is_answered(own_redis: RedisServer) -> None:
    redis = connect(own_redis.url)
    async with EchoWorker(own_redis.url), live(redis) as (client, _):
        whole = frames(
            await client.post("/v1/completions", json=STREAM, headers={"Idempotency-Key": "k"})
        )
        id = whole[0].id.partition(".")[0]
        questions: list[tuple[str, str, dict[str, Any]]] = [
            ("GET", f"/v1/jobs/{id}", {}),
            ("GET", f"/v1/jobs/{id}/events", {}),
            ("DELETE", f"/v1/jobs/{id}", {}),
            ("POST", f"/api/inference/cancel/{id}", {}),
            ("GET", "/v1/models", {}),
            ("GET", "/v1/models/echo", {}),
            (
                "POST",
                "/v1/completions",
                {"json": STREAM, "headers": {"Last-Event-ID": whole[0].id}},
            ),
            ("POST", "/v1/completions", {"json": STREAM, "headers": {"Idempotency-Key": "k"}}),
            ("POST", "/v1/completions", {"json": STREAM}),
            ("GET", "/v1/files", {}),
            ("GET", f"/v1/artifacts/{keys.new_artifact_id()}", {}),
            (
                "POST",
                "/v1/files",
                {"files": {"file": ("a.txt", b"a")}, "data": {"purpose": "batch"}},
            ),
            ("GET", "/readyz", {}),
        ]
        with own_redis.hanging():
            await until(lambda: is_noticed(client), "what the front knows of the fleet is too old")
            stretched = slowness()
            answered = await asyncio.gather(*(timed(client, *question) for question in questions))
            limit_s = LIMIT_S * max(stretched, slowness())
            for probe in ("/healthz", "/metrics"):
                assert (await client.get(probe)).status_code == 200
        for question, (answer, seconds) in zip(questions, answered, strict=True):
            assert answer.status_code == 503, question
            assert seconds < limit_s, question
            if question[1] != "/readyz":
                assert (answer.json()["error"]["code"], answer.headers["Retry-After"]) == (
                    "broker_unavailable",
                    "1",
                )
        told = (await client.get(f"/v1/jobs/{id}")).json()
        assert (told["state"], told["result"]["choices"][0]["text"]) == ("done", "a b")
    await redis.aclose()


async def test_what_has_a_key_is_looked_for_no_longer_than_that(own_redis: RedisServer) -> None:
    """No worker is there as far as the front knows, and then Redis hangs."""
    redis = connect(own_redis.url)
    async with EchoWorker(own_redis.url), live(redis) as (client, front):
        await Presence(redis).leave("w1")
        await front.fleet.now()
        with own_redis.hanging():
            keyed: dict[str, Any] = {"json": STREAM, "headers": {"Idempotency-Key": "k"}}
            with within(LIMIT_S, "it is answered"):
                answer = await client.post("/v1/completions", **keyed)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "broker_unavailable")
    await redis.aclose()


async def is_noticed(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 503


async def timed(
    client: httpx.AsyncClient, method: str, path: str, more: dict[str, Any]
) -> tuple[httpx.Response, float]:
    """The answer, and the seconds until it came."""
    begun = time.monotonic()
    return await client.request(method, path, **more), time.monotonic() - begun
