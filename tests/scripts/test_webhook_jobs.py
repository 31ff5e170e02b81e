"""Webhooks go through arq: each delivery is one job, retried when it is due, and outlives a kill."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from arq.worker import Worker
from redis.asyncio import Redis

from scripts.cli.arq_queue import TAG
from scripts.cli.webhook_jobs import DELIVER, QUEUE, make_webhook_worker
from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.webhooks import (
    EVENT_TYPES,
    WebhookDeliveries,
    WebhookEndpoint,
    WebhookEndpoints,
)
from shared.telemetry.metrics import JanitorMetrics
from shared.webhooks.deliverer import Deliverer
from shared.webhooks.sender import Sender
from shared.webhooks.targets import networks
from tests.fixtures.polling import until
from tests.fixtures.receiver import Receiver, receiving

ALLOWED = "127.0.0.0/8"
TAKE_EVENTS = f"{{{TAG}}}:webhook-events"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


async def endpoint_of(redis: Redis, receiver: Receiver) -> WebhookEndpoint:
    endpoints = WebhookEndpoints(Broker(redis))
    return await endpoints.create("ann", name="", url=receiver.url, event_types=EVENT_TYPES)


async def happen(redis: Redis) -> None:
    entry: dict[Any, Any] = {"event": "evt_1", "tenant": "ann", "type": "job.completed"}
    entry |= {"object": keys.NO_ID, "at_ms": int(time.time() * 1000)}
    await redis.xadd(keys.outbox("00"), entry)


def ids(receiver: Receiver) -> list[str]:
    return [got.headers["webhook-id"] for got in receiver.got]


@asynccontextmanager
async def working(redis: Redis, *backoff_s: float) -> AsyncIterator[Worker]:
    """Run the worker with these waits between attempts, and take events at once."""
    broker = Broker(redis)
    sender = Sender(networks((ALLOWED,)))
    deliverer = Deliverer(
        WebhookDeliveries(broker), sender, JanitorMetrics().webhooks, backoff_s=backoff_s
    )
    worker = make_webhook_worker(broker, deliverer, poll_delay=0.02)
    await worker.pool.enqueue_job(TAKE_EVENTS, _job_id=f"{TAKE_EVENTS}:{time.time()}")
    running = asyncio.create_task(worker.async_run())
    yield worker
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_arq_takes_events_and_retries_deliveries(redis: Redis, receiver: Receiver) -> None:
    endpoint = await endpoint_of(redis, receiver)
    await happen(redis)
    receiver.answers = [500, 500]
    job_id = f"{{{TAG}}}:webhook:evt_1:{endpoint.id}"

    async def is_done() -> bool:
        return await redis.zscore(QUEUE, job_id) is None

    async with working(redis, 0.01, 0.01) as worker:
        # Before the event is taken, nothing is pending and no job is queued.
        await until(lambda: len(receiver.got) == 3, "it is sent three times")
        await until(lambda: is_over(redis), "it is delivered")
        await until(is_done, "arq is done with it")

    assert ids(receiver) == ["evt_1"] * 3
    assert (worker.jobs_retried, worker.jobs_failed) == (2, 0)
    outcomes = [one.outcome for one in await _attempts(redis, endpoint)]
    assert outcomes == ["delivered", "failed", "failed"]
    async for name in redis.scan_iter("*arq*"):
        # A key without a lifetime has -1. One that is gone meanwhile has -2.
        assert name == QUEUE.encode() or await redis.pttl(name) != -1, name


async def _attempts(redis: Redis, endpoint: WebhookEndpoint) -> Any:
    return await WebhookEndpoints(Broker(redis)).attempts("ann", endpoint.id, 10)


async def test_a_delivery_is_queued_once_and_waits_for_its_next_attempt(
    redis: Redis, receiver: Receiver
) -> None:
    endpoint = await endpoint_of(redis, receiver)
    await happen(redis)
    receiver.answers = [500]
    job_id = f"{{{TAG}}}:webhook:evt_1:{endpoint.id}"
    async with working(redis, 500.0) as worker:
        await until(lambda: worker.jobs_retried == 1, "it is to be tried again")
    due_ms = await redis.zscore(QUEUE, job_id)
    assert 400_000 < due_ms - time.time() * 1000 <= 550_000
    # It lives in arq longer than all attempts together take.
    assert await redis.pttl(f"arq:job:{job_id}") > 2 * 86_400_000

    # It seems to be forgotten, and is not: arq knows it by its id.
    await redis.zadd(keys.DUE_DELIVERIES, {f"evt_1:{endpoint.id}": 1})
    async with working(redis) as worker:
        await until(lambda: worker.jobs_complete >= 1, "events are taken")
    assert await redis.zscore(QUEUE, job_id) == due_ms
    assert ids(receiver) == ["evt_1"]


async def test_one_that_arq_has_forgotten_is_queued_again(redis: Redis, receiver: Receiver) -> None:
    """As when Redis was away in the very moment in which arq wanted to put it back."""
    endpoint = await endpoint_of(redis, receiver)
    await happen(redis)
    assert len(await WebhookDeliveries(Broker(redis)).take_events()) == 1
    await redis.zadd(keys.DUE_DELIVERIES, {f"evt_1:{endpoint.id}": 1})
    async with working(redis):
        await until(lambda: is_over(redis), "it is delivered")
    assert ids(receiver) == ["evt_1"]


@asynccontextmanager
async def role(redis_url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `aios jobs` in a process of its own, and kill it at the end."""
    command = [sys.executable, "-m", "scripts.cli.jobs", "--redis-url", redis_url]
    command += ["--webhook-allow", ALLOWED, "--log-level", "warning"]
    process = await asyncio.create_subprocess_exec(*command, env=dict(os.environ))
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_the_role_is_killed_amid_a_delivery_and_the_next_one_delivers_it(
    redis: Redis, redis_url: str, receiver: Receiver
) -> None:
    endpoint = await endpoint_of(redis, receiver)
    await happen(redis)

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    receiver.handler = say_nothing
    async with role(redis_url) as process:
        await until(lambda: has_got(receiver, 1, process), "the event is being delivered")
        process.kill()
        await process.wait()
    assert await _attempts(redis, endpoint) == []

    receiver.handler = None
    # The time for which arq believes in the dead process is over.
    job_id = f"{{{TAG}}}:webhook:evt_1:{endpoint.id}"
    assert await redis.delete(f"arq:in-progress:{job_id}") == 1
    async with role(redis_url) as process:
        await until(lambda: has_got(receiver, 2, process), "it is delivered")
        await until(lambda: is_over(redis), "that is noted")
        process.terminate()
        assert await process.wait() == 0

    assert ids(receiver) == ["evt_1", "evt_1"]
    assert receiver.got[0].body == receiver.got[1].body
    [attempt] = await _attempts(redis, endpoint)
    assert (attempt.attempt, attempt.outcome) == (1, "delivered")


def has_got(receiver: Receiver, count: int, process: asyncio.subprocess.Process) -> bool:
    assert process.returncode is None
    return len(receiver.got) == count


async def is_over(redis: Redis) -> bool:
    return await redis.exists(keys.PENDING_DELIVERIES) == 0


def test_the_name_of_the_function_is_kept() -> None:
    """Jobs of an earlier version wait in Redis for up to a day."""
    assert DELIVER == "deliver"
    assert QUEUE == "aios:{arq:abort}:webhooks"
