"""Rate limits of a key, per endpoint and in all.

All fronts count together, and a refusal gives its reason."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from redis.asyncio import Redis

from api.http.app import create_app
from shared.queue.broker import Broker, connect
from shared.settings.settings import Settings, SettingsError
from tests.fixtures.api.echo_worker import EchoWorker, announce
from tests.fixtures.api.fronts import in_memory
from tests.fixtures.polling import DEADLINE_S
from tests.fixtures.redis_server import patient

TWO = {"api_keys": "ann:key-a,bob:key-b"}
ANN = {"X-API-Key": "key-a", "Prefer": "respond-async"}
BOB = {"X-API-Key": "key-b", "Prefer": "respond-async"}
ASK = {"prompts": ["a"]}


async def test_an_endpoints_rate_is_exact_over_fronts_and_counts_keys_apart(
    redis: Redis, redis_url: str
) -> None:
    """C45: four fronts together admit exactly ten requests of a key in sixty seconds."""
    await announce(redis, "echo")
    limits = {"endpoint_rate_limits": "/generate=10/60"}
    async with AsyncExitStack() as stack:
        fronts = []
        for _ in range(4):
            connection = patient(connect(redis_url))
            stack.push_async_callback(connection.aclose)
            front = await stack.enter_async_context(in_memory(connection, **TWO, **limits))
            fronts.append(front)

        for key in (ANN, BOB):
            posting = []
            for front in fronts * 5:
                posting.append(front.post("/generate", json=ASK, headers=key))
            answers = await asyncio.gather(*posting)
            status_codes = [answer.status_code for answer in answers]
            assert status_codes.count(202) == 10

        refused = answers[status_codes.index(429)]
        assert refused.json()["error"]["code"] == "rate_limited"
        assert refused.headers["X-Reject-Reason"] == "rate_limited"
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert "/generate" in refused.json()["error"]["message"]

        elsewhere = await fronts[0].post("/v1/completions", json={"prompt": "a"}, headers=ANN)
        assert elsewhere.status_code == 202


async def test_one_rate_for_all_endpoints_together(redis: Redis, worker: EchoWorker) -> None:
    """A request that one limit refuses does not count against the other.

    Reads do not count at all."""
    async with in_memory(redis, rate_limit="3/60", endpoint_rate_limits="/generate=1/60") as client:
        for status in (200, 429, 429, 429, 429):
            answer = await client.post("/generate", json=ASK)
            assert answer.status_code == status

        for status in (200, 200, 429, 429):
            answer = await client.post("/v1/completions", json={"prompt": "a"})
            assert answer.status_code == status

        for _ in range(3):
            assert (await client.get("/v1/models")).status_code == 200


async def test_there_is_room_again_when_the_window_has_passed(
    redis: Redis, worker: EchoWorker
) -> None:
    async with in_memory(redis, rate_limit="1/5") as client:
        assert (await client.post("/generate", json=ASK)).status_code == 200
        assert (await client.post("/generate", json=ASK)).status_code == 429
        async with asyncio.timeout(DEADLINE_S):
            while (await client.post("/generate", json=ASK)).status_code != 200:
                await asyncio.sleep(0.05)


async def test_a_rate_for_an_endpoint_that_creates_no_work_stops_the_start(redis: Redis) -> None:
    for path in ("/generat", "/healthz", "/v1/models"):
        settings = Settings(endpoint_rate_limits=f"{path}=1/1")  # type: ignore[arg-type]
        message = r"endpoint_rate_limits: expected one of .*/generate"
        with pytest.raises(SettingsError, match=message):
            create_app(settings, Broker(redis))
