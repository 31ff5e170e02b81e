"""The rates and latencies of `aios top`, from real fronts and from numbers checked by hand."""

import asyncio

import pytest
from redis.asyncio import Redis

from scripts.cli.watch.fronts import FrontCounts, Fronts, latencies, parse, quantile, rates, scrape
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import in_memory, live

INF = float("inf")
ASK = {"prompts": ["a b c d"], "max_tokens": 4}


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a front on a busy machine."""
    monkeypatch.setattr("scripts.cli.watch.fronts._TIMEOUT_S", 60.0)


async def test_a_real_front(redis: Redis, redis_url: str) -> None:
    async with EchoWorker(redis_url), live(redis) as (client, _):
        url = str(client.base_url)
        before = await asyncio.to_thread(scrape, [url])
        for _ in range(3):
            assert (await client.post("/generate", json=ASK)).status_code == 200
        assert (await client.post("/generate", json={**ASK, "max_tokens": -1})).status_code == 400
        after = await asyncio.to_thread(scrape, [url])
    assert after.problems == {}

    # Four requests and one error in 2 s; probes and scrapes are left out.
    per_second = rates(before, after, 2.0)
    assert per_second["requests"] == 2.0
    assert per_second["errors"] == 0.5

    (recent,) = latencies(before, after)
    assert recent.model == "echo"
    assert recent.is_recent
    assert set(recent.quantiles) == {"ttft", "inter_token", "queue", "job"}
    for median, high in recent.quantiles.values():
        assert 0 < median <= high < 10

    # Without a new request the quantiles are those since the start.
    (idle,) = latencies(after, after)
    assert not idle.is_recent
    assert idle.quantiles == latencies(None, after)[0].quantiles


async def test_fronts_that_tell_nothing_are_named(redis: Redis) -> None:
    async with live(redis, api_keys=("hush-hush-hush",), protect_metrics=True) as (client, _):
        locked = str(client.base_url)
        fronts = await asyncio.to_thread(scrape, [locked, "http://127.0.0.1:1"])
    assert fronts.counts == {}
    assert "401" in fronts.problems[locked]
    assert "refused" in fronts.problems["http://127.0.0.1:1"]


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
    """A quantile is interpolated between the bounds of its bucket.

    Half of the values are up to 1 s, a quarter up to 3 s, and a quarter beyond all bounds.
    """
    assert quantile(share, {1.0: 2, 3.0: 3, INF: 4}) == pytest.approx(seconds)


def test_several_fronts_are_added_and_one_that_restarted_counts_anew() -> None:
    def front(count: float, requests: float) -> FrontCounts:
        buckets = {1.0: count, 2.0: count, INF: count}
        return FrontCounts({"requests": requests}, {("ttft", "m"): buckets})

    before = Fronts({"a": front(10, 100), "b": front(50, 500)}, {})
    after = Fronts({"a": front(12, 120), "b": front(2, 5), "c": front(9, 9)}, {})
    assert rates(before, after, 10.0)["requests"] == 2.0
    (latency,) = latencies(before, after)
    assert latency.is_recent
    assert latency.quantiles["ttft"] == (0.5, 0.95)
