"""A front that ends with its Redis: it stays for what was accepted, and ends the rest in time."""

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis

from api.http import final_drain
from api.http.final_drain import FinalDrain
from shared.queue.broker import connect
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import live, state, states
from tests.fixtures.polling import DEADLINE_S, until
from tests.fixtures.redis_server import patient, start_redis

LATER = {"Prefer": "respond-async"}


@pytest.fixture(autouse=True)
def no_lingering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(final_drain, "LAST_POLL_S", 0.0)
    # These only end what takes too long, which nothing does here but on a busy machine.
    monkeypatch.setattr(final_drain, "_TELLING_S", 60.0)
    monkeypatch.setattr(final_drain, "_ADMITTING_S", 60.0)


def nobody() -> bool:
    return False


async def test_who_has_nothing_in_flight_leaves_at_once(redis: Redis, worker: EchoWorker) -> None:
    async with live(redis) as (client, front):
        assert (await client.post("/generate", json={"prompts": ["a b"]})).status_code == 200
        await asyncio.wait_for(FinalDrain(front, nobody).run(300), DEADLINE_S)


async def test_it_stays_for_a_request_that_was_let_in_and_is_not_queued_yet(redis: Redis) -> None:
    async with live(redis) as (_, front):
        is_in_flight = True
        finishing = asyncio.create_task(FinalDrain(front, lambda: is_in_flight).run(300))
        _, pending = await asyncio.wait({finishing}, timeout=0.3)
        assert pending

        is_in_flight = False
        await asyncio.wait_for(finishing, DEADLINE_S)


async def test_it_stays_for_jobs_that_another_front_took(
    redis: Redis, redis_url: str, worker: EchoWorker
) -> None:
    """Jobs of a front that may have crashed have no follower, but they were accepted."""
    worker.gate.clear()
    other_redis = patient(connect(redis_url))

    async with live(redis) as (_, front):
        async with live(other_redis) as (client, _):
            await client.post("/generate", json={"prompts": ["a b", "c d"]}, headers=LATER)
            await until(lambda: len(worker.jobs) == 2, "the jobs run")

        finishing = asyncio.create_task(FinalDrain(front, nobody).run(300))
        _, pending = await asyncio.wait({finishing}, timeout=0.3)
        assert pending

        worker.gate.set()
        await asyncio.wait_for(finishing, DEADLINE_S)
        assert await states(redis) == ["done", "done"]

    await other_redis.aclose()


async def test_what_is_open_at_the_end_of_the_time_ends_once_whoever_took_it(
    redis: Redis, redis_url: str, worker: EchoWorker
) -> None:
    worker.gate.clear()
    other_redis = patient(connect(redis_url))

    async with live(redis) as (one, front), live(other_redis) as (two, _):
        waiting = asyncio.create_task(one.post("/generate", json={"prompts": ["a b", "c d"]}))
        submitted = await two.post("/v1/completions", json={"prompt": "e f"}, headers=LATER)
        await until(lambda: len(worker.jobs) == 3, "the jobs run")

        await asyncio.wait_for(FinalDrain(front, nobody).run(0.1), DEADLINE_S)

        answer = await waiting
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shut_down")
        assert int(answer.headers["Retry-After"]) == 1
        job = (await two.get(f"/v1/jobs/{submitted.json()['id']}")).json()
        assert (job["state"], job["error"]["code"]) == ("failed", "shut_down")

        worker.gate.set()
        await until(lambda: len(worker.stale) == 3, "the worker hears of it and can add nothing")
        assert len(worker.jobs) == 3
        for taken in worker.jobs:
            assert await state(redis, taken.id) == "failed"

    await other_redis.aclose()


async def test_it_does_not_wait_for_a_redis_that_stays_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_drain, "REDIS_AWAY_S", 0.2)
    server = start_redis(tmp_path)
    redis = connect(server.url)
    try:
        async with live(redis) as (_, front):
            server.stop()
            await asyncio.wait_for(FinalDrain(front, nobody).run(300), DEADLINE_S)
    finally:
        server.stop()
        await redis.aclose()
