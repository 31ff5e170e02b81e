"""The queue position of a request, on a real Redis.

It is compared with the order in which workers take the jobs.
"""

import random

import pytest
from redis.asyncio import Redis

from shared.messages import PRIORITIES, Cancelled
from shared.queue.requests import Request
from tests.fixtures.desk import DONE, SAY_HI, Desk


@pytest.fixture
def desk(redis: Redis) -> Desk:
    return Desk(redis)


async def before(desk: Desk, request: Request) -> int | None:
    """Return how many jobs come before the request, None if it does not wait."""
    position = await desk.requests.position(request)
    if position is None:
        return None
    return position.num_before


async def test_places_of_one_line_move_up(desk: Desk) -> None:
    """A request moves up when a job before it is taken or cancelled.

    A cancelled job behind it changes nothing.
    """
    first, _ = await desk.request()
    second, _ = await desk.request()
    third, third_jobs = await desk.request()
    fourth, _ = await desk.request()
    fifth, _ = await desk.request()
    assert await before(desk, first) == 0
    assert await before(desk, second) == 1
    assert await before(desk, third) == 2
    assert await before(desk, fourth) == 3
    assert await before(desk, fifth) == 4

    await desk.take(1)
    await desk.submissions.end(third_jobs, Cancelled())
    assert await before(desk, first) is None
    assert await before(desk, second) == 0
    assert await before(desk, third) is None
    assert await before(desk, fourth) == 1
    assert await before(desk, fifth) == 2


async def test_a_request_of_several_jobs_stands_where_its_first_one_does(desk: Desk) -> None:
    await desk.submit()
    many, _ = await desk.request(SAY_HI, SAY_HI, SAY_HI)
    last, _ = await desk.request()
    assert await before(desk, many) == 1
    assert await before(desk, last) == 4

    await desk.take(2)
    assert await before(desk, many) == 0
    assert await before(desk, last) == 2


async def test_better_classes_come_before(desk: Desk) -> None:
    bulk, _ = await desk.request(priority="bulk")
    default, _ = await desk.request()
    urgent, _ = await desk.request(priority="interactive")
    assert await before(desk, urgent) == 0
    assert await before(desk, default) == 1
    assert await before(desk, bulk) == 2


@pytest.mark.parametrize("seed", range(8))
async def test_the_places_of_many_tenants_and_classes_come_true(desk: Desk, seed: int) -> None:
    """Each job is taken at its predicted position, while nothing new comes and nothing ages.

    All jobs have one cost. Some tenants were served before, and some are new.
    """
    rng = random.Random(seed)
    tenants = ["a", "b", "c", "d"]
    for _ in range(rng.randrange(6)):
        await desk.submit(tenant=rng.choice(tenants), priority=rng.choice(PRIORITIES))

    await desk.take(6)

    requests = {}
    for _ in range(20):
        request, (job,) = await desk.request(
            tenant=rng.choice(tenants), priority=rng.choice(PRIORITIES)
        )
        requests[job.id] = request

    predicted = {}
    for job_id, request in requests.items():
        predicted[job_id] = await before(desk, request)

    actual = {}
    for position in range(20):
        (claim,) = await desk.take(1)
        actual[claim.job.id] = position

    assert actual == predicted


async def test_a_small_tenant_is_not_behind_a_large_ones_line(desk: Desk) -> None:
    for _ in range(10):
        await desk.submit(tenant="large")
    small, _ = await desk.request(tenant="small")
    last, _ = await desk.request(tenant="large")
    assert await before(desk, small) == 1
    assert await before(desk, last) == 11


async def test_a_line_longer_than_is_counted_is_told_as_its_end(desk: Desk) -> None:
    await desk.submit(max_jobs=2000)
    await desk.submit(*[SAY_HI] * 1100, max_jobs=2000)
    request, _ = await desk.request(max_jobs=2000)
    for _ in range(3):
        await desk.submit(max_jobs=2000)
    # The three behind it count too: beyond a thousand only the length of the line is known.
    assert await before(desk, request) == 1104


async def test_the_wait_is_told_by_the_rate_of_what_has_ended(desk: Desk) -> None:
    """The predicted wait follows the rate at which jobs have ended.

    After two jobs of equal cost in the last 10 to 20 s, the next starts in half that time, and the
    one behind it in all of it.
    """
    first, _ = await desk.request()
    unknown = await desk.requests.position(first)
    assert unknown is not None
    assert unknown.starts_in_s is None

    await desk.submit()
    for claim in await desk.take(2):
        await desk.say(claim, DONE)

    for num_before in range(4):
        request, _ = await desk.request()
        position = await desk.requests.position(request)
        assert position is not None
        assert position.starts_in_s is not None
        assert 10 <= position.starts_in_s / (num_before + 1) * 2 <= 20
