"""An echo worker that says again and again that it is there, for tests that last longer than its
word."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from shared.broker import connect
from shared.messages import ModelInfo, WorkerInfo
from shared.presence import Presence
from tests.api.echo_worker import EchoWorker

_EVERY_S = 1.0


@asynccontextmanager
async def staying_worker(
    redis_url: str, model: ModelInfo | None = None
) -> AsyncIterator[EchoWorker]:
    redis = connect(redis_url)
    async with EchoWorker(redis_url, model) as worker:
        announcing = asyncio.create_task(_announce(redis, worker))
        try:
            yield worker
        finally:
            announcing.cancel()
            await asyncio.gather(announcing, return_exceptions=True)
            await redis.aclose()


async def _announce(redis: Redis, worker: EchoWorker) -> None:
    while True:
        await Presence(redis).announce(WorkerInfo("w1", "ready", (worker.model,)))
        await asyncio.sleep(_EVERY_S)
