"""A whole fleet in the test's own process: a front without a socket, a real worker with real
runners, a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

import httpx
from redis.asyncio import Redis

from shared.broker import Broker
from shared.messages import NO_PROMPTING, ModelInfo, Prompting
from shared.queue import QueuePolicy
from tests.api.fronts import in_memory
from tests.polling import until
from worker.loading import LoadedModel
from worker.runners.base import Runner
from worker.service import WorkerService

_MAX_NEW_TOKENS = 64


@asynccontextmanager
async def fleet_inside(
    redis: Redis,
    runners: Mapping[str, Runner],
    prompting: Prompting = NO_PROMPTING,
    **settings: object,
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a fleet that serves `runners` by their names; the first is the default. The
    worker must survive."""
    worker, stop = (
        WorkerService(Broker(redis), QueuePolicy(result_ttl_s=60), drain_timeout_s=5),
        asyncio.Event(),
    )
    default = next(iter(runners))

    def loaded(name: str) -> LoadedModel:
        runner, spec = runners[name], runners[name].spec
        window, most, is_default = spec.context_window, _MAX_NEW_TOKENS, name == default
        info = ModelInfo(
            name,
            spec.runner,
            "for tests",
            window,
            most,
            spec.max_batch,
            spec.tasks,
            is_default,
            prompting=prompting,
        )
        return LoadedModel(info, runner, partial(loaded, name))

    running = asyncio.create_task(worker.run(lambda: [loaded(name) for name in runners], stop))
    async with in_memory(redis, **settings) as client:
        await until(lambda: _is_ready(client), "the worker is ready")
        yield client
    stop.set()
    assert await running is True, "a part of the worker broke"


async def _is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 200
