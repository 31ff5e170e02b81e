"""Artifacts on a real Redis.

Bytes that were put are read back by their tenant alone, until they expire, and within quotas.
"""

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from shared.artifacts.store import (
    CHUNK_BYTES,
    IN_REDIS_BYTES,
    Artifact,
    ArtifactRef,
    ArtifactStore,
    BlockingArtifacts,
    Label,
    open_artifacts,
)
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
from shared.queue.broker import Broker
from shared.queue.janitor import Janitor
from shared.settings.settings import Settings, SettingsError

PNG = Label("image/png", "cat.png", "vision")
SMALL = b"few bytes"
LARGE = bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"end"
KIB = 1024


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def store(redis: Redis, directory: Path) -> ArtifactStore:
    return ArtifactStore(Broker(redis), str(directory))


def another(redis: Redis, directory: Path, **options: Any) -> ArtifactStore:
    return ArtifactStore(Broker(redis), str(directory), **options)


async def content(store: ArtifactStore, artifact: Artifact, *part: int) -> bytes:
    return b"".join([piece async for piece in await store.read(artifact, *part)])


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def files_in(directory: Path) -> list[str]:
    """Return the names of all files, finished or not."""
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


async def expire(redis: Redis, artifact: Artifact) -> None:
    await redis.hset(keys.artifact(artifact.id), "expires_ms", 1)  # type: ignore[misc]
    await redis.zadd(keys.EXPIRING, {artifact.id: 1})


async def check_nothing_is_left(redis: Redis, directory: Path) -> None:
    async for name in redis.scan_iter("aios:{artifacts}:*"):
        assert name == b"aios:{artifacts}:in_redis"
    assert int(await redis.get("aios:{artifacts}:in_redis") or 0) == 0
    assert files_in(directory) == []


async def in_pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


SIZES = [1, IN_REDIS_BYTES, IN_REDIS_BYTES + 1, CHUNK_BYTES, CHUNK_BYTES + 1, len(LARGE)]


@pytest.mark.parametrize("size", SIZES)
async def test_what_was_put_is_read(
    redis: Redis, store: ArtifactStore, directory: Path, size: int
) -> None:
    data = LARGE[:size]
    for source in (data, in_pieces(data)):
        artifact = await store.put("ann", source, PNG)
        assert await content(store, artifact) == data

    assert artifact == await store.find("ann", artifact.id)
    assert artifact.num_bytes == size
    assert artifact.digest == sha256(data)
    assert artifact.media_type == "image/png"
    assert artifact.name == "cat.png"
    assert artifact.purpose == "vision"
    assert 86_400 <= artifact.expires_at - artifact.created_at < 86_520

    is_file = size > IN_REDIS_BYTES
    assert artifact.is_file is is_file
    assert files_in(directory) == ([artifact.id] if is_file else [])
    assert await redis.exists(keys.artifact_bytes(artifact.id)) == (not is_file)
    assert await redis.zcard(keys.LOOSE) == 0


@pytest.mark.parametrize("data", [SMALL * 50, LARGE])
async def test_parts_are_read(store: ArtifactStore, data: bytes) -> None:
    artifact = await store.put("ann", data)
    size = len(data)
    for start, stop in ((0, 1), (5, 17), (size - 3, size), (7, size), (0, size), (10, size + 5)):
        assert await content(store, artifact, start, stop) == data[start:stop]


async def test_a_file_and_its_folder_are_for_this_user_alone(
    store: ArtifactStore, directory: Path
) -> None:
    await store.put("ann", LARGE)
    for folder in (directory, directory / "tmp", directory / "files"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_nobody_else_finds_it(store: ArtifactStore) -> None:
    artifact = await store.put("ann", SMALL)
    for tenant, artifact_id in (
        ("bob", artifact.id),
        ("ann", keys.new_artifact_id()),
        ("ann", "../secret"),
        ("ann", ""),
    ):
        with pytest.raises(ArtifactNotFound):
            await store.find(tenant, artifact_id)
        with pytest.raises(ArtifactNotFound):
            await store.delete(tenant, artifact_id)
        with pytest.raises(ArtifactNotFound):
            await store.read_all(tenant, artifact_id, max_bytes=100)

    assert await store.read_all("ann", artifact.id, max_bytes=100) == SMALL
    with pytest.raises(PayloadTooLarge):
        await store.read_all("ann", artifact.id, max_bytes=8)


@pytest.mark.parametrize("data", [SMALL, LARGE])
async def test_the_same_bytes_are_one_artifact_of_each_tenant(
    redis: Redis, store: ArtifactStore, directory: Path, data: bytes
) -> None:
    first = await store.put("ann", data, PNG)
    earlier_ms = first.expires_at * 1000 - 1_000_000
    await redis.hset(keys.artifact(first.id), "expires_ms", earlier_ms)  # type: ignore[misc]
    used = await store.used_bytes("ann")

    again = await store.put("ann", data, Label("image/webp", "dog.webp", "user_data"))
    assert again.id == first.id
    assert again.created_at == first.created_at
    assert again.expires_at >= first.expires_at, "its time begins again"
    assert (await store.find("ann", first.id)).name == "dog.webp"
    assert await store.used_bytes("ann") == used == max(len(data), KIB)

    other = await store.put("bob", data, PNG)
    assert other.id != first.id
    if other.is_file:
        assert len(files_in(directory)) == 2
    else:
        assert files_in(directory) == []

    await store.delete("bob", other.id)
    assert await content(store, again) == data


async def test_the_same_bytes_at_once_are_one_artifact(redis: Redis, directory: Path) -> None:
    stores = [another(redis, directory) for _ in range(4)]
    puts = []
    for store in stores:
        puts.append(store.put("ann", in_pieces(LARGE)))
        puts.append(store.put("ann", in_pieces(LARGE)))
    first, *others = await asyncio.gather(*puts)
    for artifact in others:
        assert artifact.id == first.id
    assert files_in(directory) == [first.id]
    assert await stores[0].used_bytes("ann") == len(LARGE)
    assert await redis.zcard(keys.LOOSE) == 0


@pytest.mark.parametrize("data", [SMALL, LARGE])
async def test_what_is_deleted_is_gone(
    redis: Redis, store: ArtifactStore, directory: Path, data: bytes
) -> None:
    artifact = await store.put("ann", data)
    await store.delete("ann", artifact.id)
    with pytest.raises(ArtifactNotFound):
        await store.find("ann", artifact.id)
    with pytest.raises(ArtifactNotFound):
        await store.read(artifact)
    with pytest.raises(ArtifactNotFound):
        await store.delete("ann", artifact.id)
    assert await store.used_bytes("ann") == 0

    await check_nothing_is_left(redis, directory)


async def test_no_bytes_are_no_artifact(
    redis: Redis, store: ArtifactStore, directory: Path
) -> None:
    with pytest.raises(InvalidRequest):
        await store.put("ann", b"")
    await check_nothing_is_left(redis, directory)


# Limits


async def test_a_quota_is_exact_however_many_come_at_once(redis: Redis, directory: Path) -> None:
    """Thirty artifacts come to two stores at once, and exactly the ten that fit are kept.

    Each has 100 KiB, and bytes of its own.
    """
    store = another(redis, directory, quota_bytes=1000 * KIB)
    other_store = another(redis, directory, quota_bytes=1000 * KIB)
    kept: list[Artifact] = []

    async def put(target: ArtifactStore, data: bytes) -> None:
        try:
            kept.append(await target.put("ann", in_pieces(data)))
        except OverStorageQuota as error:
            assert "Delete some, or wait" in error.message

    async with asyncio.TaskGroup() as group:
        for number in range(0, 30, 2):
            group.create_task(put(store, bytes([number]) * (100 * KIB)))
            group.create_task(put(other_store, bytes([number + 1]) * (100 * KIB)))

    assert len(kept) == 10
    assert await store.used_bytes("ann") == 1000 * KIB
    assert await store.put("bob", SMALL), "a quota is each tenant's own"

    first, *_ = kept
    again = await store.put("ann", await content(store, first))
    assert again.id == first.id, "it is counted once"
    with pytest.raises(OverStorageQuota):
        await other_store.put("ann", SMALL)

    await other_store.delete("ann", first.id)
    await other_store.put("ann", SMALL)
    assert await store.used_bytes("ann") == 901 * KIB, "the smallest counts as 1 KiB"


async def test_a_file_beyond_the_quota_leaves_nothing(redis: Redis, directory: Path) -> None:
    store = another(redis, directory, quota_bytes=CHUNK_BYTES)
    with pytest.raises(OverStorageQuota):
        await store.put("ann", in_pieces(LARGE))
    await check_nothing_is_left(redis, directory)


async def test_one_that_is_too_large_is_refused_as_soon_as_so_much_has_come(
    redis: Redis, directory: Path
) -> None:
    store = another(redis, directory, max_bytes=2 * CHUNK_BYTES)
    num_bytes = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_bytes
        while True:
            num_bytes += CHUNK_BYTES
            yield bytes(CHUNK_BYTES)

    with pytest.raises(PayloadTooLarge):
        await store.put("ann", endless())
    assert num_bytes == 3 * CHUNK_BYTES

    await check_nothing_is_left(redis, directory)


async def test_without_a_place_only_small_ones_are_kept(redis: Redis, directory: Path) -> None:
    store = ArtifactStore(Broker(redis))
    artifact = await store.put("ann", LARGE[:IN_REDIS_BYTES])
    assert await content(store, artifact) == LARGE[:IN_REDIS_BYTES]
    with pytest.raises(PayloadTooLarge, match="--artifact-url"):
        await store.put("ann", LARGE[: IN_REDIS_BYTES + 1])


async def test_when_redis_has_no_room_small_ones_lie_in_files(
    redis: Redis, directory: Path
) -> None:
    store = another(redis, directory, room_bytes=10)
    small = await store.put("ann", SMALL)
    other = await store.put("ann", SMALL[::-1])
    assert not small.is_file
    assert other.is_file
    assert await content(store, other) == SMALL[::-1]
    assert other.digest == sha256(SMALL[::-1])

    with pytest.raises(StorageUnavailable):
        await ArtifactStore(Broker(redis), room_bytes=10).put("ann", b"0123456789")

    await store.delete("ann", small.id)
    assert not (await store.put("ann", b"there is")).is_file


# Keys


async def test_a_key_goes_with_the_same_bytes_alone(redis: Redis, store: ArtifactStore) -> None:
    first = await store.put("ann", SMALL, PNG, key="k")
    assert (await store.put("ann", SMALL, PNG, key="k")).id == first.id
    for data, label in ((b"others", PNG), (LARGE, PNG), (SMALL, replace(PNG, purpose="other"))):
        with pytest.raises(IdempotencyConflict):
            await store.put("ann", data, label, key="k")
    assert (await store.put("bob", b"others", PNG, key="k")).tenant == "bob"
    assert await redis.zcard(keys.LOOSE) == 0


# Time


@pytest.mark.parametrize("data", [SMALL, LARGE])
async def test_what_has_expired_is_not_found_and_is_cleared(
    redis: Redis, store: ArtifactStore, directory: Path, data: bytes
) -> None:
    artifact = await store.put("ann", data)
    lasting = await store.put("bob", SMALL)
    assert await store.clear() == {}

    await expire(redis, artifact)
    with pytest.raises(ArtifactNotFound):
        await store.find("ann", artifact.id)
    assert await store.page("ann", limit=9) == ([], False)

    dry = Janitor(Broker(redis), artifacts=store, dry_run=True)
    assert await dry.artifacts() == {"expired_artifacts": 1}

    janitor = Janitor(Broker(redis), artifacts=store)
    assert await janitor.sweeps["artifacts"]() == {"expired_artifacts": 1}
    assert await janitor.artifacts() == {}
    assert files_in(directory) == []
    assert await store.used_bytes("ann") == 0
    assert await store.find("bob", lasting.id) == lasting


async def test_what_comes_again_after_its_time_is_new(
    redis: Redis, store: ArtifactStore, directory: Path
) -> None:
    old = await store.put("ann", LARGE)
    await expire(redis, old)
    new = await store.put("ann", LARGE)
    assert new.id != old.id
    assert await store.used_bytes("ann") == len(LARGE)
    assert await store.clear() == {"loose_files": 1}
    assert files_in(directory) == [new.id]


async def test_many_are_cleared_by_several_at_once(redis: Redis, directory: Path) -> None:
    stores = [another(redis, directory) for _ in range(3)]
    first, *_ = stores
    for number in range(250):
        await expire(redis, await first.put("ann", f"{number}".encode()))
    for number in range(5):
        await expire(redis, await first.put("ann", LARGE + bytes([number])))

    num_expired = 0
    for cleared in await asyncio.gather(*[store.clear() for store in stores]):
        num_expired += cleared["expired_artifacts"]
    assert num_expired == 255

    for store in stores:
        await store.clear()
    await check_nothing_is_left(redis, directory)


async def test_a_caller_may_want_less_time_but_not_more(redis: Redis, directory: Path) -> None:
    store = another(redis, directory, ttl_s=1000)
    short = await store.put("ann", b"short", Label(lives_s=10))
    long = await store.put("ann", b"long", Label(lives_s=1e6))
    assert short.expires_at - short.created_at == 10
    assert long.expires_at - long.created_at == 1000


# Interrupted


async def test_an_upload_that_breaks_off_leaves_nothing(
    redis: Redis, store: ArtifactStore, directory: Path
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield LARGE
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.put("ann", broken())

    await check_nothing_is_left(redis, directory)


async def test_what_a_dead_front_was_writing_is_removed_in_time(
    redis: Redis, directory: Path
) -> None:
    """The file of an upload is removed when the upload's time is over, and not before."""
    dead = another(redis, directory, upload_s=3600).upload("ann")
    await dead.write(LARGE)
    store = another(redis, directory)
    assert await store.clear() == {}
    assert files_in(directory) == [dead.id]

    await redis.zadd(keys.LOOSE, {dead.id: 1})
    assert await ArtifactStore(Broker(redis)).clear() == {}, (
        "who has no place for files leaves it to others"
    )
    assert await store.clear(dry_run=True) == {"loose_files": 1}
    assert await store.clear() == {"loose_files": 1}

    await check_nothing_is_left(redis, directory)
    with pytest.raises(StorageUnavailable):
        await dead.keep(PNG)
    assert await store.page("ann", limit=9) == ([], False)


async def test_what_dies_between_file_and_record_is_removed(
    redis: Redis, store: ArtifactStore, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished file that is due for removal gets no record any more.

    So no file is removed that has a record.
    """
    record = store.record
    calls: list[Any] = []

    async def die(*args: Any, **options: Any) -> None:
        calls.append((args, options))
        raise ConnectionAbortedError

    async def do_nothing(*_: object) -> None:
        """Take nothing back, since a dead front does not either."""

    monkeypatch.setattr(store, "record", die)
    monkeypatch.setattr(store, "take_back", do_nothing)
    with pytest.raises(ConnectionAbortedError):
        await store.put("ann", LARGE)

    [name] = files_in(directory)
    await redis.zadd(keys.LOOSE, {name: 1})
    [(args, options)] = calls
    with pytest.raises(InvalidRequest, match="took too long"):
        await record(*args, **options)
    assert await store.clear() == {"loose_files": 1}

    await check_nothing_is_left(redis, directory)


async def test_a_file_stays_whose_record_was_written_though_nobody_heard(
    redis: Redis, store: ArtifactStore, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = store.record

    async def lost(*args: Any, **options: Any) -> None:
        await record(*args, **options)
        raise BrokerUnavailable("Redis does not answer.")

    monkeypatch.setattr(store, "record", lost)
    with pytest.raises(BrokerUnavailable):
        await store.put("ann", LARGE)

    [artifact], _ = await store.page("ann", limit=9)
    assert files_in(directory) == [artifact.id]
    assert await content(store, artifact) == LARGE
    assert await redis.zcard(keys.LOOSE) == 0


async def test_a_repeated_script_stores_once(
    redis: Redis, store: ArtifactStore, directory: Path
) -> None:
    """A script that is repeated, since its answer was lost, stores one artifact."""
    async with store.upload("ann") as upload:
        await upload.write(LARGE)
        kept = await upload.keep(PNG)
        again = await store.record(upload, PNG, key="", data=None)

    assert again is not None
    assert again.id == kept.id
    assert files_in(directory) == [kept.id]
    assert await store.used_bytes("ann") == len(LARGE)


async def test_a_place_that_breaks_is_one_error(
    redis: Redis, store: ArtifactStore, directory: Path
) -> None:
    artifact = await store.put("ann", LARGE)
    for path in (directory / "files").iterdir():
        path.unlink()

    with pytest.raises(ArtifactNotFound):
        await store.read(artifact)

    (directory / "tmp").rmdir()
    (directory / "tmp").write_text("no folder")
    with pytest.raises(StorageUnavailable):
        await store.put("ann", LARGE + b"other")


# Lists


async def test_pages_go_through_all_once(store: ArtifactStore) -> None:
    even_ids = []
    odd_ids = []
    # Even and odd take turns, so that a page of one purpose passes over the other.
    for number in range(7):
        data = f"{number}".encode()
        if number % 2 == 0:
            even = await store.put("ann", data, Label(purpose="even"))
            even_ids.append(even.id)
        else:
            odd = await store.put("ann", data, Label(purpose="odd"))
            odd_ids.append(odd.id)
    await store.put("bob", b"others")

    async def listed(limit: int, **options: Any) -> list[str]:
        """Go through all pages, and return the ids in order."""
        ids: list[str] = []
        after = ""
        has_more = True
        while has_more:
            page, has_more = await store.page("ann", limit=limit, after=after, **options)
            assert len(page) <= limit
            for artifact in page:
                ids.append(artifact.id)
                after = artifact.id

        return ids

    latest_first = await listed(100)
    assert sorted(latest_first) == sorted(even_ids + odd_ids)
    for limit in (1, 2, 7):
        assert await listed(limit) == latest_first
        assert await listed(limit, is_oldest_first=True) == latest_first[::-1]

    assert sorted(await listed(2, purpose="odd")) == sorted(odd_ids)
    with pytest.raises(ArtifactNotFound):
        await store.page("bob", limit=1, after=even_ids[0])


# Others


async def test_threads_put_and_read(store: ArtifactStore) -> None:
    beside = BlockingArtifacts(store, asyncio.get_running_loop())
    ref = await asyncio.to_thread(beside.put, "ann", LARGE, PNG)
    data = await asyncio.to_thread(beside.read, "ann", ref.id, max_bytes=len(LARGE))
    assert data == LARGE


async def test_any_place_that_fsspec_knows(redis: Redis) -> None:
    store = ArtifactStore(Broker(redis), "memory://artifacts-of-a-test")
    artifact = await store.put("ann", in_pieces(LARGE))
    assert await content(store, artifact, CHUNK_BYTES - 5) == LARGE[CHUNK_BYTES - 5 :]

    await store.delete("ann", artifact.id)
    with pytest.raises(ArtifactNotFound):
        await store.read(artifact)


def test_a_reference_is_the_same_bytes_for_ever() -> None:
    ref = ArtifactRef("file-0", "image/png", 9)
    packed = b"\x83\xa2id\xa6file-0\xaamedia_type\xa9image/png\xa9num_bytes\x09"
    assert msgspec.msgpack.encode(ref) == packed

    whole = ArtifactRef("file-0", "image/png", 9, "ab", "cat.png")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(whole), type=ArtifactRef) == whole

    # A later version may add fields, which this one ignores.
    later = msgspec.msgpack.encode(
        {"id": "file-0", "media_type": "image/png", "num_bytes": 9, "unknown": 1}
    )
    assert msgspec.msgpack.decode(later, type=ArtifactRef) == ref


def test_ids_become_names_of_files_only_if_they_are_ours() -> None:
    assert keys.is_artifact_id(keys.new_artifact_id())
    for rest in ("", "0" * 31, "0" * 33, "g" * 32, "../" * 10 + "00"):
        assert not keys.is_artifact_id(f"file-{rest}")
    assert not keys.is_artifact_id("0" * 32)


@pytest.mark.parametrize("url", ["/proc/nothing", "nowhere://bucket/folder"])
def test_a_place_that_is_none_is_refused_at_the_start(redis: Redis, url: str) -> None:
    with pytest.raises(SettingsError, match="artifact_url"):
        open_artifacts(Settings(artifact_url=url), Broker(redis))


def test_a_directory_is_made_where_it_is_missing(redis: Redis, directory: Path) -> None:
    open_artifacts(Settings(artifact_url=f"file://{directory}"), Broker(redis))
    assert os.access(directory / "files", os.W_OK)
