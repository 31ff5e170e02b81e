"""A front and an echo worker for a whole module, for many short questions: a new front for each
takes a while."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import httpx

from shared.broker import connect
from tests.api.echo_worker import ALL_TASKS, EchoWorker, model_info
from tests.api.fronts import in_memory
from tests.redis_server import RedisServer


class JobSnapshot:
    """Both run while a question is asked, in a loop of their own. Tests that use it must not flush
    Redis."""

    def __init__(
        self, runner: asyncio.Runner, client: httpx.AsyncClient, worker: EchoWorker
    ) -> None:
        self.worker = worker
        self._runner = runner
        self._client = client

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self._runner.run(self._client.request(method, path, **more))

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self.request("POST", path, **more)


@contextmanager
def standing(redis_server: RedisServer, **settings: object) -> Iterator[JobSnapshot]:
    """With a worker for every endpoint."""
    redis_server.flush()
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        client, worker = runner.run(_enter(stack, redis_server.url, settings))
        try:
            yield JobSnapshot(runner, client, worker)
        finally:
            runner.run(stack.aclose())


async def _enter(
    stack: AsyncExitStack, url: str, settings: dict[str, object]
) -> tuple[httpx.AsyncClient, EchoWorker]:
    redis = connect(url)
    stack.push_async_callback(redis.aclose)
    worker = await stack.enter_async_context(EchoWorker(url, model_info(tasks=ALL_TASKS)))
    return await stack.enter_async_context(in_memory(redis, **settings)), worker
