"""SimpleFoundation's endpoints: their defaults, the fields of their answers, and their streams.

A stream is bare text or a sequence of events."""

import asyncio
import json
import math
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from shared.fleet.presence import Presence
from shared.messages import Failed, Generate, Prompting, Score, WorkerInfo
from tests.fixtures.api.echo_worker import ALL_DAY_S, EchoWorker, announce, model_info
from tests.fixtures.api.frames import Frame, frames
from tests.fixtures.api.fronts import in_memory, live, states
from tests.fixtures.polling import until

EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture
async def client(redis: Redis) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a front whose cap on new tokens is above all defaults."""
    async with in_memory(redis, max_new_tokens=1024) as client:
        yield client


def task_of(worker: EchoWorker) -> Generate:
    task = worker.jobs[-1].task
    assert isinstance(task, Generate)
    return task


def untimed(answer: httpx.Response) -> Any:
    """Return the body without its time, once that has been checked."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert 0 <= body.pop("generation_time") < 10
    return body


def texts_of(events: list[Frame]) -> list[str]:
    return [frame.json["text"] for frame in events]


async def test_c8_to_c17_generate(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    answer = await client.post("/generate", json={"prompt": "a b"})
    assert untimed(answer) == {
        "prompt": "a b",
        "generated_text": "a b",
        "tokens_generated": 2,
        "input_tokens": 2,
        "output_tokens": 2,
    }

    sampling = task_of(worker).sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (512, 0.7, 0.9)
    assert (sampling.top_k, sampling.repetition_penalty, sampling.n) == (50, 1.1, 1)


async def test_everything_given_reaches_the_worker(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    body = {
        "prompt": "a b c",
        "max_new_tokens": 2,
        "num_return_sequences": 2,
        "do_sample": False,
        "top_k": 3,
        "repetition_penalty": 1.0,
        "condition": "cot",
    }
    answer = untimed(await client.post("/generate", json=body))
    assert answer["generated_text"] == "a b "
    assert answer["generated_texts"] == ["a b ", "b c"]
    assert answer["tokens_generated"] == 4

    task = task_of(worker)
    sampling = task.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k) == (2, 0.0, 3)
    assert (sampling.repetition_penalty, task.condition) == (1.0, "cot")


async def test_x3_a_default_above_the_cap_is_no_error(redis: Redis, worker: EchoWorker) -> None:
    async with in_memory(redis, max_new_tokens=3, cap_policy="reject") as client:
        answer = await client.post("/generate", json={"prompt": "a b c d"})

    assert untimed(answer)["generated_text"] == "a b c "
    assert answer.headers["X-Effective-Max-Tokens"] == "3"


async def test_c18_to_c19_math(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    solved = untimed(await client.post("/solve/math", json={"problem": "2x = 6 so x = 3"}))
    assert set(solved) == {"problem", "solution", "answer", "input_tokens", "output_tokens"}
    assert (solved["problem"], solved["answer"]) == ("2x = 6 so x = 3", "3")

    task = task_of(worker)
    assert isinstance(task.prompt, str)
    assert task.prompt.startswith("Solve the following math problem")
    assert "\n\nProblem: 2x = 6 so x = 3\n\n" in task.prompt
    assert (task.sampling.max_tokens, task.sampling.temperature) == (512, 0.7)


async def test_c20_to_c21_coding(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    problem = "Say:\n```python\nprint(1)\n```\n"
    solved = untimed(await client.post("/solve/coding", json={"problem": problem}))
    assert set(solved) == {"problem", "solution", "code", "input_tokens", "output_tokens"}
    assert solved["code"] == "print(1)"

    sampling = task_of(worker).sampling
    assert (sampling.max_tokens, sampling.temperature) == (1024, 0.8)


@pytest.mark.parametrize(("most_refusal", "in_domain"), [(0.5, True), (0.1, False)])
async def test_a_model_that_knows_its_limits_tells_them(
    redis: Redis, redis_url: str, most_refusal: float, in_domain: bool
) -> None:
    """The worker's score of a text is -1 for each character, so it declines with a chance of e^-2.

    The score is a job of its own, and adds no tokens to the answer's.
    """
    prompting = Prompting(math="M {problem}", refusal="no", most_refusal=most_refusal)
    async with (
        EchoWorker(redis_url, model_info(prompting=prompting)) as worker,
        in_memory(redis) as client,
    ):
        answer = untimed(await client.post("/solve/math", json={"problem": "1 + 1"}))
        assert answer["domain_score"] == pytest.approx(1 - math.exp(-2))
        assert answer["in_domain"] is in_domain
        assert (answer["solution"], answer["output_tokens"]) == ("M 1 + 1", 4)
        score = next(job.task for job in worker.jobs if isinstance(job.task, Score))
        assert (score.context, score.continuations) == ("M 1 + 1", ("no",))

        body = {"problem": "1 + 1", "stream": True}
        stream = await client.post("/solve/math", json=body, headers=EVENTS)
        *pieces, last, done = frames(stream)
        assert {frame.json["index"] for frame in pieces} == {0}
        result = last.json["result"]
        assert result.pop("generation_time") is not None
        assert result == answer
        assert done.data == "[DONE]"


async def test_who_cancels_before_the_score_learns_nothing_of_the_domain(redis: Redis) -> None:
    """The announced worker takes no jobs, so neither the answer nor the score has begun."""
    await announce(redis, "echo", prompting=Prompting(math="M {problem}", refusal="no"))
    async with in_memory(redis) as client:
        headers = {"Prefer": "respond-async"}
        accepted = await client.post("/solve/math", json={"problem": "1 + 1"}, headers=headers)
        path = f"/v1/jobs/{accepted.json()['id']}"
        await client.delete(path)
        job = await client.get(path)
    assert job.status_code == 200, job.text
    assert job.json()["state"] == "cancelled"
    partial = job.json()["partial"]
    del partial["generation_time"]
    assert partial == {
        "problem": "1 + 1",
        "solution": "",
        "answer": None,
        "input_tokens": 0,
        "output_tokens": 0,
    }


async def test_problems_go_to_the_model_that_declares_them(redis: Redis, redis_url: str) -> None:
    """Where no model is named, and the default declares texts for other problems only."""
    maths = model_info("maths", is_default=True, prompting=Prompting(math="M {problem}"))
    code = model_info("code", prompting=Prompting(coding="C {problem}"))
    plain = model_info("another")
    idle = WorkerInfo("idle", "ready", (plain, maths))
    await Presence(redis, ttl_s=ALL_DAY_S).announce(idle)
    async with EchoWorker(redis_url, code), in_memory(redis) as client:
        answer = await client.post("/solve/coding", json={"problem": "add"})
        assert answer.json()["solution"] == "C add"
        for body in ({"problem": "1", "model": "maths"}, {"problem": "1", "model": "local"}):
            for path in ("/solve/math", "/solve/coding"):
                later = await client.post(path, json=body, headers={"Prefer": "respond-async"})
                assert later.status_code == 202
    keys = [key.decode() for key in await redis.keys("aios:*:job:*")]
    models = [(await redis.hget(key, "model")).decode() for key in keys]  # type: ignore[misc]
    # By "local" coding goes to its own model, too.
    assert sorted(models) == ["code", "code", "maths", "maths", "maths"]


async def test_a_callers_own_template(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    body = {"problem": "6 x {problem}", "template": "Q: {problem}\nA: {x}"}
    assert untimed(await client.post("/solve/math", json=body))["answer"] is None
    assert task_of(worker).prompt == "Q: 6 x {problem}\nA: {x}"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": "a b ü\nd x = 3"}),
        ("/solve/math", {"problem": "a b ü\nd x = 3", "template": "{problem}"}),
        ("/solve/coding", {"problem": "a b ü\nd x = 3", "template": "{problem}"}),
    ],
)
async def test_c32_c33_a_stream_is_text_or_events(
    client: httpx.AsyncClient, worker: EchoWorker, path: str, body: dict[str, Any]
) -> None:
    """X11: the `Accept` header decides; the events end with the whole answer."""
    streamed = body | {"stream": True}
    text = await client.post(path, json=streamed)
    assert text.headers["content-type"] == "text/plain; charset=utf-8"
    assert text.text == "a b ü\nd x = 3"

    answer = await client.post(path, json=streamed, headers=EVENTS)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *pieces, end, done = frames(answer)
    assert "".join(texts_of(pieces)) == text.text
    assert done.data == "[DONE]"

    whole = (await client.post(path, json=body)).json()
    result = end.json["result"]
    assert whole.pop("generation_time") >= 0
    assert result.pop("generation_time") >= 0
    assert result == whole

    seen = {"Last-Event-ID": pieces[1].id}
    resumed = await client.post(path, json=streamed, headers=EVENTS | seen)
    *rest, _, _ = frames(resumed)
    assert texts_of(rest) == texts_of(pieces[2:])


async def test_the_streaming_path_has_events_only(
    client: httpx.AsyncClient, worker: EchoWorker
) -> None:
    answer = await client.post("/generate_stream", json={"prompt": "a b"})
    *events, _ = frames(answer)
    assert texts_of(events) == ["", "a ", "b", ""]


async def test_the_documented_clients(redis: Redis, worker: EchoWorker) -> None:
    """C30 to C32: a client prints chunks as they come, or solves four problems at once."""
    worker.gate.clear()
    async with live(redis) as (client, _):
        address = str(client.base_url)
        has_first_chunk = threading.Event()

        def stream() -> str:
            body = {"problem": "a b", "template": "{problem}", "stream": True}
            with httpx.stream("POST", f"{address}/solve/math", json=body, timeout=60) as answer:
                text = ""
                for chunk in answer.iter_bytes():
                    text += chunk.decode()
                    has_first_chunk.set()
                return text

        streaming = asyncio.create_task(asyncio.to_thread(stream))
        # The gate holds the last word back until the first one has come.
        assert await asyncio.to_thread(has_first_chunk.wait, 10)
        worker.gate.set()
        assert await streaming == "a b"

        answers = await asyncio.gather(
            client.post("/solve/math", json={"problem": "x = 0"}),
            client.post("/solve/math", json={"problem": "x = 1"}),
            client.post("/solve/math", json={"problem": "x = 2"}),
            client.post("/solve/math", json={"problem": "x = 3"}),
        )

    for number, answer in enumerate(answers):
        assert untimed(answer)["answer"] == str(number)


async def test_text_that_breaks_off_is_no_whole_answer(redis: Redis, worker: EchoWorker) -> None:
    """A failure breaks the connection, so that clients notice.

    A stream of bare text cannot carry an error."""
    worker.gate.clear()
    async with live(redis) as (client, front):
        body = {"prompt": "a b", "stream": True}
        failure = Failed("worker_failed", "It broke.")
        with pytest.raises(httpx.RemoteProtocolError):
            async with client.stream("POST", "/generate", json=body) as answer:
                async for _ in answer.aiter_raw():
                    await front.submissions.end([worker.jobs[0].id], failure)


@pytest.mark.parametrize("headers", [{}, EVENTS])
async def test_who_hangs_up_cancels(
    redis: Redis, worker: EchoWorker, headers: dict[str, str]
) -> None:
    worker.gate.clear()
    async with live(redis) as (client, _):
        body = {"problem": "a b", "stream": True}
        async with client.stream("POST", "/solve/math", json=body, headers=headers) as answer:
            await anext(answer.aiter_raw())
        await until(lambda: is_cancelled(redis), "the job is cancelled")


BAD: list[tuple[str, Any, str, str]] = [
    ("/generate", {"prompt": ""}, "prompt", "at least 1 character"),
    ("/generate", {"prompt": ["a"]}, "prompt", "valid string"),
    ("/generate", {"prompt": "\ud800"}, "prompt", "unicode string"),
    (
        "/generate",
        {"prompt": "a", "prompts": ["a"]},
        "prompts",
        "exactly one of prompts, prompt, inputs, got prompts",
    ),
    ("/generate", {"prompt": "a", "do_sample": 1}, "do_sample", "valid boolean"),
    ("/generate", {"prompt": "a", "stream": "yes"}, "stream", "valid boolean"),
    (
        "/generate",
        {"prompt": "a", "num_return_sequences": 0},
        "num_return_sequences",
        "greater than or equal to 1",
    ),
    (
        "/generate",
        {"prompt": "a", "num_return_sequences": 17},
        "num_return_sequences",
        "less than or equal to 16",
    ),
    (
        "/generate",
        {"prompt": "a", "max_new_tokens": 0},
        "max_new_tokens",
        "greater than or equal to 1",
    ),
    ("/generate", {"prompt": "a", "repetition_penalty": 0}, "repetition_penalty", "greater than"),
    ("/solve/math", {}, "problem", "required"),
    ("/solve/math", {"problem": 5}, "problem", "valid string"),
    ("/solve/math", {"problem": "a", "temperature": 2.5}, "temperature", "less than or equal to 2"),
    ("/solve/math", {"problem": "a", "n": 2}, "n", "not supported"),
    ("/solve/math", {"problem": "a", "template": "no place"}, "template", "{problem}"),
    ("/solve/coding", {"problem": ""}, "problem", "at least 1 character"),
    ("/solve/coding", [], "", "JSON object"),
]


@pytest.mark.parametrize(("path", "body", "field", "expected"), BAD)
async def test_what_is_wrong_with_a_body(
    client: httpx.AsyncClient, worker: EchoWorker, path: str, body: Any, field: str, expected: str
) -> None:
    answer = await client.post(
        path, content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["field"] or "") == ("invalid_request", field)
    assert field in error["message"]
    assert expected in error["message"]
    assert worker.jobs == []


async def test_model_info_and_health(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    health = await client.get("/health")
    assert health.json() == {"status": "healthy", "ready": True, "model": "echo"}

    info = await client.get("/model/info")
    assert info.json() == {
        "model_name": "echo",
        "model_type": "echo",
        "description": "echo for tests",
        "context_window": 2048,
        "max_new_tokens": 1024,
        "max_batch": 8,
        "tasks": ["generate", "score", "read"],
    }

    unknown = await client.get("/model/info?model=nobody")
    assert (unknown.status_code, unknown.json()["error"]["field"]) == (404, "model")


async def test_health_without_a_worker(client: httpx.AsyncClient) -> None:
    answer = await client.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "unhealthy")
    assert answer.json()["reason"] == "no worker is ready"


async def is_cancelled(redis: Redis) -> bool:
    return await states(redis) == ["cancelled"]
