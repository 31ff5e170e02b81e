"""Following jobs through trouble with Redis connections: nothing lost, nothing twice."""

import asyncio

from redis.asyncio import Redis

from shared.events.subscriptions import Subscriptions
from shared.queue import keys
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import in_memory
from tests.fixtures.polling import ALL_DAY_S, DEADLINE_S, until

TEXT = "one two three four five"


async def test_listeners_that_come_at_once_share_one_connection(redis: Redis) -> None:
    subscriptions = Subscriptions(redis, confirm_timeout_s=ALL_DAY_S)
    names = [f"channel-{number}" for number in range(8)]

    async def hear(name: str) -> None:
        async with subscriptions.listen(name) as inbox:
            await redis.publish(name, name)
            assert await inbox.get() == name.encode()

    # Less than the wait for a confirmation that never comes.
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as listeners:
        for name in names:
            listeners.create_task(hear(name))

    assert len(await redis.client_list(_type="pubsub")) <= 1
    await subscriptions.close()


async def test_a_listener_that_is_cancelled_leaves_no_subscription(redis: Redis) -> None:
    subscriptions = Subscriptions(redis)

    async def listen_for_ever() -> None:
        async with subscriptions.listen("left"):
            await asyncio.Event().wait()

    # Each one is cancelled a turn of the loop later, in another step of its subscription.
    for num_turns in range(6):
        listening = asyncio.create_task(listen_for_ever())
        for _ in range(num_turns):
            await asyncio.sleep(0)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)

    # The next listener gets its subscription all the same, and leaves none either.
    async with subscriptions.listen("other"):
        pass

    await until(lambda: nobody_listens(redis), "all subscriptions are gone")
    await subscriptions.close()


async def test_a_request_survives_the_loss_of_all_connections(
    redis: Redis, worker: EchoWorker
) -> None:
    worker.gate.clear()

    async with in_memory(redis) as client:
        waiting = asyncio.create_task(client.post("/v1/completions", json={"prompt": TEXT}))
        await until(lambda: has_begun(redis, worker), "the first word is in the log")

        for kind in ("normal", "pubsub"):
            await redis.client_kill_filter(_type=kind, skipme=True)

        worker.gate.set()
        answer = await asyncio.wait_for(waiting, DEADLINE_S)

    assert answer.json()["choices"][0]["text"] == TEXT


async def nobody_listens(redis: Redis) -> bool:
    return not await redis.pubsub_channels()


async def has_begun(redis: Redis, worker: EchoWorker) -> bool:
    """Return whether the log has the job's start and its first word."""
    if not worker.jobs:
        return False
    return bool(await redis.xlen(keys.log(worker.jobs[0].id)) == 2)
