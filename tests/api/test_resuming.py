"""Streams that survive fronts (P2).

Whatever frame a reader has seen last, any front goes on behind it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from api.stream.cursor import Cursor
from shared.errors import InvalidRequest
from shared.messages import Failed
from shared.queue.broker import connect
from tests.fixtures.api.echo_worker import EchoWorker, announce
from tests.fixtures.api.frames import Frame, frames, read, read_all
from tests.fixtures.api.fronts import in_memory, live
from tests.fixtures.polling import until
from tests.fixtures.redis_server import patient

BODY = {
    "prompt": ["a b c", "dd e", "f"],
    "n": 2,
    "logprobs": 1,
    "max_tokens": 2,
    "stream": True,
    "stream_options": {"include_usage": True},
}


@pytest.fixture
async def fronts(
    redis: Redis, redis_url: str
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Two fronts, each with its own connections to Redis."""
    other = patient(connect(redis_url))
    async with live(redis) as (one, _), live(other) as (two, _):
        yield one, two
    await other.aclose()


def by_choice(events: list[Frame]) -> dict[int, list[Any]]:
    """Return the parts of each choice in order.

    How the parts of different choices interleave is not promised."""
    parts: dict[int, list[Any]] = {}
    for frame in events:
        if frame.data != "[DONE]" and frame.json["choices"]:
            [choice] = frame.json["choices"]
            parts.setdefault(choice["index"], []).append(choice)
    return parts


@pytest.mark.parametrize(
    "body", [BODY, {"prompt": "a b c d", "stream": True}, {"prompt": "a", "n": 3, "stream": True}]
)
async def test_behind_every_frame_comes_the_rest(
    fronts: tuple[httpx.AsyncClient, httpx.AsyncClient], worker: EchoWorker, body: dict[str, Any]
) -> None:
    """Another front sends the rest, for the job's id and for the same POST.

    The run has ended; text offsets and the ends of choices come as well."""
    one, two = fronts
    answer = await one.post("/v1/completions", json=body)
    location = f"/v1/jobs/{answer.headers['X-Job-Id']}/events"
    whole = frames(answer)
    ids = {frame.id for frame in whole[:-1]}
    assert len(ids) == len(whole) - 1, "each frame has its own id"

    for number, frame in enumerate(whole[:-1], start=1):
        seen = {"Last-Event-ID": frame.id}
        by_id = frames(await two.get(location, headers=seen))
        repeated = frames(await two.post("/v1/completions", json=body, headers=seen))

        assert by_choice(whole[:number] + by_id) == by_choice(whole)
        assert by_choice(whole[:number] + repeated) == by_choice(whole)
        assert len(by_id) == len(whole) - number
        assert len(repeated) == len(whole) - number
        assert by_id[-1].data == "[DONE]"

    prompts = body["prompt"]
    num_prompts = len(prompts) if isinstance(prompts, list) else 1
    assert len(worker.jobs) == num_prompts


@pytest.mark.parametrize("seen", [1, 2])
async def test_a_stream_goes_on_in_mid_run_on_another_front(
    fronts: tuple[httpx.AsyncClient, httpx.AsyncClient], worker: EchoWorker, seen: int
) -> None:
    """A second front goes on with a stream whose job is still running.

    The reader of the first front stays. To leave would end the job, which the loss of a front would
    not do."""
    one, two = fronts
    worker.gate.clear()
    body = {"prompt": "a b c d", "stream": True}
    answer = await one.send(one.build_request("POST", "/v1/completions", json=body), stream=True)
    events = read(answer.aiter_lines())
    begun = [await anext(events) for _ in range(seen)]

    location = f"/v1/jobs/{answer.headers['X-Job-Id']}/events"
    request = two.build_request("GET", location, headers={"Last-Event-ID": begun[-1].id})
    resumed = asyncio.create_task(_read(two, request))
    await until(lambda: len(worker.jobs) == 1, "the job runs")
    worker.gate.set()
    rest = await resumed

    assert [frame async for frame in events] == rest
    assert "".join(frame.text for frame in [*begun, *rest]) == "a b c d"


async def test_the_first_frame_needs_no_token_and_has_an_id(redis: Redis) -> None:
    """A reader whose job still waits in the queue can come back as well."""
    await announce(redis, "echo")
    async with live(redis) as (client, _):
        body = {"prompt": "a", "stream": True}
        request = client.build_request("POST", "/v1/completions", json=body)
        answer = await client.send(request, stream=True)
        lines = answer.aiter_lines()

        assert await anext(lines) == "retry: 1000"
        assert await anext(lines) == f"id: {answer.headers['X-Job-Id']}.0"
        assert answer.headers["X-Accel-Buffering"] == "no"
        await answer.aclose()


async def test_openai_client_survives_keep_alives_and_ids(redis: Redis, worker: EchoWorker) -> None:
    """OpenAI's client reads a stream with keep-alives and ids to its end.

    Once its decoder has seen an id, it takes every block for an event and fails at one without
    data."""
    worker.gate.clear()
    async with live(redis, keepalive_s=0.02) as (client, _):
        sdk = openai.AsyncOpenAI(api_key="none", base_url=f"{client.base_url}/v1", max_retries=0)
        async with (
            sdk,
            await sdk.completions.create(model="echo", prompt="a b c", stream=True) as stream,
        ):
            opening = await anext(stream)
            first = await anext(stream)

            second = asyncio.create_task(anext(stream))
            _, pending = await asyncio.wait({second}, timeout=0.3)
            assert pending, "nothing but keep-alives comes while the worker is held"

            worker.gate.set()
            chunks = [opening, first, await second]
            async for chunk in stream:
                chunks.append(chunk)

    texts = [chunk.choices[0].text for chunk in chunks]
    assert texts == ["", "a ", "b ", "c"]


async def test_a_failed_stream_fails_again(redis: Redis, worker: EchoWorker) -> None:
    worker.failure = Failed("worker_failed", "It broke.")
    async with in_memory(redis) as client:
        accepted = await client.post(
            "/v1/completions", json={"prompt": "a"}, headers={"Prefer": "respond-async"}
        )
        answer = await client.get(f"/v1/jobs/{accepted.json()['id']}/events")

    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "worker_failed")


HOSTILE = [
    "x",
    "{id}",
    "{id}.",
    "{id}.-1",
    "{id}.1-1",
    "{id}.99",
    "{id}.99999999999999999999999",
    "{id}.9999999999",
    "{id}.1+99999",
    "{id}.1.99",
    "{id}.1e3",
    "{id}.٣",
    "{id}.0\x00",
    "{id}.0 ",
    "{id}.0-" + "0-" * 20_000 + "0",
    "0" * 34 + ".0",
    "../../etc/passwd",
]


@pytest.mark.parametrize("cursor", HOSTILE)
async def test_a_hostile_cursor_is_refused(
    client: httpx.AsyncClient, worker: EchoWorker, cursor: str
) -> None:
    body = {"prompt": "a b", "stream": True}
    id = (await client.post("/v1/completions", json=body)).headers["X-Job-Id"]
    headers = [(b"Last-Event-ID", cursor.replace("{id}", id).encode())]
    by_id = await client.get(f"/v1/jobs/{id}/events", headers=headers)
    repeated = await client.post("/v1/completions", json=body, headers=headers)

    for answer in (by_id, repeated):
        assert answer.status_code in (400, 404), answer.text
        assert "Last-Event-ID" in answer.text or answer.status_code == 404
    assert len(worker.jobs) == 1, "nothing was run"


async def test_the_cursor_of_another_endpoint_is_refused(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    id = (await client.post("/generate", json={"prompts": ["a"]})).headers["X-Job-Id"]
    body = {"prompt": "a", "stream": True}
    answer = await client.post("/v1/completions", json=body, headers={"Last-Event-ID": f"{id}.0"})
    assert answer.status_code == 400


@given(
    st.builds(
        Cursor,
        st.just("0a" * 17),
        st.lists(st.tuples(st.integers(0, 10**10 - 1), st.integers(0, 999)), min_size=1).map(tuple),
        st.integers(0, 9),
    )
)
def test_a_cursor_survives_its_text(cursor: Cursor) -> None:
    assert Cursor.parse(str(cursor)) == cursor


@given(st.text())
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        Cursor.parse(text)


async def _read(client: httpx.AsyncClient, request: httpx.Request) -> list[Frame]:
    return await read_all(await client.send(request, stream=True))
