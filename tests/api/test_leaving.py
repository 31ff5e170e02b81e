"""Callers who leave, by policy; and a front that is told to stop: it sends everybody on and ends
nothing."""

import asyncio
import signal
from typing import Any

import httpx
import openai
import pytest
from redis.asyncio import Redis

from api.deps import Front
from scripts.chaos.proxy import Proxy
from shared.queue.broker import connect
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.frames import frames, read
from tests.fixtures.api.fronts import has_followers, live, process, states
from tests.fixtures.polling import until
from tests.fixtures.redis_server import RedisServer
from tests.fixtures.slowness import within

STREAM = {"prompt": "a b c", "stream": True}
KEY = {"Idempotency-Key": "k"}


async def begun(
    client: httpx.AsyncClient, headers: dict[str, str] | None = None
) -> tuple[httpx.Response, Any]:
    """A stream whose first word has come."""
    request = client.build_request("POST", "/v1/completions", json=STREAM, headers=headers)
    answer = await client.send(request, stream=True)
    coming = read(answer.aiter_lines())
    assert [(await anext(coming)).text, (await anext(coming)).text] == ["", "a "]
    return answer, coming


def has_noticed(front: Front) -> bool:
    """That a caller has left."""
    return 'aios_errors_total{code="cancelled"}' in front.metrics.render().decode()


@pytest.mark.parametrize(
    ("policy", "header", "ends"),
    [
        ("cancel", None, True),
        ("cancel", "continue", False),
        ("continue", None, False),
        ("continue", "cancel", True),
        ("grace", None, True),
        ("continue", "grace", True),
    ],
)
async def test_what_becomes_of_work_whose_caller_has_left(
    redis: Redis, worker: EchoWorker, policy: str, header: str | None, ends: bool
) -> None:
    worker.gate.clear()
    async with live(redis, on_disconnect=policy, disconnect_grace_s=0.1) as (client, front):
        answer, _ = await begun(client, {"X-On-Disconnect": header} if header else None)
        await answer.aclose()
        if ends:
            await until(lambda: is_state(redis, "cancelled"), "the job is cancelled")
        else:
            await until(lambda: has_noticed(front), "the front has noticed")
            worker.gate.set()
            await until(lambda: is_state(redis, "done"), "the job goes on to its end")


async def test_who_comes_back_in_time_finds_it_running(redis: Redis, worker: EchoWorker) -> None:
    worker.gate.clear()
    async with live(redis, disconnect_grace_s=1.5) as (client, front):
        answer, _ = await begun(client, {"X-On-Disconnect": "grace"})
        await answer.aclose()
        await until(lambda: has_noticed(front), "the front has noticed")
        back = asyncio.create_task(client.get(f"/v1/jobs/{answer.headers['X-Job-Id']}/events"))
        await until(lambda: has_followers(redis, 2), "the caller is back before the grace is over")
        _, pending = await asyncio.wait({back}, timeout=2)
        assert pending, "the grace is over, and it runs"
        worker.gate.set()
        assert "".join(frame.text for frame in frames(await back)) == "a b c"


async def test_a_late_disconnect_spares_what_another_front_follows(
    redis: Redis, redis_url: str, worker: EchoWorker
) -> None:
    """The client has gone to the second front before the first one notices."""
    worker.gate.clear()
    other = connect(redis_url)
    async with live(redis) as (one, old), live(other) as (two, _):
        answer, _ = await begun(one, KEY)
        follower = asyncio.create_task(two.post("/v1/completions", json=STREAM, headers=KEY))
        await until(lambda: has_followers(redis, 2), "the second front follows")
        await answer.aclose()
        await until(lambda: has_noticed(old), "the first front has noticed")
        worker.gate.set()
        assert "".join(frame.text for frame in frames(await follower)) == "a b c"
    await other.aclose()


async def test_submitted_work_goes_on_when_a_reader_leaves(
    redis: Redis, worker: EchoWorker
) -> None:
    worker.gate.clear()
    async with live(redis) as (client, _):
        later = {"Prefer": "respond-async"}
        id = (await client.post("/v1/completions", json={"prompt": "a b c"}, headers=later)).json()[
            "id"
        ]
        answer = await client.send(
            client.build_request("GET", f"/v1/jobs/{id}/events"), stream=True
        )
        await anext(answer.aiter_lines())
        await answer.aclose()
        worker.gate.set()
        await until(lambda: is_state(redis, "done"), "the job goes on to its end")


async def test_draining_sends_everybody_to_another_front(
    redis: Redis, redis_url: str, worker: EchoWorker
) -> None:
    """P2: sync waiters get 503 with the job's id, streams end with a hint and no [DONE]; nothing is
    ended."""
    worker.gate.clear()
    other = connect(redis_url)
    async with live(redis) as (one, front), live(other) as (two, _):
        waiting = {
            path: asyncio.create_task(one.post(path, json=body)) for path, body in WAITERS.items()
        }
        answer = await one.send(
            one.build_request("POST", "/v1/completions", json=STREAM), stream=True
        )
        lines = answer.aiter_lines()
        told = [await anext(lines) for _ in range(7)]
        await until(lambda: len(worker.jobs) == 3, "the jobs run")
        front.draining.set()
        front.dispatcher.drain()
        told += [line async for line in lines]
        assert told[-2:] == ["retry: 100", ": reconnect"]
        assert "data: [DONE]" not in told
        assert (await one.get("/readyz")).json()["reason"] == "this server is shutting down"
        refused = await one.post("/generate", json={"prompts": ["a"]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert "Location" not in refused.headers, "nothing was begun"
        sent_on = [await task for task in waiting.values()]
        for sync in sent_on:
            assert (sync.status_code, sync.json()["error"]["code"]) == (503, "draining")
            assert sync.headers["Location"] == f"/v1/jobs/{sync.json()['id']}"
            assert (sync.headers["X-Reject-Reason"], int(sync.headers["Retry-After"])) == (
                "draining",
                1,
            )
        worker.gate.set()
        last = [line.removeprefix("id: ") for line in told if line.startswith("id: ")][-1]
        events = f"/v1/jobs/{answer.headers['X-Job-Id']}/events"
        rest = frames(await two.get(events, headers={"Last-Event-ID": last}))
        assert [frame.text for frame in rest] == ["b ", "c", ""]
        for sync in sent_on:
            await until(lambda at=sync.headers["Location"]: is_done(two, at), "the job is done")  # type: ignore[misc]
    await other.aclose()


WAITERS: dict[str, dict[str, Any]] = {
    "/generate": {"prompts": ["a b"]},
    "/v1/completions": {"prompt": "a b"},
}


async def test_openai_client_sees_a_drained_stream_end(redis: Redis, worker: EchoWorker) -> None:
    worker.gate.clear()
    async with live(redis) as (client, front):
        sdk = openai.AsyncOpenAI(api_key="none", base_url=f"{client.base_url}/v1", max_retries=0)
        async with (
            sdk,
            await sdk.completions.create(model="echo", prompt="a b c", stream=True) as stream,
        ):
            texts = [(await anext(stream)).choices[0].text for _ in range(2)]
            front.dispatcher.drain()
            texts += [chunk.choices[0].text async for chunk in stream]
    assert texts == ["", "a "]


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT"])
async def test_the_process_exits_in_two_seconds(
    redis_url: str, worker: EchoWorker, signal_name: str
) -> None:
    worker.gate.clear()
    async with process(redis_url) as (front, client):
        asking = asyncio.create_task(client.post("/generate", json={"prompts": ["a b"]}))
        await until(lambda: len(worker.jobs) == 1, "the job runs")
        answer, coming = await begun(client)
        with within(2, "the front exits"):
            front.send_signal(getattr(signal, signal_name))
            assert await front.wait() == 0
        assert (await asking).status_code == 503
        assert [frame async for frame in coming] == []
        assert answer.status_code == 200
    worker.gate.set()
    async with process(redis_url) as (_, client):
        rest = frames(await client.get(f"/v1/jobs/{answer.headers['X-Job-Id']}/events"))
        assert "".join(frame.text for frame in rest) == "a b c"


async def test_who_is_kept_waiting_by_a_mute_redis_is_sent_on_too(
    redis_server: RedisServer, redis_url: str
) -> None:
    proxy = await Proxy("127.0.0.1", redis_server.port).start()
    async with process(f"redis://127.0.0.1:{proxy.port}/0") as (front, client):
        proxy.trap(b"request:", proxy.to_client)
        asking = asyncio.create_task(client.get(f"/v1/jobs/00{'0' * 32}"))
        await until(lambda: proxy.is_sprung, "the front has asked Redis")
        front.send_signal(signal.SIGTERM)
        answer = await asking
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
        assert await front.wait() == 0
    await proxy.close()


async def is_state(redis: Redis, expected: str) -> bool:
    """Whether the only job is in this state."""
    return await states(redis) == [expected]


async def is_done(client: httpx.AsyncClient, location: str) -> bool:
    return bool((await client.get(location)).json()["state"] == "done")
