"""A batch of a thousand lines by OpenAI's own client, while every kind of process is killed."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch
from redis.asyncio import Redis

from shared.queue import keys
from shared.queue.broker import UNAVAILABLE, connect, open_broker
from tests.fixtures.api.batching import ENDED, line
from tests.fixtures.e2e.fleet import front, start_worker
from tests.fixtures.polling import DEADLINE_S
from tests.fixtures.redis_cluster import redis_cluster
from tests.fixtures.redis_server import RedisServer, patient, start_redis

NUM_LINES = 1000


@pytest.fixture
def lasting_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that finds its data again after a crash."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = start_redis(folder, appendonly="yes", appendfsync="always")
    try:
        yield server
    finally:
        server.stop()


@asynccontextmanager
async def jobs_role(
    url: str, folder: Path, *flags: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    command = [sys.executable, "-m", "scripts.cli.jobs", "--redis-url", url]
    command += ["--artifact-url", str(folder), "--log-level", "warning", *flags]
    process = await asyncio.create_subprocess_exec(*command, env=dict(os.environ))
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def note_jobs(redis: Redis, seen: set[bytes]) -> None:
    """Note all jobs as they come. One that is done is there for a minute."""
    while True:
        with suppress(*UNAVAILABLE):
            async for name in redis.scan_iter("aios:{00}:job:*", count=1000):
                seen.add(name)
        await asyncio.sleep(1)


def _sdk(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=20)


class Caller:
    """A caller with OpenAI's client, which asks again while a front or Redis is away."""

    def __init__(self, url: str) -> None:
        self._sdk = _sdk(url)

    async def turn_to(self, url: str) -> None:
        await self._sdk.close()
        self._sdk = _sdk(url)

    async def close(self) -> None:
        await self._sdk.close()

    async def begin(self, data: bytes) -> str:
        file = await self._sdk.files.create(file=("lines.jsonl", data), purpose="batch")
        batch = await self._sdk.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )
        return batch.id

    async def at(self, batch_id: str, num_done: int = NUM_LINES + 1) -> Batch:
        """Return the batch once so many lines are done, or it has ended."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                batch = await self._sdk.batches.retrieve(batch_id)
                assert batch.request_counts is not None
                if batch.status in ENDED or batch.request_counts.completed >= num_done:
                    return batch
                await asyncio.sleep(0.02)

    async def answers(self, batch: Batch) -> list[tuple[str, int, Any, Any]]:
        """Return what each line was answered, without ids and times."""
        assert batch.output_file_id is not None
        content = await self._sdk.files.content(batch.output_file_id)
        answers = []
        for row in map(json.loads, content.text.splitlines()):
            body = row["response"]["body"]
            answers.append((row["custom_id"], row["line"], body["choices"], body["usage"]))
        return answers


async def test_kills_change_nothing_but_time(lasting_redis: RedisServer, tmp_path: Path) -> None:
    """The jobs role, a worker, a front and Redis are killed in the middle of a batch.

    The answers are those of a batch that nothing disturbed, each once, and no line ran twice.
    """
    url = lasting_redis.url
    files = tmp_path / "artifacts"
    place = ("--artifact-url", str(files))
    data = b"\n".join(line(f"line-{number}", max_tokens=9) for number in range(NUM_LINES))
    redis = patient(connect(url))
    seen: set[bytes] = set()
    noting = asyncio.create_task(note_jobs(redis, seen))
    victim = await start_worker(url, redis)
    other = await start_worker(url, redis)
    try:
        async with front(url, *place) as second, front(url, *place) as first:
            caller = Caller(first.url)
            async with jobs_role(url, files) as jobs:
                calm = await caller.at(await caller.begin(data))
                batch_id = await caller.begin(data)
                await caller.at(batch_id, 100)
                jobs.send_signal(signal.SIGKILL)
                await jobs.wait()
            async with jobs_role(url, files):
                await caller.at(batch_id, 300)
                victim.signal(signal.SIGKILL)
                await caller.at(batch_id, 500)
                first.process.kill()
                await caller.turn_to(second.url)
                before = await caller.at(batch_id, 700)
                assert before.status == "in_progress"
                lasting_redis.stop()
                lasting_redis.start()
                batch = await caller.at(batch_id)
        assert batch.status == calm.status == "completed"
        assert batch.request_counts == calm.request_counts
        assert batch.request_counts is not None
        assert batch.request_counts.completed == NUM_LINES
        assert batch.usage == calm.usage
        async with front(url, *place) as third:
            await caller.turn_to(third.url)
            answers = await caller.answers(batch)
            assert [name for name, *_ in answers] == [f"line-{n}" for n in range(NUM_LINES)]
            assert answers == await caller.answers(calm)
            await caller.close()
        assert len(seen) == 2 * NUM_LINES
    finally:
        noting.cancel()
        await asyncio.gather(noting, return_exceptions=True)
        await victim.end()
        await other.end()
        await redis.aclose()


async def test_a_batch_on_a_cluster(tmp_path: Path) -> None:
    """Lines are spread over the shards, and the records of batches lie in one slot."""
    shards = ("--redis-shards", "4")
    files = tmp_path / "artifacts"
    data = b"\n".join(line(f"line-{number}", max_tokens=9) for number in range(60))
    with redis_cluster(tmp_path) as cluster:
        async with (
            front(cluster.url, "--artifact-url", str(files), *shards) as door,
            open_broker(cluster.url, 4) as broker,
            jobs_role(cluster.url, files, *shards),
        ):
            worker = await start_worker(cluster.url, broker.client(keys.PRESENCE), *shards)
            try:
                await door.ready()
                caller = Caller(door.url)
                batch = await caller.at(await caller.begin(data))
                assert batch.status == "completed"
                names = [name for name, *_ in await caller.answers(batch)]
                await caller.close()
                assert names == [f"line-{number}" for number in range(60)]
                at_work = set()
                for node in await broker.nodes():
                    async for name in node.scan_iter(keys.pattern("job")):
                        at_work.add(keys.parts(name.decode(), "job")[0])
                assert at_work == set(broker.shards)
            finally:
                await worker.end()
