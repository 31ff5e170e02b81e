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
from tests.fixtures.api.frames import Frame, frames, read
from tests.fixtures.api.fronts import has_followers, live, process, states
from tests.fixtures.polling import until
from tests.fixtures.redis_server import RedisServer, patient
from tests.fixtures.slowness import waited_within

STREAM = {"prompt": "a b c", "stream": True}
KEY = {"Idempotency-Key": "k"}


async def open_stream(
    client: httpx.AsyncClient, headers: dict[str, str] | None = None
) -> tuple[httpx.Response, Any]:
    """Send a request for a stream, and return it with its reader once its first word has come."""
    request = client.build_request("POST", "/v1/completions", json=STREAM, headers=headers)
    answer = await client.send(request, stream=True)
    reader = read(answer.aiter_lines())
    assert (await anext(reader)).text == ""
    assert (await anext(reader)).text == "a "
    return answer, reader


def text_of(frames: list[Frame]) -> str:
    return "".join(frame.text for frame in frames)


def last_event_id(lines: list[str]) -> str:
    """Return the id of the last event among the lines of a stream."""
    last = None
    for line in lines:
        if line.startswith("id: "):
            last = line.removeprefix("id: ")
    assert last is not None
    return last


def has_noticed(front: Front) -> bool:
    """Return whether the front has noticed that a caller left."""
    return 'aios_errors_total{code="cancelled"}' in front.metrics.render().decode()


async def is_state(redis: Redis, expected: str) -> bool:
    """Return whether the only job is in this state."""
    return await states(redis) == [expected]


async def await_done(client: httpx.AsyncClient, location: str) -> None:
    async def is_done() -> bool:
        return bool((await client.get(location)).json()["state"] == "done")

    await until(is_done, "the job is done")


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
    headers = {"X-On-Disconnect": header} if header else None
    worker.gate.clear()

    async with live(redis, on_disconnect=policy, disconnect_grace_s=0.1) as (client, front):
        answer, _ = await open_stream(client, headers)
        await answer.aclose()

        if ends:
            await until(lambda: is_state(redis, "cancelled"), "the job is cancelled")
        else:
            # The gate opens only after the front has had its chance to cancel.
            await until(lambda: has_noticed(front), "the front has noticed")
            worker.gate.set()
            await until(lambda: is_state(redis, "done"), "the job goes on to its end")


async def test_who_comes_back_in_time_finds_it_running(redis: Redis, worker: EchoWorker) -> None:
    worker.gate.clear()

    async with live(redis, disconnect_grace_s=5) as (client, front):
        answer, _ = await open_stream(client, {"X-On-Disconnect": "grace"})
        await answer.aclose()
        await until(lambda: has_noticed(front), "the front has noticed")

        events = f"/v1/jobs/{answer.headers['X-Job-Id']}/events"
        back = asyncio.create_task(client.get(events))
        await until(lambda: has_followers(redis, 2), "the caller is back before the grace is over")

        # Longer than the grace.
        _, pending = await asyncio.wait({back}, timeout=5.5)
        assert pending, "the grace is over, and it runs"

        worker.gate.set()
        assert text_of(frames(await back)) == "a b c"


async def test_a_late_disconnect_spares_what_another_front_follows(
    redis: Redis, redis_url: str, worker: EchoWorker
) -> None:
    """The client has gone to the second front before the first one notices."""
    worker.gate.clear()
    other_redis = patient(connect(redis_url))

    async with live(redis) as (one, old_front), live(other_redis) as (two, _):
        answer, _ = await open_stream(one, KEY)
        follower = asyncio.create_task(two.post("/v1/completions", json=STREAM, headers=KEY))
        await until(lambda: has_followers(redis, 2), "the second front follows")

        await answer.aclose()
        await until(lambda: has_noticed(old_front), "the first front has noticed")

        worker.gate.set()
        assert text_of(frames(await follower)) == "a b c"

    await other_redis.aclose()


async def test_submitted_work_goes_on_when_a_reader_leaves(
    redis: Redis, worker: EchoWorker
) -> None:
    worker.gate.clear()

    async with live(redis) as (client, _):
        submitted = await client.post(
            "/v1/completions", json={"prompt": "a b c"}, headers={"Prefer": "respond-async"}
        )
        events = f"/v1/jobs/{submitted.json()['id']}/events"
        answer = await client.send(client.build_request("GET", events), stream=True)
        await anext(answer.aiter_lines())
        await answer.aclose()

        worker.gate.set()
        await until(lambda: is_state(redis, "done"), "the job goes on to its end")


async def test_draining_sends_everybody_to_another_front(
    redis: Redis, redis_url: str, worker: EchoWorker
) -> None:
    """P2: a draining front ends no job.

    Those who wait for a whole answer get 503 with the job's id. Streams end with a hint and no
    [DONE].
    """
    worker.gate.clear()
    other_redis = patient(connect(redis_url))

    async with live(redis) as (one, front), live(other_redis) as (two, _):
        waiting = [
            asyncio.create_task(one.post("/generate", json={"prompts": ["a b"]})),
            asyncio.create_task(one.post("/v1/completions", json={"prompt": "a b"})),
        ]
        request = one.build_request("POST", "/v1/completions", json=STREAM)
        stream = await one.send(request, stream=True)

        # Seven lines: the retry hint, and the opening and the first word at three lines each.
        lines = stream.aiter_lines()
        received = []
        for _ in range(7):
            received.append(await anext(lines))
        await until(lambda: len(worker.jobs) == 3, "the jobs run")

        front.draining.set()
        front.dispatcher.drain()

        async for line in lines:
            received.append(line)
        assert received[-2:] == ["retry: 100", ": reconnect"]
        assert "data: [DONE]" not in received

        assert (await one.get("/readyz")).json()["reason"] == "this server is shutting down"
        refused = await one.post("/generate", json={"prompts": ["a"]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert "Location" not in refused.headers, "nothing was begun"

        locations = []
        for task in waiting:
            sent_on = await task
            assert (sent_on.status_code, sent_on.json()["error"]["code"]) == (503, "draining")
            assert sent_on.headers["Location"] == f"/v1/jobs/{sent_on.json()['id']}"
            assert sent_on.headers["X-Reject-Reason"] == "draining"
            assert int(sent_on.headers["Retry-After"]) == 1
            locations.append(sent_on.headers["Location"])

        # The second front goes on where the first one stopped.
        worker.gate.set()
        rest = await two.get(
            f"/v1/jobs/{stream.headers['X-Job-Id']}/events",
            headers={"Last-Event-ID": last_event_id(received)},
        )
        assert [frame.text for frame in frames(rest)] == ["b ", "c", ""]
        for location in locations:
            await await_done(two, location)

    await other_redis.aclose()


async def test_openai_client_sees_a_drained_stream_end(redis: Redis, worker: EchoWorker) -> None:
    worker.gate.clear()
    texts = []

    async with live(redis) as (client, front):
        sdk = openai.AsyncOpenAI(api_key="none", base_url=f"{client.base_url}/v1", max_retries=0)
        async with (
            sdk,
            await sdk.completions.create(model="echo", prompt="a b c", stream=True) as stream,
        ):
            for _ in range(2):
                chunk = await anext(stream)
                texts.append(chunk.choices[0].text)
            front.dispatcher.drain()
            async for chunk in stream:
                texts.append(chunk.choices[0].text)

    assert texts == ["", "a "]


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT"])
async def test_the_process_exits_in_two_seconds(
    redis_url: str, worker: EchoWorker, signal_name: str
) -> None:
    worker.gate.clear()

    async with process(redis_url) as (front, client):
        waiting = asyncio.create_task(client.post("/generate", json={"prompts": ["a b"]}))
        await until(lambda: len(worker.jobs) == 1, "the job runs")
        answer, reader = await open_stream(client)

        with waited_within(2, "the front exits"):
            front.send_signal(getattr(signal, signal_name))
            assert await front.wait() == 0

        assert (await waiting).status_code == 503
        assert [frame async for frame in reader] == []
        assert answer.status_code == 200

    worker.gate.set()
    async with process(redis_url) as (_, client):
        rest = await client.get(f"/v1/jobs/{answer.headers['X-Job-Id']}/events")
        assert text_of(frames(rest)) == "a b c"


async def test_who_is_kept_waiting_by_a_mute_redis_is_sent_on_too(
    redis_server: RedisServer, redis_url: str
) -> None:
    proxy = await Proxy("127.0.0.1", redis_server.port).start()

    async with process(f"redis://127.0.0.1:{proxy.port}/0") as (front, client):
        proxy.trap(b"request:", proxy.to_client)
        waiting = asyncio.create_task(client.get(f"/v1/jobs/00{'0' * 32}"))
        await until(lambda: proxy.is_sprung, "the front has asked Redis")

        front.send_signal(signal.SIGTERM)
        answer = await waiting
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
        assert await front.wait() == 0

    await proxy.close()
