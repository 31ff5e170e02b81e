"""`/generate_stream` in the shape of the HRM contract, and `n` completions of a prompt."""

import httpx
import pytest
from redis.asyncio import Redis

from shared.messages import Failed
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.frames import Frame, frames, read
from tests.fixtures.api.fronts import live, states
from tests.fixtures.polling import until

PATH = "/generate_stream"


def data_of(frames: list[Frame]) -> list[str]:
    return [frame.data for frame in frames]


async def is_cancelled(redis: Redis) -> bool:
    return await states(redis) == ["cancelled"]


async def test_what_a_stream_looks_like(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    answer = await client.post(PATH, json={"prompts": ["a b", "c"], "n": 2, "max_tokens": 5})
    assert answer.headers["content-type"].startswith("text/event-stream")

    *deltas, usage, done = frames(answer)
    assert deltas[0].json == {"index": 0, "text": "", "finish_reason": None}

    # Two prompts with two choices each; the second choice of a prompt lacks its first word.
    texts = ["", "", "", ""]
    reasons = ["", "", "", ""]
    for frame in deltas:
        delta = frame.json
        assert set(delta) == {"index", "text", "finish_reason"}
        index = delta["index"]
        texts[index] += delta["text"]
        if delta["finish_reason"]:
            reasons[index] = delta["finish_reason"]
    assert texts == ["a b", "b", "c", ""]
    assert reasons == ["stop", "stop", "stop", "stop"]

    assert usage.json == {"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}
    assert done.data == "[DONE]"


async def test_the_whole_answer_has_the_choices_of_each_prompt_together(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    answer = await client.post("/generate", json={"prompts": ["a b", "c d"], "n": 2})
    assert answer.json()["completions"] == ["a b", "b", "c d", "d"]


async def test_a_reader_goes_on_behind_any_frame(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    body = {"prompts": ["a b c"]}
    whole = frames(await client.post(PATH, json=body))

    for index, last_seen in enumerate(whole[:-1]):
        answer = await client.post(PATH, json=body, headers={"Last-Event-ID": last_seen.id})
        assert data_of(frames(answer)) == data_of(whole[index + 1 :])


async def test_a_failure_in_the_middle_is_the_last_frame(redis: Redis, worker: EchoWorker) -> None:
    worker.gate.clear()

    async with (
        live(redis) as (client, front),
        client.stream("POST", PATH, json={"prompts": ["a b"]}) as answer,
    ):
        reader = read(answer.aiter_lines())
        assert (await anext(reader)).json["text"] == ""
        assert (await anext(reader)).json["text"] == "a "

        await front.submissions.end([worker.jobs[0].id], Failed("worker_failed", "It broke."))
        error, done = [frame async for frame in reader]

    assert error.json == {"error": {"code": "worker_failed", "message": "It broke.", "field": None}}
    assert done.data == "[DONE]"


@pytest.mark.parametrize("body", [{"prompts": ["a b"]}, {"inputs": "a b"}])
async def test_who_hangs_up_cancels(
    redis: Redis, worker: EchoWorker, body: dict[str, object]
) -> None:
    worker.gate.clear()
    async with live(redis) as (client, _):
        async with client.stream("POST", PATH, json=body) as answer:
            await anext(read(answer.aiter_lines()))
        await until(lambda: is_cancelled(redis), "the job is cancelled")


async def test_what_is_wrong_with_a_body(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    for body, field in (
        ({"prompts": ["a"], "n": 17}, "n"),
        ({"prompts": ["a"] * 9, "n": 8}, "n"),
        ({}, "prompts"),
    ):
        answer = await client.post(PATH, json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["field"] == field

    assert worker.jobs == []
