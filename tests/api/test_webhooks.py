"""`/v1/webhook_endpoints`, by OpenAI's client and by hand, and what receivers are told of real work.

A deliverer in the test stands for `aios jobs`.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from redis.asyncio import Redis

from api.routes import webhooks
from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.webhooks import EVENT_TYPES, WebhookDeliveries, WebhookEndpoints
from shared.telemetry.metrics import JanitorMetrics
from shared.webhooks.deliverer import Deliverer
from shared.webhooks.sender import Sender
from shared.webhooks.targets import networks
from tests.fixtures.api.batching import batching, line
from tests.fixtures.api.echo_worker import EchoWorker, model_info
from tests.fixtures.api.fronts import in_memory, live
from tests.fixtures.jobs import LATER, ended
from tests.fixtures.polling import until
from tests.fixtures.receiver import Receiver, receiving

PATH = "/v1/webhook_endpoints"
HERE = "127.0.0.0/8"
KEYS = "ann:key-a,bob:key-b"
ANN = {"Authorization": "Bearer key-a"}
BOB = {"Authorization": "Bearer key-b"}
SDK = openai.OpenAI(api_key="none", base_url="http://nowhere")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture
def deliverer(redis: Redis) -> Deliverer:
    sender = Sender(networks((HERE,)))
    return Deliverer(WebhookDeliveries(Broker(redis)), sender, JanitorMetrics().webhooks)


async def deliver_all(deliverer: Deliverer) -> None:
    """Make one attempt of each delivery that is to be queued."""
    for name in await deliverer.take_events():
        await deliverer.deliver(name)


async def register(client: httpx.AsyncClient, receiver: Receiver, **body: Any) -> dict[str, Any]:
    answer = await client.post(PATH, json={"url": receiver.url} | body)
    assert answer.status_code == 200, answer.text
    endpoint: dict[str, Any] = answer.json()
    return endpoint


def told(receiver: Receiver, secret: str) -> list[tuple[str, str]]:
    """Return type and object of each event, as OpenAI's client reads it."""
    events = []
    for got in receiver.got:
        event: Any = SDK.webhooks.unwrap(got.body, got.headers, secret=secret)
        events.append((event.type, event.data.id))
    return events


async def test_openais_client_keeps_the_books(
    redis: Redis, receiver: Receiver, deliverer: Deliverer
) -> None:
    async with (
        live(redis, webhook_allow=(HERE,)) as (http, _),
        openai.AsyncOpenAI(base_url=f"{http.base_url}/v1", api_key="none") as sdk,
    ):
        assert (await sdk.webhooks.event_types.list()).data == list(EVENT_TYPES)
        made = await sdk.webhooks.create(
            event_types=["batch.completed", "batch.failed"], name="mine", url=receiver.url
        )
        assert made.signing_secret.startswith("whsec_")
        assert made.object == "webhook_endpoint"
        assert (made.name, made.url) == ("mine", receiver.url)
        found = await sdk.webhooks.retrieve(made.id)
        assert found.event_types == ["batch.completed", "batch.failed"]
        assert found.signing_secret_hint == f"whsec_…{made.signing_secret.rstrip('=')[-4:]}"
        assert made.signing_secret not in found.to_json()

        changed = await sdk.webhooks.update(made.id, name="ours", event_types=["batch.expired"])
        assert (changed.name, changed.event_types) == ("ours", ["batch.expired"])
        assert changed.url == receiver.url
        other = await sdk.webhooks.create(
            event_types=["batch.failed"], name="", url="https://example.com:8443/a?b=c"
        )
        listed = [endpoint.id async for endpoint in sdk.webhooks.list()]
        assert sorted(listed) == sorted([made.id, other.id])

        rotated = await sdk.webhooks.rotate_secret(
            made.id, keep_old_secret_active_for_24_hours=True
        )
        assert rotated.signing_secret != made.signing_secret
        testing = asyncio.create_task(sdk.webhooks.test(made.id, event_type="batch.failed"))
        while not testing.done():
            await deliver_all(deliverer)
            await asyncio.sleep(0.02)
        result = testing.result()
        assert (result.status_code, result.event_type) == (200, "batch.failed")
        assert (result.success, result.webhook_endpoint_id) == (True, made.id)
        for secret in (made.signing_secret, rotated.signing_secret):
            assert told(receiver, secret) == [("batch.failed", keys.NO_BATCH_ID)]

        gone = await sdk.webhooks.delete(made.id)
        assert (gone.id, gone.deleted) == (made.id, True)
        with pytest.raises(openai.NotFoundError):
            await sdk.webhooks.retrieve(made.id)


async def test_other_tenants_do_not_exist(redis: Redis, receiver: Receiver) -> None:
    settings = {"api_keys": KEYS, "webhook_allow": (HERE,), "webhook_max_endpoints": 1}
    async with in_memory(redis, **settings) as client:
        made = await client.post(PATH, json={"url": receiver.url}, headers=ANN)
        path = f"{PATH}/{made.json()['id']}"
        for method, url in (
            ("GET", path),
            ("POST", path),
            ("DELETE", path),
            ("POST", f"{path}/rotate_secret"),
            ("POST", f"{path}/test"),
            ("GET", f"{path}/deliveries"),
        ):
            body = {"event_type": "job.failed"} if method == "POST" else None
            answer = await client.request(method, url, headers=BOB, json=body)
            assert answer.status_code == 404, (method, url)
            assert answer.json()["error"]["code"] == "webhook_not_found"
        assert (await client.get(PATH, headers=BOB)).json()["data"] == []
        assert len((await client.get(PATH, headers=ANN)).json()["data"]) == 1

        full = await client.post(PATH, json={"url": receiver.url}, headers=ANN)
        assert full.status_code == 400
        assert "1 webhook endpoint" in full.json()["error"]["message"]
        assert (await client.post(PATH, json={"url": receiver.url}, headers=BOB)).is_success


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "url"),
    ({"url": 1}, "url"),
    ({"url": "http://example.com/"}, "url"),
    ({"url": "https://user:word@example.com/"}, "url"),
    ({"url": "https://127.0.0.1/"}, "url"),
    ({"url": "https://[::ffff:169.254.169.254]/"}, "url"),
    ({"url": "https://example.com:25/"}, "url"),
    ({"url": "https://example.com/" + "a" * 2048}, "url"),
    ({"url": "https://example.com/", "event_types": []}, "event_types"),
    ({"url": "https://example.com/", "event_types": ["job.begun"]}, "event_types"),
    ({"url": "https://example.com/", "event_types": ["job.failed"] * 8}, "event_types"),
    ({"url": "https://example.com/", "name": "n" * 257}, "name"),
]


async def test_a_wrong_endpoint_is_refused(redis: Redis) -> None:
    async with in_memory(redis) as client:
        made = await client.post(PATH, json={"url": "https://example.com/"})
        path = f"{PATH}/{made.json()['id']}"
        before = (await client.get(path)).json()
        for body, field in WRONG:
            answer = await client.post(PATH, json=body)
            assert answer.status_code == 400, body
            assert answer.json()["error"]["param"].startswith(field)
            if body:
                assert (await client.post(path, json=body)).status_code == 400, body
        assert (await client.get(PATH)).json()["data"] == [before]


async def test_a_test_that_nobody_sends_ends_all_the_same(
    redis: Redis, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no `aios jobs` runs, an event waits."""
    monkeypatch.setattr(webhooks, "_TEST_S", 0.1)
    async with in_memory(redis, webhook_allow=(HERE,)) as client:
        endpoint = await register(client, receiver)
        test = {"event_type": "job.failed"}
        result = await client.post(f"{PATH}/{endpoint['id']}/test", json=test)
        assert result.status_code == 200
        assert result.json()["success"] is False
        assert result.json()["status_code"] is None


@pytest.mark.parametrize(
    ("path", "headers", "body"),
    [
        ("/v1/completions", LATER, {"prompt": "a b"}),
        ("/generate", LATER, {"prompts": ["a b", "c d", "e"]}),
        ("/v1/jobs", {}, {"task": "generate", "prompts": ["a b"]}),
        ("/loglikelihood", {"Prefer": "wait=60"}, {"prompts": ["a"], "continuations": ["b"]}),
    ],
)
async def test_the_end_of_work_that_is_asked_for_later_is_told(
    redis: Redis,
    able: EchoWorker,
    receiver: Receiver,
    deliverer: Deliverer,
    path: str,
    headers: dict[str, str],
    body: dict[str, Any],
) -> None:
    settings = {"webhook_allow": (HERE,)}
    async with in_memory(redis, **settings) as client:
        endpoint = await register(client, receiver, event_types=["job.completed"])
        answer = await client.post(path, json=body, headers=headers)
        assert answer.is_success, answer.text
        job_id = answer.headers["X-Job-Id"]
        await ended(client, f"/v1/jobs/{job_id}")
        await deliver_all(deliverer)
        assert told(receiver, endpoint["signing_secret"]) == [("job.completed", job_id)]
        assert receiver.got[0].headers["webhook-id"] == f"evt_{job_id}"

        listed = await client.get(f"{PATH}/{endpoint['id']}/deliveries")
        [attempt] = listed.json()["data"]
        assert abs(attempt.pop("created_at") - time.time()) < 60
        assert attempt.pop("duration_ms") >= 0
        assert attempt == {
            "object": "webhook_endpoint.delivery",
            "event_id": f"evt_{job_id}",
            "event_type": "job.completed",
            "attempt": 1,
            "outcome": "delivered",
            "status_code": 200,
            "error": None,
            "next_attempt_at": None,
        }


async def test_work_that_is_waited_for_is_no_event_and_pays_nothing(
    redis: Redis, able: EchoWorker, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_memory(redis, webhook_allow=(HERE,)) as client:
        await register(client, receiver)

        async def never(*_: object) -> bool:
            raise AssertionError("it asks whether there are endpoints")

        monkeypatch.setattr(WebhookEndpoints, "are_there", never)
        for stream in (False, True):
            body = {"prompt": "a b", "stream": stream}
            assert (await client.post("/v1/completions", json=body)).is_success
    assert not await redis.exists(keys.outbox("00"))
    assert not [name async for name in redis.scan_iter("*:untold:*")]


async def test_without_an_endpoint_nothing_is_put_out(redis: Redis, able: EchoWorker) -> None:
    """So an outbox that nobody reads never grows for tenants that have no use of it."""
    async with in_memory(redis) as client:
        accepted = await client.post("/v1/completions", json={"prompt": "a"}, headers=LATER)
        await ended(client, accepted.headers["Location"])
    assert not await redis.exists(keys.outbox("00"))
    assert not [name async for name in redis.scan_iter("*:untold:*")]


async def test_a_cancelled_job_is_told(
    redis: Redis, able: EchoWorker, receiver: Receiver, deliverer: Deliverer
) -> None:
    able.gate.clear()
    async with (
        in_memory(redis, webhook_allow=(HERE,)) as client,
    ):
        endpoint = await register(client, receiver)
        accepted = await client.post("/v1/completions", json={"prompt": "a b"}, headers=LATER)
        location = accepted.headers["Location"]
        await until(lambda: len(able.jobs) == 1, "it runs")
        assert (await client.delete(location)).json()["state"] == "cancelled"
        able.gate.set()
        await deliver_all(deliverer)
    job_id = location.rpartition("/")[2]
    assert told(receiver, endpoint["signing_secret"]) == [("job.cancelled", job_id)]


async def test_an_answer_from_the_cache_is_computed_where_its_end_is_to_be_told(
    redis_url: str, redis: Redis, receiver: Receiver, deliverer: Deliverer
) -> None:
    """An earlier request's end would have been told before anybody asked."""
    settings: dict[str, Any] = {"webhook_allow": (HERE,), "response_cache_ttl_s": 60}
    body = {"prompt": "a b", "temperature": 0}
    async with (
        EchoWorker(redis_url, model_info(fingerprint="f1")),
        in_memory(redis, **settings) as client,
    ):
        first = await client.post("/v1/completions", json=body)
        assert first.headers["X-Cache"] == "miss"
        endpoint = await register(client, receiver)
        accepted = await client.post("/v1/completions", json=body, headers=LATER)
        assert accepted.headers["X-Job-Id"] != first.headers["X-Job-Id"]
        await ended(client, accepted.headers["Location"])
        await deliver_all(deliverer)
    job_id = accepted.headers["X-Job-Id"]
    assert told(receiver, endpoint["signing_secret"]) == [("job.completed", job_id)]


async def test_ends_of_batches_are_told_and_their_lines_are_not(
    redis: Redis, able: EchoWorker, receiver: Receiver, deliverer: Deliverer, tmp_path: Path
) -> None:
    async with (
        batching(redis, tmp_path, webhook_allow=(HERE,)) as desk,
    ):
        endpoint = await register(desk.client, receiver)
        completed = await desk.create([line("a"), line("b")])
        await desk.ended(completed["id"])
        failed = await desk.create([b""])
        await desk.ended(failed["id"])
        cancelled = await desk.create([line("a")])
        await desk.client.post(f"/v1/batches/{cancelled['id']}/cancel")
        await desk.ended(cancelled["id"])
        expired = await desk.create([line("a")])
        name = keys.batch(expired["id"])
        await redis.hset(name, mapping={"expires_ms": 1})  # type: ignore[misc]
        await desk.ended(expired["id"])
        await deliver_all(deliverer)
    assert told(receiver, endpoint["signing_secret"]) == [
        ("batch.completed", completed["id"]),
        ("batch.failed", failed["id"]),
        ("batch.cancelled", cancelled["id"]),
        ("batch.expired", expired["id"]),
    ]
