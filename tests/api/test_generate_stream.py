"""`/generate_stream` in the shape of the HRM contract, and `n` completions of a prompt."""

import httpx
import pytest
from redis.asyncio import Redis

from shared.messages import Failed
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.frames import frames, read
from tests.fixtures.api.fronts import live, states
from tests.fixtures.polling import until

PATH = "/generate_stream"


async def test_what_a_stream_looks_like(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    answer = await client.post(PATH, json={"prompts": ["a b", "c"], "n": 2, "max_tokens": 5})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *told, end, done = frames(answer)
    assert done.data == "[DONE]"
    assert told[0].json == {"index": 0, "text": "", "finish_reason": None}
    texts = ["", "", "", ""]
    reasons = ["", "", "", ""]
    for frame in told:
        assert set(frame.json) == {"index", "text", "finish_reason"}
        texts[frame.json["index"]] += frame.json["text"]
        reasons[frame.json["index"]] = frame.json["finish_reason"] or reasons[frame.json["index"]]
    assert texts == ["a b", "b", "c", ""]
    assert reasons == ["stop"] * 4
    assert end.json == {"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}


async def test_the_whole_answer_has_the_choices_of_each_prompt_together(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    answer = await client.post("/generate", json={"prompts": ["a b", "c d"], "n": 2})
    assert answer.json()["completions"] == ["a b", "b", "c d", "d"]


async def test_a_reader_goes_on_behind_any_frame(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    whole = frames(await client.post(PATH, json={"prompts": ["a b c"]}))
    for at, frame in enumerate(whole[:-1]):
        rest = await client.post(
            PATH, json={"prompts": ["a b c"]}, headers={"Last-Event-ID": frame.id}
        )
        assert [other.data for other in frames(rest)] == [other.data for other in whole[at + 1 :]]


async def test_a_failure_in_the_middle_is_the_last_frame(redis: Redis, worker: EchoWorker) -> None:
    worker.gate.clear()
    async with (
        live(redis) as (client, front),
        client.stream("POST", PATH, json={"prompts": ["a b"]}) as answer,
    ):
        coming = read(answer.aiter_lines())
        assert [(await anext(coming)).json["text"], (await anext(coming)).json["text"]] == [
            "",
            "a ",
        ]
        await front.submissions.end([worker.jobs[0].id], Failed("worker_failed", "It broke."))
        rest = [frame async for frame in coming]
    assert rest[0].json == {
        "error": {"code": "worker_failed", "message": "It broke.", "field": None}
    }
    assert rest[1].data == "[DONE]"


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
    for body, named in (
        ({"prompts": ["a"], "n": 17}, "n"),
        ({"prompts": ["a"] * 9, "n": 8}, "n"),
        ({}, "prompts"),
    ):
        answer = await client.post(PATH, json=body)
        assert (answer.status_code, answer.json()["error"]["field"]) == (400, named)
    assert worker.jobs == []


async def is_cancelled(redis: Redis) -> bool:
    return await states(redis) == ["cancelled"]
