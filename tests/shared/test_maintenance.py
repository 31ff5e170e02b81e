"""The sweeps over files, batches and popularity, and what all sweeps have in common.

A dry run changes nothing and finds what the real run repairs; and each key expires by itself, or is
one that some sweep looks after.
"""

import re
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from shared.access import Rate
from shared.artifacts.store import IN_REDIS_BYTES, ArtifactStore, Label
from shared.fleet.popularity import FORGOTTEN_S, Popularity
from shared.fleet.presence import Presence
from shared.messages import Cancelled, Generate, Sampling, Started, WorkerInfo
from shared.queue import keys
from shared.queue.batch_sweep import UNATTENDED_S, BatchSweep
from shared.queue.batches import BatchClaim, Batches, BatchSpec
from shared.queue.broker import Broker
from shared.queue.evaluation_runs import EvaluationRuns, RunSpec
from shared.queue.janitor import Janitor
from shared.queue.rate_limiter import RateLimiter
from shared.queue.repeats import Repeats
from shared.queue.submission import Key
from shared.queue.webhooks import EVENT_TYPES, WebhookDeliveries, WebhookEndpoints
from tests.fixtures.desk import DONE, Desk
from tests.fixtures.dumps import files_in, snapshot
from tests.fixtures.polling import ALL_DAY_S

LARGE = bytes(IN_REDIS_BYTES + 1)
SPEC = BatchSpec("/v1/completions", "file-0", "24h")


def store_in(redis: Redis, directory: Path, **options: Any) -> ArtifactStore:
    options = {"removes_unknown": True, **options}
    return ArtifactStore(Broker(redis), str(directory), **options)


# Files without a record


async def test_files_that_redis_has_lost_are_removed_an_hour_after_they_were_found(
    redis: Redis, tmp_path: Path
) -> None:
    store = store_in(redis, tmp_path)
    lost = await store.put("ann", LARGE)
    upload = store.upload("ann")
    await upload.write(LARGE * 8)
    await redis.flushall()
    kept = await store.put("ann", LARGE + b"kept")
    (tmp_path / "files" / "README").write_text("not ours")
    before = await snapshot(redis), files_in(tmp_path)

    assert await store.list_unknown(dry_run=True) == {"unknown_files": 2}
    assert (await snapshot(redis), files_in(tmp_path)) == before
    assert await store.list_unknown() == {"unknown_files": 2}
    assert await store.list_unknown() == {}, "they are known now"
    assert await store.clear() == {}, "their hour is not over"

    for artifact_id in (lost.id, upload.id):
        await redis.zadd(keys.LOOSE, {artifact_id: 1}, xx=True)
    assert await store.clear() == {"loose_files": 2}
    assert files_in(tmp_path) == sorted([f"files/{kept.id}", "files/README"])


async def test_files_that_are_in_use_are_never_taken_for_unknown(
    redis: Redis, tmp_path: Path
) -> None:
    """Neither those with a record, nor those that are being written or are to be removed."""
    store = store_in(redis, tmp_path)
    await store.put("ann", LARGE)
    writing = store.upload("ann")
    await writing.write(LARGE * 8)
    finished = store.upload("ann")
    await finished.write(LARGE * 9)
    assert await store.list_unknown() == {}
    await writing.keep(Label())
    await finished.keep(Label())
    assert await store.list_unknown() == {}
    assert await redis.zcard(keys.LOOSE) == 0


async def test_a_redis_that_comes_back_in_the_hour_keeps_its_files(
    redis: Redis, tmp_path: Path
) -> None:
    """Its data are put back as from a copy; the list of loose files with it."""
    store = store_in(redis, tmp_path)
    artifact = await store.put("ann", LARGE)
    names = [name async for name in redis.scan_iter()]
    copies = {name: await redis.dump(name) for name in names}
    await redis.flushall()
    assert await store.list_unknown() == {"unknown_files": 1}

    await redis.flushall()
    for name, copy in copies.items():
        await redis.restore(name, 0, copy)
    assert await store.clear() == {}
    assert await store.read_all("ann", artifact.id, max_bytes=len(LARGE)) == LARGE


async def test_files_of_others_stay_unless_the_place_is_this_fleets_alone(
    redis: Redis, tmp_path: Path
) -> None:
    store = store_in(redis, tmp_path, removes_unknown=False)
    await store.put("ann", LARGE)
    await redis.flushall()
    assert await store.list_unknown() == {}
    assert await Janitor(Broker(redis), artifacts=store).files() == {}


async def test_files_of_any_place_that_fsspec_knows_are_listed(redis: Redis) -> None:
    store = ArtifactStore(Broker(redis), "memory://maintenance-of-a-test", removes_unknown=True)
    assert await store.list_unknown() == {}, "nothing was ever written there"
    await store.put("ann", LARGE)
    await redis.flushall()
    assert await store.list_unknown() == {"unknown_files": 1}


# Batches


@pytest.fixture
def batches(redis: Redis) -> Batches:
    return Batches(Broker(redis), lease_s=ALL_DAY_S)


async def let_window_end(redis: Redis, batch_id: str) -> None:
    await redis.hset(keys.batch(batch_id), "expires_ms", "1")  # type: ignore[misc]


async def pass_time(redis: Redis, seconds: float) -> None:
    """Move what is noted of unattended batches into the past."""
    notes = await redis.hgetall(keys.UNATTENDED_BATCHES)  # type: ignore[misc]
    for batch_id, note in notes.items():
        epoch, since_ms = note.split()
        earlier = f"{int(epoch)} {int(since_ms) - int(1000 * seconds)}"
        await redis.hset(keys.UNATTENDED_BATCHES, batch_id, earlier)  # type: ignore[misc]


async def test_a_batch_that_nobody_advances_expires_after_its_window(
    redis: Redis, batches: Batches
) -> None:
    """It gives back its place among the tenant's open batches, and says why it has no files."""
    made = await batches.create("ann", SPEC, window_s=60)
    young = await batches.create("ann", SPEC, window_s=60)
    sweep = BatchSweep(Broker(redis))
    assert await sweep.run() == {}
    await let_window_end(redis, made.id)
    assert await sweep.run() == {}, "who advances batches comes first"
    await pass_time(redis, UNATTENDED_S - 60)
    assert await sweep.run() == {}
    await pass_time(redis, 61)

    before = await snapshot(redis)
    dry = BatchSweep(Broker(redis), dry_run=True)
    assert await dry.run() == {"unattended_batches": 1}
    assert await snapshot(redis) == before
    assert await sweep.run() == {"unattended_batches": 1}
    assert await sweep.run() == {}

    ended = await batches.find("ann", made.id)
    assert ended.status == "expired"
    assert [error.code for error in ended.errors] == ["batch_not_advanced"]
    assert (await batches.find("ann", young.id)).status == "validating"
    assert await batches.count_open() == 1
    assert await redis.hlen(keys.UNATTENDED_BATCHES) == 0  # type: ignore[misc]
    assert 0 < await redis.pttl(keys.batch(made.id)) <= 7 * 86_400_000


async def test_a_claim_begins_the_time_of_a_batch_again(redis: Redis, batches: Batches) -> None:
    """A batch in somebody's hands is left alone, and for another hour after that."""
    made = await batches.create("ann", SPEC, window_s=60)
    await let_window_end(redis, made.id)
    sweep = BatchSweep(Broker(redis))
    assert await sweep.run() == {}
    await pass_time(redis, UNATTENDED_S)
    claim = await batches.claim()
    assert claim is not None
    assert await sweep.run() == {}, "it is held"
    await batches.give_back(claim)
    assert await sweep.run() == {}
    await pass_time(redis, UNATTENDED_S - 60)
    assert await sweep.run() == {}
    await pass_time(redis, 61)
    assert await sweep.run() == {"unattended_batches": 1}
    assert not await batches.end(claim, "completed"), "it has ended"


async def test_a_claim_during_the_sweep_wins(redis: Redis, batches: Batches) -> None:
    """The end is fenced by the epoch that the sweep has seen."""
    made = await batches.create("ann", SPEC, window_s=60)
    claim = await batches.claim()
    assert claim is not None
    seen = BatchClaim(made.id, claim.epoch - 1)
    assert not await batches.end(seen, "expired")
    assert (await batches.find("ann", made.id)).status == "validating"


@pytest.mark.parametrize(
    ("ending", "expected"), [("cancelled", "cancelled"), ("completed", "expired")]
)
async def test_a_batch_without_its_files_does_not_end_as_completed(
    redis: Redis, batches: Batches, ending: Any, expected: str
) -> None:
    made = await batches.create("ann", SPEC, window_s=60)
    claim = await batches.claim()
    assert claim is not None
    assert await batches.finalize(claim, ending)
    await batches.give_back(claim)
    await let_window_end(redis, made.id)
    sweep = BatchSweep(Broker(redis))
    assert await sweep.run() == {}
    await pass_time(redis, UNATTENDED_S)
    assert await sweep.run() == {"unattended_batches": 1}
    assert (await batches.find("ann", made.id)).status == expected


async def test_lists_and_answers_do_not_outlive_their_batches(
    redis: Redis, batches: Batches
) -> None:
    gone = await batches.create("ann", SPEC, window_s=60)
    first = await batches.claim()
    assert first is not None
    there = await batches.create("ann", SPEC, window_s=60)
    second = await batches.claim()
    assert second is not None
    await batches.note_duplicates(second, [3])
    await batches.end(first, "completed")
    # Somebody who lost the claim long ago notes lines once more.
    await batches.note_duplicates(first, [3])
    assert await redis.ttl(keys.batch_duplicates(gone.id)) == -1
    await redis.delete(keys.batch(gone.id))

    before = await snapshot(redis)
    expected = {"stale_batch_entries": 1, "orphan_batch_keys": 1}
    assert await BatchSweep(Broker(redis), dry_run=True).run() == expected
    assert await snapshot(redis) == before
    assert await BatchSweep(Broker(redis)).run() == expected
    assert await BatchSweep(Broker(redis)).run() == {}
    assert await redis.zrange(keys.batches_of("ann"), 0, -1) == [there.id.encode()]
    assert await batches.duplicates(second) == {3}


# All sweeps


async def plant_all(redis: Redis, store: ArtifactStore) -> None:
    """Plant a fault of each kind that a crash, a bug or the passing of time leaves behind."""
    desk = Desk(redis)
    (late,) = await desk.submit()
    # The tenant has more to do, or it would be idle once its late job is ended.
    await desk.submit()
    await redis.hset(keys.job(late.id), mapping={"expires_ms": "1", "deadline_ms": "1"})  # type: ignore[misc]
    orphan = keys.new_id("00")
    await redis.xadd(keys.log(orphan), {"e": "x"}, id="1-0")
    await redis.zadd(keys.open_jobs("00", "ann"), {orphan: 1})
    await redis.hset(keys.depth("00", "m"), "jobs:bulk", 7)  # type: ignore[misc]
    await redis.hset(keys.served("00", "m:bulk"), mapping={"idle": 1, "*": 2})  # type: ignore[misc]
    await redis.sadd(keys.WORKERS, "gone")  # type: ignore[misc]

    await store.put("ann", LARGE)
    await redis.delete(*[name async for name in redis.scan_iter("aios:{artifacts}:*")])
    expired = await store.put("ann", LARGE + b"expired")
    await redis.hset(keys.artifact(expired.id), "expires_ms", 1)  # type: ignore[misc]
    await redis.zadd(keys.EXPIRING, {expired.id: 1})
    written = store.upload("ann")
    await written.write(LARGE * 8)
    await redis.zadd(keys.LOOSE, {written.id: 1})

    batches = Batches(Broker(redis))
    unattended = await batches.create("ann", SPEC, window_s=60)
    await let_window_end(redis, unattended.id)
    await redis.hset(keys.UNATTENDED_BATCHES, unattended.id, "0 1")  # type: ignore[misc]
    await redis.zadd(keys.batches_of("ann"), {keys.new_batch_id(): 1})
    await redis.sadd(keys.batch_duplicates(keys.new_batch_id()), 3)  # type: ignore[misc]

    await Popularity(Broker(redis)).add({"old": 1})
    seconds, _ = await redis.time()
    long_ago = f"1 {1000 * (seconds - FORGOTTEN_S - 60):.0f} 600000"
    await redis.hset(keys.POPULARITY, "old", long_ago)  # type: ignore[misc]


async def test_a_dry_run_of_every_sweep_changes_nothing_and_the_real_run_does_what_it_told(
    redis: Redis, tmp_path: Path
) -> None:
    store = store_in(redis, tmp_path)
    await plant_all(redis, store)
    before = await snapshot(redis), files_in(tmp_path)

    told = {}
    dry = Janitor(Broker(redis), grace_s=0, dry_run=True, artifacts=store)
    for name, sweep in dry.sweeps.items():
        told[name] = await sweep()
        assert (await snapshot(redis), files_in(tmp_path)) == before, name

    found = {}
    real = Janitor(Broker(redis), grace_s=0, artifacts=store)
    for name, sweep in real.sweeps.items():
        found[name] = await sweep()
    assert found == told
    # A budget is left behind by an own test; all others have found something here.
    assert [name for name, counts in found.items() if not counts] == ["budgets"]

    for name, sweep in real.sweeps.items():
        assert await sweep() == {}, name


LASTING = {
    "{00}:line": "ends with its last job",
    "{00}:turns": "ends with its last line; sweep depths",
    "{00}:depth": "one a model",
    "{00}:bell": "at most 64 rings",
    "{00}:leases": "ends with its last job; sweep jobs",
    "{00}:open": "ends with its last job; sweep quotas",
    "{00}:budgeted": "ends with its last job; sweep budgets",
    "{00}:job": "expires when it has ended; sweep jobs ends it",
    "{00}:log": "expires when its job has ended; sweep orphans",
    "{artifacts}:artifact": "sweep artifacts",
    "{artifacts}:bytes": "sweep artifacts",
    "{artifacts}:digest": "sweep artifacts",
    "{artifacts}:owned": "sweep artifacts",
    "{artifacts}:expiring": "sweep artifacts",
    "{artifacts}:used": "sweep artifacts",
    "{artifacts}:in_redis": "one number",
    "{batches}:batch": "expires when it has ended; sweep batch_records ends it",
    "{batches}:owned": "sweep batch_records",
    "{batches}:open": "ends with its last batch",
    "{batches}:active": "ends with the last batch",
    "{batches}:results": "goes with its batch; sweep batch_records",
    "{batches}:duplicates": "goes with its batch; sweep batch_records",
    "{evaluations}:batch": "expires when it has ended; at most four are open",
    "{evaluations}:owned": "the last fifty",
    "{evaluations}:open": "at most four",
    "{evaluations}:active": "ends with the last open one",
    "{evaluations}:results": "goes with its evaluation",
    "{00}:outbox": "about 100,000 events at most; taken a second later",
    "{batches}:outbox": "the same",
    "{webhooks}:outbox": "the same",
    "{webhooks}:endpoint": "so many a tenant (webhook_max_endpoints)",
    "{webhooks}:owned": "the same",
    "{webhooks}:delivery": "expires when it is over, after a day of attempts at most",
    "{webhooks}:pending": "ends with its last delivery",
    "{webhooks}:due": "the same",
    "{presence}:models": "one field a model",
    "{presence}:workers": "sweep workers",
    "{presence}:popularity": "sweep popularity",
}
"""The keys that no time to live removes, and why they do not grow for ever."""


async def test_what_no_time_to_live_removes_is_looked_after(redis: Redis) -> None:
    """A fleet at work leaves keys that expire by themselves, but for those that are listed."""
    desk = Desk(redis)
    broker = desk.broker
    task = Generate("", Sampling(max_tokens=9, seed=0))
    await desk.submit(task, tenant="ann", api_key="0a", experiment="e")
    _, (running,) = await desk.request(task, tenant="bob")
    for claim in await desk.take(1):
        await desk.say(claim, Started(1, "w1", 1), DONE)
    await desk.take(1)
    await desk.submit(task, tenant="cid", key=Key("ask"))
    await RateLimiter(broker).keep("ann", {"": Rate(9, 60)})
    await Repeats(broker, ttl_s=60).note("ann", "digest", running.request_id)
    store = ArtifactStore(broker)
    await store.put("ann", b"small", key="key")
    batches = Batches(broker)
    await batches.create("ann", SPEC, window_s=60)
    claim = await batches.claim()
    assert claim is not None
    await batches.note_duplicates(claim, [1])
    runs = EvaluationRuns(broker)
    await runs.create(RunSpec(), window_s=60)
    asking = await runs.claim()
    assert asking is not None
    await runs.note(asking, 1, b"{}")
    await Presence(redis).announce(WorkerInfo("w1", "ready", ()))
    await Popularity(broker).add({"m": 1})

    endpoints = WebhookEndpoints(broker)
    url = "https://example.com/"
    endpoint = await endpoints.create("ann", name="", url=url, event_types=EVENT_TYPES)
    for _ in range(2):
        _, (told,) = await desk.request(tenant="ann", has_webhook=True)
        await desk.submissions.end([told], Cancelled("client"))
    await endpoints.test(endpoint, "job.failed")
    deliveries = WebhookDeliveries(broker)
    await deliveries.take_events()
    await desk.request(tenant="ann", has_webhook=True)
    await batches.end(claim, "expired")
    await endpoints.test(endpoint, "job.failed")

    lasting = set()
    async for name in redis.scan_iter():
        if await redis.pttl(name) == -1:
            kind = re.fullmatch(r"aios:(\{\w+\}:\w+)(:.*)?", name.decode())
            assert kind is not None, name
            lasting.add(kind[1])
    assert lasting <= set(LASTING)
