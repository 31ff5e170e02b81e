"""Running the scripts in `lua/`: each behind `common.lua`, with refusals of every Redis version told as one error."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from shared import keys
from shared.broker import Broker, CannotWrite
from shared.cluster import ELSEWHERE, CannotConnect

_FOLDER = Path(__file__).parent / "lua"
_REFUSALS = ("OOM ", "READONLY ", "MISCONF ", "LOADING ", "CLUSTERDOWN ", "MASTERDOWN ")
_STR32 = b"\xdb"
_encoder = msgspec.msgpack.Encoder()


class Script:
    """EVALSHA of `lua/NAME.lua` on one shard, loaded when Redis does not know it. Raises CannotWrite, or redis-py's
    errors.

    Every script is safe to repeat, so one whose answer was lost with its connection is run once more.
    """

    def __init__(self, broker: Broker, name: str) -> None:
        self._broker = broker
        self._source = "\n".join((_FOLDER / f"{part}.lua").read_text() for part in ("common", name))
        self._sha = hashlib.sha1(self._source.encode()).hexdigest()

    async def call(self, shard: str, **args: Any) -> Any:
        """`args` become the script's map `a`."""
        packed = _encoder.encode({"publish": self._broker.publish, **args})
        with _refusals_told():
            try:
                return await self._run(shard, packed)
            except CannotConnect:
                raise
            except RedisConnectionError:
                return await self._run(shard, packed)

    async def _run(self, shard: str, packed: bytes) -> Any:
        client = self._broker.client(shard)
        try:
            return await client.execute_command("EVALSHA", self._sha, 1, keys.prefix(shard), packed)  # type: ignore[no-untyped-call]
        except NoScriptError:
            return await client.execute_command("EVAL", self._source, 1, keys.prefix(shard), packed)  # type: ignore[no-untyped-call]


def raw(data: bytes) -> msgspec.Raw:
    """Bytes as an argument of a script: Redis's msgpack knows no bytes, but its strings hold any."""
    return msgspec.Raw(_STR32 + len(data).to_bytes(4, "big") + data)


@contextmanager
def _refusals_told() -> Iterator[None]:
    """Redis 6.2 wraps an error inside a script in a sentence of its own, and redis-py quotes the whole command with
    its payloads: keep the reason alone."""
    try:
        yield
    except ELSEWHERE as error:
        raise CannotWrite(f"Redis refuses to write: {type(error).__name__}") from None
    except ResponseError as error:
        reason = next((mark.strip() for mark in _REFUSALS if mark in f"{error} "), None)
        reason = reason or {"OutOfMemoryError": "OOM", "ReadOnlyError": "READONLY"}.get(type(error).__name__)
        if reason is None:
            raise
        raise CannotWrite(f"Redis refuses to write: {reason}") from None
