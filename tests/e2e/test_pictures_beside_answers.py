"""A picture that takes long holds up no token of the answers that the same process decodes.

A worker has a thread for each mechanism, and that of whole tasks gives way to the one that decodes.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from shared.settings.settings import DEFAULT_MODEL
from tests.fixtures.api.fronts import live
from tests.fixtures.e2e.fleet import start_worker
from tests.fixtures.polling import until
from tests.fixtures.tiny_diffusion import write_pipeline

NUM_STREAMS = 4
NUM_TOKENS = 100
PICTURE = {
    "task": "text-to-image",
    "model_id": "painter",
    "inputs": "a long picture",
    "options": {
        "seed": 1,
        "num_images": 2,
        "width": 128,
        "height": 128,
        "num_inference_steps": 100,
    },
}
NUM_STEPS = 3
"""Steps of the picture for which the streams are watched. Each takes one to several seconds."""
STEPS_S = 400.0
"""More than the steps take on a busy machine, which leaves them next to no time."""


@dataclass
class Stream:
    """A stream of text, and the times of its tokens in seconds."""

    text: str = ""
    times_s: list[float] = field(default_factory=list)

    @property
    def gap_s(self) -> float:
        return max(later - earlier for earlier, later in pairwise(self.times_s))


@pytest.fixture
async def client(tmp_path: Path, redis_url: str, redis: Redis) -> AsyncIterator[httpx.AsyncClient]:
    painter = write_pipeline(tmp_path / "painter")
    worker = await start_worker(
        redis_url,
        redis,
        *("--model", f"painter={painter}"),
        *("--threads", "1", "--device", "cpu", "--dtype", "float32"),
        *("--lease-s", "60"),
        model=f"sample={DEFAULT_MODEL}",
    )
    try:
        async with live(redis, request_timeout_s=900) as (front, _):

            async def is_ready() -> bool:
                return (await front.get("/readyz")).status_code == 200

            await until(is_ready, "the front is ready")
            yield front
    finally:
        await worker.end()


async def streamed(client: httpx.AsyncClient, number: int) -> Stream:
    body = {
        "model": "sample",
        "prompt": f"Compute: {number} + 285",
        "max_tokens": NUM_TOKENS,
        "ignore_eos": True,
        "seed": number,
        "stream": True,
    }
    stream = Stream()
    async with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            [choice] = json.loads(line.removeprefix("data: "))["choices"]
            stream.text += choice["text"]
            stream.times_s.append(time.monotonic())
    return stream


async def one_after_the_other(
    client: httpx.AsyncClient, number: int, streams: list[Stream]
) -> None:
    """Stream the same text again and again, until cancelled."""
    while True:
        streams.append(await streamed(client, number))


async def steps_done(client: httpx.AsyncClient, job: str) -> int:
    """Return the number of steps of a picture that are done."""
    body = (await client.get(job)).json()
    assert body["state"] in ("queued", "running"), body
    if body["progress"] is None:
        return 0
    return int(body["progress"]["done"])


@pytest.mark.timeout(900)
async def test_streams_go_on_beside_a_long_picture(client: httpx.AsyncClient) -> None:
    alone = await asyncio.gather(*(streamed(client, number) for number in range(NUM_STREAMS)))
    asked = await client.post("/api/inference", json=PICTURE, headers={"Prefer": "respond-async"})
    assert asked.status_code == 202, asked.text
    job = f"/v1/jobs/{asked.json()['id']}"

    async def is_begun() -> bool:
        return await steps_done(client, job) >= 1

    async def is_further() -> bool:
        return await steps_done(client, job) >= num_before + NUM_STEPS

    await until(is_begun, "the picture is begun", STEPS_S)
    beside: list[list[Stream]] = [[] for _ in range(NUM_STREAMS)]
    async with asyncio.TaskGroup() as group:
        num_before = await steps_done(client, job)
        begun_s = time.monotonic()
        asking = []
        for number, streams in enumerate(beside):
            asking.append(group.create_task(one_after_the_other(client, number, streams)))
        await until(is_further, "the picture has gone on", STEPS_S)
        step_s = (time.monotonic() - begun_s) / NUM_STEPS
        for task in asking:
            task.cancel()

    assert (await client.delete(job)).status_code in (200, 204)
    gaps_s = []
    for number, streams in enumerate(beside):
        assert streams, "no stream has come to its end"
        for stream in streams:
            assert stream.text == alone[number].text
            gaps_s.append(stream.gap_s)
    # If tokens waited for steps, some of these thousands would wait for a whole one.
    assert max(gaps_s) < step_s / 2
