"""Something costly that tests share until one of them fails: the next one gets a new one.

What a test that fails leaves behind (jobs that are held, members that are stopped) would make the
next ones fail too.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Generic, TypeVar

import pytest

T = TypeVar("T")

HAS_FAILED = pytest.StashKey[bool]()
"""Set on a test as soon as a phase of it has failed."""


class Shared(Generic[T]):
    """Made by `make` for the first test, and again for the one that follows a failure."""

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._make = make
        self._stack = AsyncExitStack()
        self._made: T | None = None

    @asynccontextmanager
    async def lent_to(self, test: pytest.Item) -> AsyncIterator[T]:
        if self._made is None:
            self._made = await self._stack.enter_async_context(self._make())
        yield self._made
        if test.stash.get(HAS_FAILED, False):
            await self.close()

    async def close(self) -> None:
        self._made = None
        await self._stack.aclose()
