"""Running queue.lua: one call, or many in one round trip, with refusals of every Redis version told as one error."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError
from redis.typing import EncodableT

from shared.broker import CannotWrite

_SOURCE = (Path(__file__).parent / "lua" / "queue.lua").read_text()
_REFUSALS = ("OOM ", "READONLY ", "MISCONF ", "LOADING ", "CLUSTERDOWN ", "MASTERDOWN ")

Call = tuple[Sequence[str], Sequence[EncodableT]]
"""Keys and arguments; the first argument is the command."""


class QueueScript:
    """EVALSHA, with the script loaded again when Redis does not know it. Raises CannotWrite, or redis-py's errors."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._script = redis.register_script(_SOURCE)

    async def call(self, keys: Sequence[str], args: Sequence[EncodableT]) -> Any:
        with _refusals_told():
            return await self._script(keys=keys, args=args)

    async def batch(self, calls: Sequence[Call]) -> list[Any]:
        """The replies of all calls, in one round trip."""
        if not calls:
            return []
        pipe = self._redis.pipeline(transaction=False)
        for keys, args in calls:
            await self._script(keys=keys, args=args, client=pipe)
        with _refusals_told():
            return list(await pipe.execute())


@contextmanager
def _refusals_told() -> Iterator[None]:
    """Redis 6.2 wraps an error inside a script in a sentence of its own, and redis-py quotes the whole command with
    its payloads: keep the reason alone."""
    try:
        yield
    except ResponseError as error:
        reason = next((mark.strip() for mark in _REFUSALS if mark in f"{error} "), None)
        reason = reason or {"OutOfMemoryError": "OOM", "ReadOnlyError": "READONLY"}.get(type(error).__name__)
        if reason is None:
            raise
        raise CannotWrite(f"Redis refuses to write: {reason}") from None
