"""How often a key may have work done: per endpoint and in all, counted over all fronts, told with a
reason."""

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

TWO = {"api_keys": "ann:key-a,bob:key-b"}
ANN, BOB = ({"X-API-Key": key, "Prefer": "respond-async"} for key in ("key-a", "key-b"))
ASK = {"prompts": ["a"]}


async def test_an_endpoints_rate_is_exact_over_fronts_and_counts_keys_apart(
    redis: Redis, redis_url: str
) -> None:
    """C45. Four fronts at once: ten in sixty seconds are ten."""
    await announce(redis, "echo")
    connections = [connect(redis_url) for _ in range(4)]
    async with AsyncExitStack() as stack:
        limits = {"endpoint_rate_limits": "/generate=10/60"}
        fronts = [
            await stack.enter_async_context(in_memory(each, **TWO, **limits))
            for each in connections
        ]
        for key in (ANN, BOB):
            asked = [front.post("/generate", json=ASK, headers=key) for front in fronts * 5]
            answers = await asyncio.gather(*asked)
            assert [answer.status_code for answer in answers].count(202) == 10
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert (
            refused.json()["error"]["code"] == refused.headers["X-Reject-Reason"] == "rate_limited"
        )
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert "/generate" in refused.json()["error"]["message"]
        elsewhere = await fronts[0].post("/v1/completions", json={"prompt": "a"}, headers=ANN)
        assert elsewhere.status_code == 202
    for connection in connections:
        await connection.aclose()


async def test_one_rate_for_all_endpoints_together(redis: Redis, worker: EchoWorker) -> None:
    """What is refused by one limit is not counted against the other; looking at jobs is free."""
    async with in_memory(redis, rate_limit="3/60", endpoint_rate_limits="/generate=1/60") as client:
        codes = [(await client.post("/generate", json=ASK)).status_code for _ in range(5)]
        assert codes == [200, 429, 429, 429, 429]
        codes = [
            (await client.post("/v1/completions", json={"prompt": "a"})).status_code
            for _ in range(4)
        ]
        assert codes == [200, 200, 429, 429]
        for _ in range(3):
            assert (await client.get("/v1/models")).status_code == 200


async def test_there_is_room_again_when_the_window_has_passed(
    redis: Redis, worker: EchoWorker
) -> None:
    async with in_memory(redis, rate_limit="1/1") as client:
        assert (await client.post("/generate", json=ASK)).status_code == 200
        assert (await client.post("/generate", json=ASK)).status_code == 429
        async with asyncio.timeout(DEADLINE_S):
            while (await client.post("/generate", json=ASK)).status_code != 200:
                await asyncio.sleep(0.05)


async def test_a_rate_for_an_endpoint_that_creates_no_work_stops_the_start(redis: Redis) -> None:
    for path in ("/generat", "/healthz", "/v1/models"):
        with pytest.raises(
            SettingsError, match=r"endpoint_rate_limits: expected one of .*/generate"
        ):
            create_app(Settings(endpoint_rate_limits=f"{path}=1/1"), Broker(redis))  # type: ignore[arg-type]
