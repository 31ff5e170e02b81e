"""Artifacts: the bytes that tasks take and make (images, audio, files), apart from jobs and logs.

A tenant puts bytes, and gets an id. Redis holds the record of an artifact, and its bytes if they
are few. The bytes of larger ones lie in a file (`shared/artifacts/files.py`). A record is written
when all bytes are there, so an artifact that is found can be read. A file without a record is
listed as *loose*, from before it is created until it has been removed. So the file of a writer that
died is found and removed.

Times are those of Redis.
"""

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar, cast

import msgspec
from redis.asyncio import Redis

from shared.artifacts.files import ArtifactFiles, check_artifact_url
from shared.errors import (
    ArtifactNotFound,
    BrokerUnavailable,
    IdempotencyConflict,
    InvalidRequest,
    OverStorageQuota,
    PayloadTooLarge,
    StorageUnavailable,
)
from shared.queue import keys
from shared.queue.broker import UNAVAILABLE, Broker
from shared.queue.script import Script, raw
from shared.settings.settings import Settings
from shared.tasks.results import ArtifactRef
from shared.telemetry.logging_setup import fields

IN_REDIS_BYTES = 256 * 1024
"""The most bytes that lie in Redis beside their record."""
CHUNK_BYTES = 1 << 20
"""The bytes that are written to or read from a file at once."""
DEFAULT_MEDIA_TYPE = "application/octet-stream"

_ROOM_BYTES = 64 << 20
"""The most bytes of all artifacts in Redis. When it is reached, small ones lie in files too."""
_LEAST_CHARGE = 1024
"""The bytes that the smallest artifact counts for, since its record takes room as well."""
_UPLOAD_S = 3600.0
"""The time to write a file. One that is not finished by then counts as left by a dead writer."""
_PAGE = 100
_MOST_SWEPT = 2000

logger = logging.getLogger("aios.artifacts")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Label:
    """The description of an artifact by its writer.

    The artifact lives for `lives_s` if that is less than the store's own time. A label that
    `is_new` is for new bytes alone: where the tenant has the same bytes already, theirs stays.
    """

    media_type: str = DEFAULT_MEDIA_TYPE
    name: str = ""
    purpose: str = ""
    lives_s: float | None = None
    is_new: bool = False


@dataclass(frozen=True)
class Artifact:
    """The record of an artifact. Times are in seconds since 1970."""

    id: str
    tenant: str
    digest: str
    media_type: str
    num_bytes: int
    name: str
    purpose: str
    created_at: int
    expires_at: int
    is_file: bool

    @property
    def ref(self) -> ArtifactRef:
        return ArtifactRef(
            id=self.id,
            media_type=self.media_type,
            num_bytes=self.num_bytes,
            digest=self.digest,
            name=self.name,
        )


class ArtifactStore:
    """The artifacts of all tenants. Without `url` there are no files: large artifacts are refused.

    An artifact lives for `ttl_s`, and an idempotency key for `key_ttl_s`. `quota_bytes` is the most
    for each tenant (0: no limit), `max_bytes` for one artifact, and `room_bytes` for all artifacts
    in Redis. Redis has `timeout_s` to answer (None: no limit), and a writer `upload_s` for a file.
    With `removes_unknown` all files at `url` are this fleet's, and those without a record may go.
    """

    def __init__(
        self,
        broker: Broker,
        url: str | None = None,
        *,
        ttl_s: float = 86_400.0,
        quota_bytes: int = 0,
        max_bytes: int = 1 << 30,
        key_ttl_s: float = 86_400.0,
        timeout_s: float | None = None,
        room_bytes: int = _ROOM_BYTES,
        upload_s: float = _UPLOAD_S,
        removes_unknown: bool = False,
    ) -> None:
        self.files = None if url is None else ArtifactFiles(url)
        self.max_bytes = max_bytes
        self._redis: Redis = broker.client(keys.ARTIFACTS)
        self._store = Script(broker, "store", needs=("artifacts",))
        self._discard = Script(broker, "discard", needs=("artifacts",))
        self._prolong = Script(broker, "prolong", needs=("artifacts",))
        self._list_unknown = Script(broker, "list_unknown", needs=("artifacts",))
        self._ttl_s = ttl_s
        self._quota_bytes = quota_bytes
        self._key_ttl_ms = int(key_ttl_s * 1000)
        self._timeout_s = timeout_s
        self._room_bytes = room_bytes
        self._upload_ms = int(upload_s * 1000)
        self._removes_unknown = removes_unknown

    def upload(self, tenant: str) -> "Upload":
        """Return an upload, which takes bytes as they come: `async with store.upload(...)`."""
        return Upload(self, tenant)

    async def put(
        self,
        tenant: str,
        data: bytes | AsyncIterable[bytes],
        label: Label = Label(),
        *,
        key: str = "",
    ) -> Artifact:
        """Keep these bytes. Return their artifact.

        The same bytes of one tenant are one artifact, whose time begins again. `key` is an
        idempotency key. Raise InvalidRequest for no bytes, PayloadTooLarge, OverStorageQuota,
        IdempotencyConflict, StorageUnavailable, BrokerUnavailable and redis-py's errors.
        """
        pieces = _pieces(data) if isinstance(data, bytes) else data
        async with self.upload(tenant) as upload:
            async for piece in pieces:
                await upload.write(piece)
            return await upload.keep(label, key=key)

    async def find(self, tenant: str, artifact_id: str) -> Artifact:
        """Return a tenant's artifact.

        Raise ArtifactNotFound for one that is not there, has expired, or is another tenant's.
        """
        if not keys.is_artifact_id(artifact_id):
            raise _not_found(artifact_id)
        [artifact] = await self._find_all([artifact_id])
        # To a tenant the artifact of another does not exist.
        if artifact is None or artifact.tenant != tenant:
            raise _not_found(artifact_id)
        return artifact

    async def read(
        self,
        artifact: Artifact,
        start: int = 0,
        stop: int | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """Return the bytes from `start` up to `stop` (left out), in pieces.

        Raise ArtifactNotFound or StorageUnavailable before the first piece.
        """
        end = artifact.num_bytes
        if stop is not None:
            end = min(stop, end)
        if start >= end:
            return _pieces(b"")

        if artifact.is_file:
            if self.files is None:
                raise _not_found(artifact.id)
            file = await self.aside(self.files.open, artifact.id, start)
            if file is None:
                raise _not_found(artifact.id)
            return self._pieces_of_file(file, end - start)

        name = keys.artifact_bytes(artifact.id)
        data = await self._reply(self._redis.getrange(name, start, end - 1))
        if len(data) < end - start:
            raise _not_found(artifact.id)
        return _pieces(data)

    async def read_all(self, tenant: str, artifact_id: str, *, max_bytes: int) -> bytes:
        """Return all bytes. Raise ArtifactNotFound, PayloadTooLarge or StorageUnavailable."""
        artifact = await self.find(tenant, artifact_id)
        if artifact.num_bytes > max_bytes:
            raise PayloadTooLarge(
                f"{artifact_id}: expected at most {max_bytes} bytes; this has {artifact.num_bytes}."
            )
        pieces = [piece async for piece in await self.read(artifact)]
        return b"".join(pieces)

    async def page(
        self,
        tenant: str,
        *,
        limit: int,
        after: str = "",
        purpose: str = "",
        is_oldest_first: bool = False,
    ) -> tuple[list[Artifact], bool]:
        """Return `limit` of the tenant's artifacts, and whether more follow.

        They are in the order in which they came, the newest first unless `is_oldest_first`, and
        begin behind the artifact `after`. With a `purpose` only those that have it are returned.
        Raise ArtifactNotFound if `after` is not there.
        """
        owned = keys.artifacts_of(tenant)
        start = 0
        if after:
            rank_of = self._redis.zrank if is_oldest_first else self._redis.zrevrank
            rank = await self._reply(rank_of(owned, after))
            if rank is None:
                raise _not_found(after)
            start = rank + 1

        artifacts: list[Artifact] = []
        # One more than the limit tells whether more follow.
        while len(artifacts) <= limit:
            stop = start + _PAGE - 1
            ids = await self._ids(owned, start, stop, is_oldest_first=is_oldest_first)
            if not ids:
                break
            start += len(ids)
            for artifact in await self._find_all(ids):
                if artifact is not None and purpose in ("", artifact.purpose):
                    artifacts.append(artifact)
        return artifacts[:limit], len(artifacts) > limit

    async def delete(self, tenant: str, artifact_id: str) -> None:
        """Delete a tenant's artifact. Raise ArtifactNotFound as `find` does."""
        artifact = await self.find(tenant, artifact_id)
        [outcome] = await self._discard_all([artifact.id], tenant)
        if outcome == _WITH_FILE and self.files is not None:
            # A file that cannot be removed now stays loose: the janitor will try again.
            with suppress(StorageUnavailable):
                await self._remove_file(artifact.id)

    async def prolong(self, tenant: str, artifact_id: str, lives_s: float) -> Artifact:
        """Let a tenant's artifact live for at least `lives_s` from now, and return it.

        Raise ArtifactNotFound as `find` does.
        """
        artifact = await self.find(tenant, artifact_id)
        lives_ms = int(lives_s * 1000)
        call = self._prolong.call(keys.ARTIFACTS, id=artifact_id, lives_ms=lives_ms)
        if not await self._reply(call):
            raise _not_found(artifact_id)
        return artifact

    async def used_bytes(self, tenant: str) -> int:
        """Return how much of its quota the tenant has taken."""
        reading = cast(Awaitable[bytes | None], self._redis.hget(keys.USED, tenant))
        return int(await self._reply(reading) or 0)

    async def clear(self, *, dry_run: bool = False) -> Counter[str]:
        """Remove expired artifacts, and files that were never finished or were left behind.

        Return how many of each there were, without those of which there were none. Safe at any
        time, and in several processes at once. A process without a place for files leaves loose
        files to one that has it.
        """
        now_ms = await self._now_ms()
        num_loose = 0
        if dry_run:
            if self.files is not None:
                num_loose = await self._redis.zcount(keys.LOOSE, "-inf", now_ms)
            num_expired = await self._redis.zcount(keys.EXPIRING, "-inf", now_ms)
        else:
            # Loose files come first: an artifact that expires leaves its file loose, and that file
            # is removed with it and must not be counted twice.
            if self.files is not None:
                num_loose = await self._clear_loose(now_ms)
            num_expired = await self._clear_expired(now_ms)
        # `+` leaves out counts of 0.
        return +Counter({"loose_files": num_loose, "expired_artifacts": num_expired})

    async def list_unknown(self, *, dry_run: bool = False) -> Counter[str]:
        """List files that Redis does not know as loose, as after it has lost its data.

        Return how many there were, none unless the store `removes_unknown`. `clear` removes them
        when the time of an upload has passed, so that a Redis that is restored until then finds
        them. Raise StorageUnavailable, and redis-py's errors.
        """
        if self.files is None or not self._removes_unknown:
            return Counter()
        ids = await self.aside(self.files.ids)
        num_unknown = 0
        for start in range(0, len(ids), _PAGE):
            num_unknown += await self._list_unknown.call(
                keys.ARTIFACTS,
                files=ids[start : start + _PAGE],
                grace_ms=self._upload_ms,
                dry_run=dry_run,
            )
        return +Counter({"unknown_files": num_unknown})

    async def _clear_expired(self, now_ms: int) -> int:
        num_gone = 0
        while num_gone < _MOST_SWEPT:
            ids = await self._due(keys.EXPIRING, now_ms)
            if not ids:
                break
            outcomes = await self._discard_all(ids, "")
            num_discarded = len(ids) - outcomes.count(_NOT_THERE)
            num_gone += num_discarded
            if self.files is not None:
                with_file = []
                for artifact_id, outcome in zip(ids, outcomes, strict=True):
                    if outcome == _WITH_FILE:
                        with_file.append(artifact_id)
                await self._remove_files(with_file)
            # Another process clears the same artifacts, and is ahead.
            if num_discarded == 0:
                break
        return num_gone

    async def _clear_loose(self, now_ms: int) -> int:
        num_gone = 0
        while num_gone < _MOST_SWEPT:
            ids = await self._due(keys.LOOSE, now_ms)
            num_removed = await self._remove_files(ids)
            num_gone += num_removed
            if num_removed < _PAGE:
                break
        return num_gone

    async def _remove_files(self, ids: Sequence[str]) -> int:
        """Remove files. Return how many could be removed."""
        removals = [self._remove_file(artifact_id) for artifact_id in ids]
        errors = await asyncio.gather(*removals, return_exceptions=True)
        for error in errors:
            if isinstance(error, BaseException) and not isinstance(error, StorageUnavailable):
                raise error
        # A file that could be removed has no error.
        return errors.count(None)

    async def _due(self, name: str, now_ms: int) -> list[str]:
        """Return a page of the ids in the sorted set `name` that are due by `now_ms`."""
        members = await self._redis.zrangebyscore(name, "-inf", now_ms, start=0, num=_PAGE)
        return [member.decode() for member in members]

    # For uploads.

    async def announce(self, artifact_id: str) -> None:
        """List a file as loose before it is created."""
        now_ms = await self._now_ms()
        until_ms = now_ms + self._upload_ms
        await self._reply(self._redis.zadd(keys.LOOSE, {artifact_id: until_ms}))

    async def take_back(self, artifact_id: str, file: BinaryIO | None) -> None:
        """Remove a file that has become no artifact. If that fails now, the janitor does it."""
        with suppress(StorageUnavailable, BrokerUnavailable, *UNAVAILABLE):
            if file is not None:
                await self.aside(file.close)
            # A file that has a record after all is no longer loose, and stays: only the answer of
            # `store.lua` was lost. A file that is due (0) gets no record any more.
            pipe = self._redis.pipeline(transaction=True)
            pipe.zadd(keys.LOOSE, {artifact_id: 0}, xx=True)
            pipe.zscore(keys.LOOSE, artifact_id)
            _, due_ms = await self._reply(pipe.execute())
            if due_ms is not None:
                await self._remove_file(artifact_id)

    async def record(
        self,
        upload: "Upload",
        label: Label,
        *,
        key: str,
        data: bytes | None,
    ) -> Artifact | None:
        """Write the record of an upload, with its bytes or, if `data` is None, with its file.

        Return None if Redis has no room for the bytes: they must lie in a file. Raise
        IdempotencyConflict, OverStorageQuota, or InvalidRequest if the upload took too long.
        """
        lives_s = self._ttl_s
        if label.lives_s is not None:
            lives_s = min(lives_s, label.lives_s)
        contents = [upload.digest, label.media_type, label.name, label.purpose]
        charge = max(upload.num_bytes, _LEAST_CHARGE)
        call = self._store.call(
            keys.ARTIFACTS,
            id=upload.id,
            tenant=upload.tenant,
            digest=upload.digest,
            media_type=label.media_type,
            name=label.name,
            purpose=label.purpose,
            is_label_new=label.is_new,
            num_bytes=upload.num_bytes,
            charge=charge,
            quota=self._quota_bytes,
            is_file=data is None,
            bytes=raw(data or b""),
            room=self._room_bytes,
            ttl_ms=int(lives_s * 1000),
            key=_hashed(key.encode()) if key else "",
            contents=_hashed(msgspec.json.encode(contents)),
            key_ttl_ms=self._key_ttl_ms,
        )
        answer = await self._reply(call)
        match answer[0]:
            case b"stored":
                return Artifact(
                    id=answer[1].decode(),
                    tenant=upload.tenant,
                    digest=upload.digest,
                    media_type=label.media_type,
                    num_bytes=upload.num_bytes,
                    name=label.name,
                    purpose=label.purpose,
                    created_at=answer[2] // 1000,
                    expires_at=answer[3] // 1000,
                    is_file=answer[4] == 1,
                )
            case b"conflict":
                words = "This key came before with another artifact."
                raise IdempotencyConflict(words, field="Idempotency-Key")
            case b"quota":
                raise OverStorageQuota(
                    f"Artifacts take {answer[1]} of the {self._quota_bytes} bytes that one tenant"
                    f" may keep, and this takes {charge}. Delete some, or wait until some expire."
                )
            case b"room":
                return None
            case _:
                raise InvalidRequest("The upload took too long, and was given up.")

    async def aside(self, call: Callable[..., _Result], *args: Any) -> _Result:
        """Run a blocking call in a thread. Return its result.

        This is the one place that knows errors of files. Raise StorageUnavailable.
        """
        try:
            return await asyncio.to_thread(call, *args)
        except Exception as error:
            # Every kind of storage behind fsspec has errors of its own.
            logger.warning("artifact storage failed", extra=fields(error=repr(error)))
            words = "The storage of artifacts does not answer, or is full."
            raise StorageUnavailable(words, retry_after_s=5) from error

    # Redis and files.

    async def _reply(self, call: Awaitable[_Result]) -> _Result:
        """Return the reply of Redis to a call. Raise BrokerUnavailable if it takes too long."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await call
        except TimeoutError as error:
            raise BrokerUnavailable("Redis does not answer.", retry_after_s=1) from error

    async def _now_ms(self) -> int:
        seconds, microseconds = await self._reply(self._redis.time())
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def _ids(self, owned: str, start: int, stop: int, *, is_oldest_first: bool) -> list[str]:
        reading = self._redis.zrange(owned, start, stop, desc=not is_oldest_first)
        members = await self._reply(reading)
        return [member.decode() for member in members]

    async def _find_all(self, ids: Sequence[str]) -> list[Artifact | None]:
        """Return the artifacts with these ids, None for each that is not there any more."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.time()
        for artifact_id in ids:
            pipe.hgetall(keys.artifact(artifact_id))
        (seconds, microseconds), *records = await self._reply(pipe.execute())
        now_ms = int(seconds) * 1000 + int(microseconds) // 1000
        artifacts = []
        for artifact_id, record in zip(ids, records, strict=True):
            artifacts.append(_artifact(artifact_id, record, now_ms))
        return artifacts

    async def _discard_all(self, ids: Sequence[str], tenant: str) -> list[int]:
        """Discard artifacts. Return the answer of `discard.lua` for each."""
        call = self._discard.call(keys.ARTIFACTS, artifacts=list(ids), tenant=tenant)
        outcomes: list[int] = await self._reply(call)
        return outcomes

    async def _remove_file(self, artifact_id: str) -> None:
        assert self.files is not None
        await self.aside(self.files.remove, artifact_id)
        await self._reply(self._redis.zrem(keys.LOOSE, artifact_id))

    async def _pieces_of_file(self, file: BinaryIO, num_bytes: int) -> AsyncGenerator[bytes, None]:
        try:
            while num_bytes > 0:
                piece = await self.aside(file.read, min(CHUNK_BYTES, num_bytes))
                if not piece:
                    raise StorageUnavailable("The file of the artifact has become shorter.")
                num_bytes -= len(piece)
                yield piece
        finally:
            await self.aside(file.close)


_NOT_THERE = 0
_WITH_FILE = 2
"""Answers of `discard.lua` for an artifact."""


class Upload:
    """The bytes of one artifact as they come, about a chunk of them in memory.

    Few bytes stay in memory until they are kept. More go to a file, which nobody finds before it
    has a record. A file that is not kept is removed at the end of the context.
    """

    def __init__(self, store: ArtifactStore, tenant: str) -> None:
        self.id = keys.new_artifact_id()
        self.tenant = tenant
        self.num_bytes = 0
        self._store = store
        self._sha = hashlib.sha256()
        self._buffer = bytearray()
        self._file: BinaryIO | None = None
        self._is_loose = False

    @property
    def digest(self) -> str:
        return self._sha.hexdigest()

    @property
    def _max_bytes(self) -> int:
        max_bytes = self._store.max_bytes
        if self._store.files is None:
            max_bytes = min(max_bytes, IN_REDIS_BYTES)
        return max_bytes

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_loose:
            await self._store.take_back(self.id, self._file)

    async def write(self, data: bytes) -> None:
        """Add bytes. Raise PayloadTooLarge as soon as there are too many, or StorageUnavailable."""
        self.num_bytes += len(data)
        if self.num_bytes > self._max_bytes:
            raise PayloadTooLarge(self._too_large())
        self._buffer += data
        if len(self._buffer) >= CHUNK_BYTES:
            await self._append(self._take_buffer())

    async def keep(self, label: Label, *, key: str = "") -> Artifact:
        """Make an artifact of the bytes that came. Raise as `ArtifactStore.put` does."""
        if self.num_bytes == 0:
            raise InvalidRequest("file: expected at least one byte.", field="file")
        data = self._take_buffer()

        if self._file is None and len(data) <= IN_REDIS_BYTES:
            self._sha.update(data)
            kept = await self._store.record(self, label, key=key, data=data)
            if kept is not None:
                return kept
            if self._store.files is None:
                raise StorageUnavailable(
                    "There is no room for artifacts in Redis, and no other storage for them: the"
                    " operator of this fleet can name one by --artifact-url.",
                    retry_after_s=60,
                )
            # Redis has no room: the bytes go to a file, and are hashed once more on their way.
            self._sha = hashlib.sha256()

        await self._append(data)
        await self._finish()
        kept = await self._store.record(self, label, key=key, data=None)
        assert kept is not None
        # Where the tenant has the same bytes already, the file of this upload is not needed.
        self._is_loose = kept.id != self.id
        return kept

    def _take_buffer(self) -> bytes:
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    async def _append(self, data: bytes) -> None:
        if self._file is None:
            files = self._store.files
            assert files is not None
            # The file is listed before it is created, so that it is found if this writer dies now.
            await self._store.announce(self.id)
            self._is_loose = True
            self._file = await self._store.aside(files.create, self.id)
        await self._store.aside(self._hash_and_write, data)

    def _hash_and_write(self, data: bytes) -> None:
        assert self._file is not None
        self._sha.update(data)
        self._file.write(data)

    async def _finish(self) -> None:
        files = self._store.files
        assert files is not None and self._file is not None
        await self._store.aside(files.finish, self.id, self._file)

    def _too_large(self) -> str:
        if self._max_bytes == self._store.max_bytes:
            return f"Expected at most {self._max_bytes} bytes; this is larger."
        return (
            f"Expected at most {self._max_bytes} bytes; this is larger. The operator of this fleet"
            " can name a place for more by --artifact-url."
        )


class BlockingArtifacts:
    """The store for threads beside the event loop that its Redis client belongs to."""

    def __init__(self, store: ArtifactStore, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._loop = loop

    def put(self, tenant: str, data: bytes, label: Label) -> ArtifactRef:
        """Keep these bytes. Raise as `ArtifactStore.put` does."""
        putting = self._store.put(tenant, data, label)
        return asyncio.run_coroutine_threadsafe(putting, self._loop).result().ref

    def read(self, tenant: str, artifact_id: str, *, max_bytes: int) -> bytes:
        """Return all bytes. Raise as `ArtifactStore.read_all` does."""
        reading = self._store.read_all(tenant, artifact_id, max_bytes=max_bytes)
        return asyncio.run_coroutine_threadsafe(reading, self._loop).result()


def open_artifacts(
    settings: Settings,
    broker: Broker,
    *,
    timeout_s: float | None = None,
) -> ArtifactStore:
    """Return the store that the settings describe. Raise SettingsError for a bad place."""
    check_artifact_url(settings)
    return ArtifactStore(
        broker,
        settings.artifact_url,
        ttl_s=settings.artifact_ttl_s,
        quota_bytes=settings.artifact_quota_bytes,
        max_bytes=settings.max_upload_bytes,
        key_ttl_s=settings.idempotency_ttl_s,
        timeout_s=timeout_s,
        removes_unknown=settings.remove_unknown_files,
    )


def _artifact(artifact_id: str, record: dict[bytes, bytes], now_ms: int) -> Artifact | None:
    if not record or int(record[b"expires_ms"]) <= now_ms:
        return None
    text = {name.decode(): value.decode() for name, value in record.items()}
    return Artifact(
        id=artifact_id,
        tenant=text["tenant"],
        digest=text["digest"],
        media_type=text["media_type"],
        num_bytes=int(text["num_bytes"]),
        name=text["name"],
        purpose=text["purpose"],
        created_at=int(text["created_ms"]) // 1000,
        expires_at=int(text["expires_ms"]) // 1000,
        is_file=text["is_file"] == "1",
    )


async def _pieces(data: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


def _hashed(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _not_found(artifact_id: str) -> ArtifactNotFound:
    shown = artifact_id[:64]
    return ArtifactNotFound(f"id: artifact {shown!r} does not exist, or has expired.", field="id")
