"""The queue and its fence on a real redis-server.

A request is queued all or not at all, a job has exactly one end, and its log one writer.
"""

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis

from scripts.cli.embedded_redis import bundled_servers, find_redis_server
from shared.errors import QueueFull, TooSlow
from shared.messages import Cancelled, Failed, Generate, Job, Sampling, Started, Tokens
from shared.queue import keys
from shared.queue.broker import UNAVAILABLE, connect
from shared.queue.leases import Claim
from tests.fixtures.desk import DONE, Desk
from tests.fixtures.queue_clients import saturate
from tests.fixtures.redis_server import patient, start_redis


@pytest.fixture
def desk(redis: Redis) -> Desk:
    return Desk(redis)


async def take_one(desk: Desk, worker: str = "w1") -> Claim:
    (claim,) = await desk.take(1, worker)
    return claim


def choices(n: int) -> Generate:
    return Generate("hi", Sampling(max_tokens=4, seed=0, n=n))


def jobs_of(claims: list[Claim]) -> list[Job]:
    return [claim.job for claim in claims]


async def test_a_job_goes_through_its_life(desk: Desk, redis: Redis) -> None:
    (job,) = await desk.submit()
    assert await desk.counts() == (1, 0)

    claim = await take_one(desk)
    assert claim.job == job
    assert claim.epoch == 1
    assert claim.last_index == 0
    assert not claim.is_alone
    assert 200 < claim.time_left_s <= 300
    assert await desk.counts() == (0, 1)
    assert await desk.say(claim, Started(1, "w1", 2), Tokens((5,), "a"))
    assert await desk.say(claim, Tokens((6,), "b"), DONE, after=2)

    events = [Started(1, "w1", 2), Tokens((5,), "a"), Tokens((6,), "b"), DONE]
    assert await desk.reader.read(job.id) == list(enumerate(events, start=1))
    assert await desk.counts() == (0, 0)
    assert await redis.pttl(keys.log(job.id)) > 0
    assert await redis.pttl(keys.job(job.id)) > 0


async def test_nothing_is_left_of_ended_jobs_but_what_expires(desk: Desk, redis: Redis) -> None:
    """An ended job leaves no orphan key, no held quota and no lease, whichever way it ends."""
    (finished,) = await desk.submit()
    (running,) = await desk.submit()
    (queued,) = await desk.submit()
    claims = await desk.take(2)
    assert jobs_of(claims) == [finished, running]

    await desk.say(claims[0], DONE)
    await desk.submissions.end([running, queued], Cancelled())

    lasting = set()
    async for name in redis.scan_iter():
        if await redis.pttl(name) < 0:
            lasting.add(name)

    assert lasting <= {b"aios:{00}:bell:m", b"aios:{00}:depth:m"}
    assert set(await redis.hvals("aios:{00}:depth:m")) == {b"0"}  # type: ignore[misc]


async def test_an_append_lands_once_and_only_at_its_place(desk: Desk) -> None:
    """An append whose answer was lost may be repeated. Another index or epoch is refused."""
    await desk.submit()
    claim = await take_one(desk)
    token = Tokens((5,), "a")
    assert await desk.say(claim, token)
    assert await desk.say(claim, token)
    assert not await desk.say(claim, Tokens((6,), "b"), after=5)
    assert not await desk.say(Claim(claim.job, 2, 1), Tokens((6,), "b"))
    assert await desk.say(claim, DONE, after=1)
    assert await desk.say(claim, DONE, after=1)
    assert not await desk.say(claim, DONE, after=2)
    assert await desk.events(claim.job) == [token, DONE]


async def test_after_a_takeover_the_first_owner_is_stale(redis: Redis) -> None:
    """DESIGN 3.6: a zombie can never write, and it never gets its lease back."""
    patient = Desk(redis, lease_s=60)
    hasty = Desk(redis, lease_s=0)
    await patient.submit()
    first = await take_one(hasty, "w1")
    await patient.say(first, Tokens((5,), "a"))
    second = await take_one(patient, "w2")
    assert second.epoch == 2
    assert second.last_index == 1
    assert await patient.take(5, "w3") == []
    assert await patient.queue("w1").renew([first]) == [first]
    assert await patient.queue("w2").renew([second]) == []
    assert not await patient.say(first, DONE, after=1)
    assert await patient.say(second, DONE)
    assert await patient.events(first.job) == [Tokens((5,), "a"), DONE]


async def test_jobs_given_back_are_taken_over_at_once_and_renewed_ones_not(desk: Desk) -> None:
    await desk.submit()
    await desk.submit()
    kept, given_back = await desk.take(2)
    await desk.queue().give_back([given_back])
    await desk.queue().renew([kept])
    assert jobs_of(await desk.take(5, "w2")) == [given_back.job]


@pytest.mark.parametrize("phase", ["queued", "running"])
async def test_ending_from_outside_wins_once_in_every_phase(
    desk: Desk, redis: Redis, phase: str
) -> None:
    """P4, P6: an end from outside is written at once, in every phase.

    The job's worker hears of it, and its next append is refused as stale.
    """
    (job,) = await desk.submit()
    (other,) = await desk.submit()

    if phase == "running":
        claim = await take_one(desk)
    else:
        claim = Claim(job, 1, 0)

    pubsub = redis.pubsub()
    await pubsub.subscribe(keys.control("00", "w1"))

    assert await desk.submissions.end([job], Cancelled("user")) == 1
    assert await desk.submissions.end([job], Failed("worker_failed", "late")) == 0
    assert not await desk.say(claim, DONE)
    assert await desk.events(job) == [Cancelled("user")]
    assert await desk.counts() == (1, 0), "an ended job takes no place"
    assert (await take_one(desk)).job == other
    assert await desk.counts() == (0, 1)

    # The first message confirms the subscription.
    await pubsub.get_message(timeout=1)

    if phase == "running":
        assert await pubsub.get_message(ignore_subscribe_messages=True, timeout=60) is not None
    else:
        assert await pubsub.get_message(ignore_subscribe_messages=True, timeout=0.1) is None

    await pubsub.aclose()


async def test_what_runs_can_be_spared(desk: Desk) -> None:
    (job,) = await desk.submit()
    await take_one(desk)
    assert await desk.submissions.end([job], Failed("queue_timeout", "late"), if_waiting=True) == 0


@pytest.mark.parametrize(
    ("limit", "code"), [("queue_timeout_s", "queue_timeout"), ("deadline_s", "deadline_exceeded")]
)
async def test_a_job_that_waited_too_long_fails_when_it_is_taken(
    desk: Desk, limit: str, code: str
) -> None:
    """X8: a late job fails with 503 for its queue timeout and 504 for its deadline.

    The worker never sees it.
    """
    (late,) = await desk.submit(**{limit: 0.001})
    (fresh,) = await desk.submit()
    await asyncio.sleep(0.01)
    assert jobs_of(await desk.take(5)) == [fresh]

    (event,) = await desk.events(late)
    assert isinstance(event, Failed)
    assert event.code == code


async def test_admission_is_all_or_nothing_and_exact_under_many_fronts(redis_url: str) -> None:
    """P5: the cap holds exactly while eight connections race with groups of one to three jobs."""
    clients = [patient(connect(redis_url)) for _ in range(8)]

    async def race(client: Redis, first_size: int) -> int:
        desk = Desk(client)
        count = 0
        for step in range(20):
            size = 1 + (first_size + step) % 3

            try:
                await desk.submit(*[choices(1)] * size, max_jobs=37)
            except QueueFull as error:
                assert error.retry_after_s is not None
                assert error.retry_after_s >= 1
            else:
                count += size

            queued, _ = await desk.counts()
            assert queued <= 37

        return count

    races = []
    for number, client in enumerate(clients):
        races.append(race(client, first_size=number))

    accepted = sum(await asyncio.gather(*races))

    assert await Desk(clients[0]).counts() == (accepted, 0)
    assert accepted == 37, "single jobs were on offer, so the last place must have been taken"

    num_jobs = len(await clients[0].keys("aios:{00}:job:*"))
    assert num_jobs == accepted, "a refused group left something behind"

    for client in clients:
        await client.aclose()


async def test_jobs_in_hand_do_not_count_as_waiting(desk: Desk) -> None:
    await desk.submit(max_jobs=1)
    with pytest.raises(QueueFull):
        await desk.submit(max_jobs=1)
    await take_one(desk)
    await desk.submit(max_jobs=1)


async def test_retry_after_follows_the_measured_rate(desk: Desk) -> None:
    """P5: Retry-After is short when jobs end quickly, and a plain guess before any has ended."""
    with pytest.raises(QueueFull) as unmeasured:
        await desk.submit(max_jobs=0)
    assert unmeasured.value.retry_after_s == 5

    for _ in range(40):
        await desk.submit()
        await desk.say(await take_one(desk), DONE)

    with pytest.raises(QueueFull) as measured:
        await desk.submit(max_jobs=0)
    assert measured.value.retry_after_s == 1


async def test_work_goes_on_after_a_flush(desk: Desk, redis: Redis) -> None:
    """After Redis came back empty, new jobs are taken and old claims are stale."""
    await desk.submit()
    lost = await take_one(desk)
    await redis.flushall()
    (job,) = await desk.submit()
    assert not await desk.say(lost, DONE)
    assert await desk.queue().renew([lost]) == [lost]
    assert (await take_one(desk)).job == job


async def test_scripts_are_loaded_again_after_a_script_flush(desk: Desk, redis: Redis) -> None:
    """DESIGN 4: a script is loaded again when EVALSHA answers NOSCRIPT."""
    await desk.submit()
    await redis.script_flush()
    claim = await take_one(desk)
    await redis.script_flush()
    assert await desk.say(claim, DONE)


async def test_a_lapsed_job_is_found_behind_many_live_ones(desk: Desk) -> None:
    for _ in range(60):
        await desk.submit()
    claims = await desk.take(60)
    lapsed = claims[-1]
    await desk.queue().give_back([lapsed])
    assert jobs_of(await desk.take(1, "w2")) == [lapsed.job]


@pytest.mark.parametrize(
    ("slots", "wanted", "taken"),
    [
        (4, [1] * 6, 4),
        (4, [2] * 4, 2),
        (4, [3, 3, 1], 2),
        (4, [16, 1], 1),
        (4, [1, 2], 2),
        (1, [1, 1], 1),
        (9, [], 0),
    ],
)
async def test_a_take_fills_the_places_and_no_more(
    desk: Desk, slots: int, wanted: list[int], taken: int
) -> None:
    """A job takes a place for each choice, and the rest of the jobs stays queued.

    The job that fills the last place may need more slots than are left.
    """
    for n in wanted:
        await desk.submit(choices(n))
    claims = await desk.take(slots)
    assert [claim.slots for claim in claims] == wanted[:taken]
    assert await desk.counts() == (len(wanted) - taken, taken)


async def test_lapsed_jobs_that_find_no_place_are_left_to_others(desk: Desk) -> None:
    """A lapsed job that finds no place stays lapsed and spends no epoch."""
    job_ids = set()
    for n in (2, 3, 1, 1):
        (job,) = await desk.submit(choices(n))
        job_ids.add(job.id)

    await desk.queue().give_back(await desk.take(60))

    taken = await desk.take(4, "w2")
    rest = await desk.take(4, "w3")
    assert {claim.job.id for claim in [*taken, *rest]} == job_ids
    for claim in [*taken, *rest]:
        assert claim.epoch == 2

    assert sum(claim.slots for claim in taken[:-1]) < 4


async def test_the_jobs_of_a_dead_worker_are_taken_a_few_at_a_time(redis: Redis) -> None:
    """Lapsed jobs come a few per take, so that a worker does not stall over many prompts."""
    desk = Desk(redis, lapsed_at_once=3)
    for _ in range(8):
        await desk.submit()

    await desk.queue().give_back(await desk.take(8))

    assert len(await desk.take(8, "w2")) == 3
    assert len(await desk.take(8, "w3")) == 3
    assert len(await desk.take(8, "w2")) == 2
    assert len(await desk.take(8, "w3")) == 0


async def test_a_job_of_another_version_is_left_alone(desk: Desk, redis: Redis) -> None:
    """In a rolling upgrade a job that cannot be read here waits for a worker that can."""
    (strange,) = await desk.submit()
    (plain,) = await desk.submit()
    await redis.hset(keys.job(strange.id), "spec", b"\x81\xa4kind\x01")  # type: ignore[misc]
    assert jobs_of(await desk.take(5)) == [plain]
    assert await desk.counts() == (0, 2)


@pytest.mark.parametrize("executable", sorted({find_redis_server(), *bundled_servers()}))
async def test_a_redis_without_memory_is_unavailable_and_says_no_secrets(
    tmp_path: Path, executable: str
) -> None:
    """DESIGN 4, OOM: out of memory is a 503 for a front and a reason to wait for a worker.

    Redis 6.2 and 7 word the error differently.
    """
    server = start_redis(tmp_path, executable)
    client = connect(server.url)

    try:
        desk = Desk(client)
        await desk.submit(Generate("a secret prompt", Sampling(max_tokens=4, seed=0)))
        claim = await take_one(desk)
        await client.config_set("maxmemory", "1")
        with pytest.raises(UNAVAILABLE) as refused:
            await desk.submit()
        assert "secret" not in str(refused.value)
        with pytest.raises(UNAVAILABLE) as unwritten:
            await desk.say(claim, Tokens((5,), "secret"))
        assert "secret" not in str(unwritten.value)

        await client.config_set("maxmemory", "0")
        assert await desk.say(claim, DONE)
    finally:
        await client.aclose()
        server.stop()


async def test_what_cannot_begin_before_its_deadline_is_refused(desk: Desk, redis: Redis) -> None:
    """P5: a job is refused if the jobs before it take longer than its deadline allows.

    The rate is measured while something waits.
    """
    # The rate that this makes is 25 to 50 tokens a second.
    await saturate(desk, redis, since_s=60)
    with pytest.raises(TooSlow) as refused:
        await desk.submit(deadline_s=2, is_urgent=True)
    assert refused.value.retry_after_s is not None
    assert 1 <= refused.value.retry_after_s <= 60

    await desk.submit(deadline_s=60, is_urgent=True)
    await desk.submit(deadline_s=2, is_urgent=True, priority="interactive")


async def test_a_rate_that_nothing_waited_for_says_nothing_of_the_workers(
    desk: Desk, redis: Redis
) -> None:
    await saturate(desk, redis, since_s=1)
    await desk.submit(deadline_s=2, is_urgent=True)
