"""What `aios top` makes of fronts' metrics: real ones, and numbers that can be checked by hand."""

import asyncio

import pytest
from redis.asyncio import Redis

from scripts.cli.watch.fronts import FrontCounts, Fronts, latencies, parse, quantile, rates, scrape
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import in_memory, live

INF = float("inf")
ASK = {"prompts": ["a b c d"], "max_tokens": 4}


async def test_a_real_front(redis: Redis, redis_url: str) -> None:
    async with EchoWorker(redis_url), live(redis) as (client, _):
        url = str(client.base_url)
        before = await asyncio.to_thread(scrape, [url])
        for _ in range(3):
            assert (await client.post("/generate", json=ASK)).status_code == 200
        assert (await client.post("/generate", json={**ASK, "max_tokens": -1})).status_code == 400
        after = await asyncio.to_thread(scrape, [url])
    assert after.problems == {}
    seen = rates(before, after, 2.0)
    assert (seen["requests"], seen["errors"]) == (2.0, 0.5), "probes and scrapes are left out"
    (told,) = latencies(before, after)
    assert (told.model, told.is_recent, set(told.quantiles)) == (
        "echo",
        True,
        {"ttft", "inter_token", "queue", "job"},
    )
    assert all(0 < median <= high < 10 for median, high in told.quantiles.values())
    (again,) = latencies(after, after)
    assert not again.is_recent and again.quantiles == latencies(None, after)[0].quantiles


async def test_fronts_that_tell_nothing_are_named(redis: Redis) -> None:
    async with live(redis, api_keys=("hush-hush-hush",), protect_metrics=True) as (client, _):
        locked = str(client.base_url)
        found = await asyncio.to_thread(scrape, [locked, "http://127.0.0.1:1"])
    assert found.counts == {}
    assert "401" in found.problems[locked] and "refused" in found.problems["http://127.0.0.1:1"]


async def test_what_is_no_metrics_page(redis: Redis) -> None:
    async with in_memory(redis) as client:
        assert parse((await client.get("/metrics")).text).buckets == {}
    with pytest.raises(ValueError):
        parse("<html>{")


@pytest.mark.parametrize(
    ("share", "seconds"),
    [(0.25, 0.5), (0.5, 1.0), (0.625, 2.0), (0.75, 3.0), (0.95, 3.0)],
)
def test_quantiles_lie_between_a_buckets_bounds(share: float, seconds: float) -> None:
    """Half took up to 1 s, a quarter up to 3 s, and a quarter longer than any bound."""
    assert quantile(share, {1.0: 2, 3.0: 3, INF: 4}) == pytest.approx(seconds)


def test_several_fronts_are_added_and_one_that_restarted_counts_anew() -> None:
    def front(count: float, requests: float) -> FrontCounts:
        return FrontCounts(
            {"requests": requests}, {("ttft", "m"): {1.0: count, 2.0: count, INF: count}}
        )

    before = Fronts({"a": front(10, 100), "b": front(50, 500)}, {})
    after = Fronts({"a": front(12, 120), "b": front(2, 5), "c": front(9, 9)}, {})
    assert rates(before, after, 10.0)["requests"] == 2.0
    (told,) = latencies(before, after)
    assert (told.is_recent, told.quantiles["ttft"]) == (True, (0.5, 0.95))
