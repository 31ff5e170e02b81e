"""P3: a worker is killed in the middle of drafts, and the next one says what would have come."""

import json
import signal

import httpx
import pytest
from redis.asyncio import Redis

from shared.fleet.presence import Presence
from shared.messages import WorkerInfo
from shared.settings.settings import DEFAULT_MODEL
from tests.fixtures.e2e.fleet import WorkerProcess, front, start_worker
from tests.fixtures.polling import until
from worker.llm import LLM, SamplingParams
from worker.native.library import library

PROMPT = "Solve for x: 3x + 8 = 29"
SAMPLING = {"max_tokens": 250, "seed": 11, "temperature": 0.9, "ignore_eos": True}
CYCLES = "4x12"
"""So many cycles make a token of the default model take long enough to be killed in the middle."""


@pytest.mark.skipif(library() is None, reason="drafts need the kernels in C")
async def test_a_worker_dies_while_it_drafts(redis_url: str, redis: Redis) -> None:
    model = f"sample={DEFAULT_MODEL}"
    flags = ["--option", f"sample:cycles={CYCLES}", "--lease-s", "1"]
    workers = [
        await start_worker(redis_url, redis, *flags, model=model),
        await start_worker(redis_url, redis, *flags, model=model),
    ]
    try:
        async with front(redis_url, "--lease-s", "1") as running:
            await running.ready()
            text = ""
            body = {"prompt": PROMPT, "stream": True, **SAMPLING}
            async with (
                httpx.AsyncClient(base_url=running.url, timeout=180) as client,
                client.stream("POST", "/v1/completions", json=body) as stream,
            ):
                num_frames = 0
                async for line in stream.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                    num_frames += 1
                    if num_frames == 10:
                        await kill_the_busy_one(redis, workers)

        survivors = [info for info in await infos(redis) if info.state == "ready"]
        assert len(survivors) == 1, "nobody was killed"
        assert survivors[0].loads[0].drafted > 0
    finally:
        for worker in workers:
            await worker.end()

    with LLM(str(DEFAULT_MODEL), options={"cycles": CYCLES, "draft_tokens": 0}) as llm:
        [output] = llm.generate(PROMPT, SamplingParams(**SAMPLING))
    assert text == output.outputs[0].text


async def infos(redis: Redis) -> tuple[WorkerInfo, ...]:
    return (await Presence(redis).fleet()).workers


async def kill_the_busy_one(redis: Redis, workers: list[WorkerProcess]) -> None:
    """Kill the worker that holds the only job, which it does not end before."""

    async def holder() -> str:
        [job] = await redis.keys("aios:{00}:job:*")
        state, worker = await redis.hmget(job, "state", "worker")
        assert state == b"running", "the answer ended before the worker could be killed"
        return worker.decode()

    name = await holder()
    [victim] = [worker for worker in workers if f"-{worker.pid}-" in name]
    victim.signal(signal.SIGKILL)
    await victim.wait()

    async def is_gone() -> bool:
        return all(info.id != name for info in await infos(redis))

    await until(is_gone, "the killed worker is forgotten")
