"""Calls of the scripts in `lua/`, each behind `common.lua`.

A refusal to write becomes one error, whatever the version of Redis.
"""

import asyncio
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import msgspec
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from shared.queue import keys
from shared.queue.broker import Broker, CannotWrite
from shared.queue.cluster import ELSEWHERE, CannotConnect
from shared.telemetry.histogram import BucketHistogram

_FOLDER = files("shared.queue") / "lua"
_REFUSALS = ("OOM ", "READONLY ", "MISCONF ", "LOADING ", "CLUSTERDOWN ", "MASTERDOWN ")
_REFUSAL_OF_CLASS = {"OutOfMemoryError": "OOM", "ReadOnlyError": "READONLY"}
_BOUNDS_S = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
# The byte with which msgpack begins a string, before its length in four bytes.
_STR32 = b"\xdb"
_encoder = msgspec.msgpack.Encoder()


class Script:
    """The script `lua/NAME.lua`, between `common.lua` with the files that it `needs`, and `finally.lua`.

    It is run by EVALSHA, and loaded when Redis does not know it. Every script is safe to repeat, so
    one whose answer was lost with its connection is run once more. Calls raise CannotWrite, or
    redis-py's errors.
    """

    def __init__(self, broker: Broker, name: str, *, needs: Sequence[str] = ()) -> None:
        self._broker = broker
        parts = [_text(part) for part in ("common", *needs)]
        parts += ["local function main()", _text(name), "end", "local answer = main()"]
        parts += [_text("finally"), "return answer"]
        self._source = "\n".join(parts)
        self._call_s = broker.calls.setdefault(name, BucketHistogram(_BOUNDS_S))
        self._sha = hashlib.sha1(self._source.encode()).hexdigest()

    async def call(self, shard: str, **args: Any) -> Any:
        """Run the script on one shard; `args` become its map `a`. Return its answer."""
        packed = self._packed(args)
        with _refusals_as_errors(), self._timed():
            try:
                return await self._run(shard, packed)
            except CannotConnect:
                # Nothing was sent, and connecting has been tried again already.
                raise
            except RedisConnectionError:
                # Only the answer may be lost. A script that has run is safe to run once more.
                return await self._run(shard, packed)

    async def call_all(self, calls: Mapping[str, Mapping[str, Any]]) -> list[Any]:
        """Run the script on each shard with its own arguments. Return the answers in this order.

        The calls to one server are one round trip.
        """
        packed = {shard: self._packed(args) for shard, args in calls.items()}
        with _refusals_as_errors(), self._timed():
            running = [self._run_part(part, packed) for part in self._broker.together(list(calls))]
            parts = await asyncio.gather(*running)
        answers: dict[str, Any] = {}
        for part in parts:
            answers |= part
        return [answers[shard] for shard in calls]

    async def _run_part(self, shards: Sequence[str], packed: Mapping[str, bytes]) -> dict[str, Any]:
        """Run the script on shards of one server. Return the answers by shard.

        A lost connection is treated as in `call`.
        """
        try:
            return await self._run_at_once(shards, packed)
        except CannotConnect:
            raise
        except RedisConnectionError:
            return await self._run_at_once(shards, packed)

    async def _run_at_once(
        self, shards: Sequence[str], packed: Mapping[str, bytes]
    ) -> dict[str, Any]:
        if len(shards) == 1:
            return {shards[0]: await self._run(shards[0], packed[shards[0]])}
        pipe = self._broker.client(shards[0]).pipeline(transaction=False)
        for shard in shards:
            pipe.execute_command("EVALSHA", self._sha, 1, keys.prefix(shard), packed[shard])
        answers = dict(zip(shards, await pipe.execute(raise_on_error=False), strict=True))
        for shard, answer in answers.items():
            if isinstance(answer, NoScriptError):
                answers[shard] = await self._run(shard, packed[shard])
            elif isinstance(answer, Exception):
                raise answer
        return answers

    async def _run(self, shard: str, packed: bytes) -> Any:
        execute: Any = self._broker.client(shard).execute_command
        prefix = keys.prefix(shard)
        try:
            return await execute("EVALSHA", self._sha, 1, prefix, packed)
        except NoScriptError:
            return await execute("EVAL", self._source, 1, prefix, packed)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Measure the time of the body, also if it fails: calls of a Redis that is away count."""
        begun_s = time.perf_counter()
        try:
            yield
        finally:
            self._call_s.add(time.perf_counter() - begun_s)

    def _packed(self, args: Mapping[str, Any]) -> bytes:
        """Return the arguments of a call, with those that all scripts have."""
        common = {
            "publish": self._broker.publish,
            "has_many_shards": len(self._broker.shards) > 1,
            "usage_days": self._broker.usage_days,
        }
        return _encoder.encode({**common, **args})


def _text(part: str) -> str:
    return (_FOLDER / f"{part}.lua").read_text()


def raw(data: bytes) -> msgspec.Raw:
    """Return bytes as an argument of a script.

    Redis's msgpack knows no bytes, but its strings hold any.
    """
    return msgspec.Raw(_STR32 + len(data).to_bytes(4, "big") + data)


@contextmanager
def _refusals_as_errors() -> Iterator[None]:
    """Raise CannotWrite for a refusal of Redis, with its reason alone.

    The rest of the message is left out: Redis 6.2 wraps an error inside a script in a sentence of
    its own, and redis-py quotes the whole command with its payloads.
    """
    try:
        yield
    except ELSEWHERE as error:
        raise CannotWrite(f"Redis refuses to write: {type(error).__name__}") from None
    except ResponseError as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise CannotWrite(f"Redis refuses to write: {reason}") from None


def _reason(error: ResponseError) -> str | None:
    """Return the word by which Redis refuses to write, None for any other error."""
    for word in _REFUSALS:
        if word in f"{error} ":
            return word.strip()
    # redis-py has classes for some refusals, and leaves the word out of their messages.
    return _REFUSAL_OF_CLASS.get(type(error).__name__)
