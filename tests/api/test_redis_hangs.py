"""A Redis that takes connections and answers nothing.

A front answers every request in time all the same."""

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
from tests.fixtures.jobs import LATER
from tests.fixtures.polling import until
from tests.fixtures.redis_server import RedisServer
from tests.fixtures.slowness import slowness, within

LIMIT_S = 3.9
STREAM = {"prompt": "a b", "stream": True}


async def test_every_question_is_answered(own_redis: RedisServer) -> None:
    redis = connect(own_redis.url)
    async with EchoWorker(own_redis.url), live(redis) as (client, _):
        again = {"Idempotency-Key": "k"}
        whole = await client.post("/v1/completions", json=STREAM, headers=again)
        first_frame, *_ = frames(whole)
        seen = {"Last-Event-ID": first_frame.id}
        id, _, _ = first_frame.id.partition(".")
        upload: dict[str, Any] = {
            "files": {"file": ("a.txt", b"a")},
            "data": {"purpose": "batch"},
        }
        batch = {"input_file_id": keys.new_artifact_id(), "endpoint": "/generate"}
        test = {"event_type": "job.failed"}
        requests: list[tuple[str, str, dict[str, Any]]] = [
            ("GET", f"/v1/jobs/{id}", {}),
            ("GET", f"/v1/jobs/{id}/events", {}),
            ("DELETE", f"/v1/jobs/{id}", {}),
            ("POST", f"/api/inference/cancel/{id}", {}),
            ("GET", "/v1/models", {}),
            ("GET", "/v1/models/echo", {}),
            ("POST", "/v1/completions", {"json": STREAM, "headers": seen}),
            ("POST", "/v1/completions", {"json": STREAM, "headers": again}),
            ("POST", "/v1/completions", {"json": STREAM}),
            ("GET", "/v1/files", {}),
            ("GET", f"/v1/artifacts/{keys.new_artifact_id()}", {}),
            ("POST", "/v1/files", upload),
            ("GET", "/v1/batches", {}),
            ("GET", f"/v1/batches/{keys.new_batch_id()}", {}),
            ("POST", f"/v1/batches/{keys.new_batch_id()}/cancel", {}),
            ("POST", "/v1/batches", {"json": batch}),
            ("GET", "/v1/webhook_endpoints", {}),
            ("GET", f"/v1/webhook_endpoints/{keys.new_webhook_id()}/deliveries", {}),
            ("POST", f"/v1/webhook_endpoints/{keys.new_webhook_id()}/test", {"json": test}),
            ("POST", "/v1/webhook_endpoints", {"json": {"url": "https://example.com/"}}),
            ("POST", "/v1/completions", {"json": STREAM, "headers": LATER}),
            ("GET", "/readyz", {}),
        ]

        with own_redis.hanging():
            await until(lambda: is_noticed(client), "what the front knows of the fleet is too old")
            # The machine may be slow before or after: its slower moment stretches the limit.
            slowness_before = slowness()
            timing = []
            for method, path, more in requests:
                timing.append(timed(client, method, path, more))
            answers = await asyncio.gather(*timing)
            limit_s = LIMIT_S * max(slowness_before, slowness())

            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/metrics")).status_code == 200

        for request, (answer, seconds) in zip(requests, answers, strict=True):
            _, path, _ = request
            assert answer.status_code == 503, request
            assert seconds < limit_s, request
            if path != "/readyz":
                assert answer.json()["error"]["code"] == "broker_unavailable"
                assert answer.headers["Retry-After"] == "1"

        job = (await client.get(f"/v1/jobs/{id}")).json()
        assert job["state"] == "done"
        assert job["result"]["choices"][0]["text"] == "a b"
    await redis.aclose()


async def test_what_has_a_key_is_looked_for_no_longer_than_that(own_redis: RedisServer) -> None:
    """A request with a key is refused in time while Redis hangs.

    As far as the front knows there is no worker, so it looks for the key's earlier answer."""
    redis = connect(own_redis.url)
    async with EchoWorker(own_redis.url), live(redis) as (client, front):
        await Presence(redis).leave("w1")
        await front.fleet.now()
        with own_redis.hanging():
            key = {"Idempotency-Key": "k"}
            with within(LIMIT_S, "it is answered"):
                answer = await client.post("/v1/completions", json=STREAM, headers=key)

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "broker_unavailable")
    await redis.aclose()


async def is_noticed(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 503


async def timed(
    client: httpx.AsyncClient, method: str, path: str, more: dict[str, Any]
) -> tuple[httpx.Response, float]:
    """Return the answer, and the seconds until it came."""
    begun_s = time.monotonic()
    answer = await client.request(method, path, **more)
    return answer, time.monotonic() - begun_s
