"""Several choices with stops and log-probabilities, from HTTP to the engine and back, streamed and
not."""

import asyncio
from typing import Any

import httpx
from redis.asyncio import Redis

from shared.messages import ModelInfo
from shared.queue.broker import Broker
from shared.queue.leases import QueuePolicy
from tests.fixtures.api.frames import frames
from tests.fixtures.api.fronts import in_memory
from tests.fixtures.polling import until
from worker.engine.runner import RunnerOptions
from worker.host.loading import LoadedModel
from worker.host.service import WorkerService
from worker.runners.echo import Echo

BODY = {
    "prompt": ["abc.", "eos"],
    "n": 3,
    "logprobs": 1,
    "stop": ["c.a", "!"],
    "max_tokens": 9,
    "min_tokens": 4,
}


def loaded() -> list[LoadedModel]:
    info = ModelInfo("echo", "echo", "test", 100, 100, 2, is_default=True)
    return [
        LoadedModel(
            info, Echo(RunnerOptions("echo", name="echo", max_batch=2)), lambda: loaded()[0]
        )
    ]


def joined(stream: httpx.Response) -> list[dict[str, Any]]:
    """The choices that the chunks of a stream add up to."""
    choices: dict[int, dict[str, Any]] = {}
    for frame in frames(stream)[1:-1]:
        for part in frame.json["choices"]:
            whole = choices.setdefault(
                part["index"], {"index": part["index"], "text": "", "logprobs": {}}
            )
            assert "finish_reason" not in whole, "said after the end"
            whole["text"] += part["text"]
            for name, values in part["logprobs"].items():
                whole["logprobs"].setdefault(name, []).extend(values)
            if part["finish_reason"]:
                whole["finish_reason"] = part["finish_reason"]
    return [choices[index] for index in sorted(choices)]


async def test_a_stream_adds_up_to_the_whole_answer(redis: Redis) -> None:
    stop = asyncio.Event()
    worker = WorkerService(Broker(redis), QueuePolicy(result_ttl_s=60), drain_timeout_s=5)
    serving = asyncio.create_task(worker.run(loaded, stop))
    async with in_memory(redis) as client:

        async def is_ready() -> bool:
            return (await client.get("/readyz")).status_code == 200

        await until(is_ready, "the worker is ready")
        whole = (await client.post("/v1/completions", json=BODY)).json()
        streamed = await client.post("/v1/completions", json=BODY | {"stream": True})
    stop.set()
    assert await serving is True
    assert joined(streamed) == whole["choices"]
    told = [
        (choice["index"], choice["text"], choice["finish_reason"]) for choice in whole["choices"]
    ]
    assert told == [(i, "ab", "stop") for i in range(3)] + [
        (i, "eose", "stop") for i in range(3, 6)
    ]
    assert whole["usage"]["completion_tokens"] == 3 * 5 + 3 * 5
    assert whole["choices"][5]["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]
    assert whole["choices"][5]["logprobs"]["tokens"] == ["e", "o", "s", "e", "token_id:0"]
