"""Where a request stands in the queue, foretold on a real Redis: held against the order in which
workers take."""

import random

import pytest
from redis.asyncio import Redis

from shared.messages import PRIORITIES, Cancelled, Job
from shared.queue.requests import Request
from tests.fixtures.desk import DONE, Desk


@pytest.fixture
def desk(redis: Redis) -> Desk:
    return Desk(redis)


async def before(desk: Desk, request: Request) -> int | None:
    """How many jobs come before it; None if it does not wait."""
    position = await desk.requests.position(request)
    return None if position is None else position.num_before


async def test_places_of_one_line_move_up(desk: Desk) -> None:
    """By what is taken, and by what is called off before and not behind."""
    requests = [await desk.request() for _ in range(5)]
    assert [await before(desk, request) for request, _ in requests] == [0, 1, 2, 3, 4]
    await desk.take(1)
    await desk.submissions.end(requests[2][1], Cancelled())
    assert [await before(desk, request) for request, _ in requests] == [None, 0, None, 1, 2]


async def test_a_request_of_several_jobs_stands_where_its_first_one_does(desk: Desk) -> None:
    hi = (await desk.submit())[0].task
    many, _ = await desk.request(hi, hi, hi)
    last, _ = await desk.request()
    assert (await before(desk, many), await before(desk, last)) == (1, 4)
    await desk.take(2)
    assert (await before(desk, many), await before(desk, last)) == (0, 2)


async def test_better_classes_come_before(desk: Desk) -> None:
    bulk, _ = await desk.request(priority="bulk")
    default, _ = await desk.request()
    urgent, _ = await desk.request(priority="interactive")
    assert [await before(desk, request) for request in (urgent, default, bulk)] == [0, 1, 2]


@pytest.mark.parametrize("seed", range(8))
async def test_the_places_of_many_tenants_and_classes_come_true(desk: Desk, seed: int) -> None:
    """Jobs of one cost, nothing comes and nothing ages: each is taken when it was said, among
    tenants that were served before and ones that come anew."""
    chance = random.Random(seed)
    tenants = ["a", "b", "c", "d"]
    for _ in range(chance.randrange(6)):
        await desk.submit(tenant=chance.choice(tenants), priority=chance.choice(PRIORITIES))
    await desk.take(6)
    made: list[tuple[Request, list[Job]]] = []
    for _ in range(20):
        order = {"tenant": chance.choice(tenants), "priority": chance.choice(PRIORITIES)}
        made.append(await desk.request(**order))  # type: ignore[arg-type]
    foretold = {jobs[0].id: await before(desk, request) for request, jobs in made}
    taken = [(await desk.take(1))[0].job.id for _ in made]
    assert {job: position for position, job in enumerate(taken)} == foretold


async def test_a_small_tenant_is_not_behind_a_large_ones_line(desk: Desk) -> None:
    for _ in range(10):
        await desk.submit(tenant="large")
    small, _ = await desk.request(tenant="small")
    last, _ = await desk.request(tenant="large")
    assert (await before(desk, small), await before(desk, last)) == (1, 11)


async def test_a_line_longer_than_is_counted_is_told_as_its_end(desk: Desk) -> None:
    hi = (await desk.submit(max_jobs=2000))[0].task
    await desk.submit(*[hi] * 1100, max_jobs=2000)
    request, _ = await desk.request(max_jobs=2000)
    for _ in range(3):
        await desk.submit(max_jobs=2000)
    assert await before(desk, request) == 1104


async def test_the_wait_is_told_by_the_rate_of_what_has_ended(desk: Desk) -> None:
    """Two jobs in the last 10 to 20 s, of equal cost: the next starts in half that time, the one
    behind it in all."""
    first, _ = await desk.request()
    unknown = await desk.requests.position(first)
    assert unknown is not None
    assert unknown.starts_in_s is None
    await desk.submit()
    for claim in await desk.take(2):
        await desk.say(claim, DONE)
    for position in range(4):
        request, _ = await desk.request()
        told = await desk.requests.position(request)
        assert told is not None
        assert told.starts_in_s is not None
        assert 10 <= told.starts_in_s / (position + 1) * 2 <= 20
