"""Several choices with stops and log-probabilities go from HTTP to the engine and back."""

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
    info = ModelInfo("echo", "echo", "test", 100, 100, max_batch=2, is_default=True)
    runner = Echo(RunnerOptions("echo", name="echo", max_batch=2))
    return [LoadedModel(info, runner, lambda: loaded()[0])]


def joined(stream: httpx.Response) -> list[dict[str, Any]]:
    """Return the choices that the chunks of a stream add up to."""
    choices: dict[int, dict[str, Any]] = {}
    for frame in frames(stream)[1:-1]:
        for part in frame.json["choices"]:
            index = part["index"]
            if index not in choices:
                choices[index] = {"index": index, "text": "", "logprobs": {}}
            choice = choices[index]
            assert "finish_reason" not in choice, "a part after the end"
            choice["text"] += part["text"]
            for name, values in part["logprobs"].items():
                choice["logprobs"].setdefault(name, []).extend(values)
            if part["finish_reason"]:
                choice["finish_reason"] = part["finish_reason"]
    return [choice for _, choice in sorted(choices.items())]


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
    texts = ["ab", "ab", "ab", "eose", "eose", "eose"]
    for index, (choice, text) in enumerate(zip(whole["choices"], texts, strict=True)):
        assert choice["index"] == index
        assert choice["text"] == text
        assert choice["finish_reason"] == "stop"
    assert whole["usage"]["completion_tokens"] == 3 * 5 + 3 * 5
    assert whole["choices"][5]["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]
    assert whole["choices"][5]["logprobs"]["tokens"] == ["e", "o", "s", "e", "token_id:0"]
