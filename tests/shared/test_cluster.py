"""A real Redis Cluster of three nodes with four shards.

The queue works on it, across restarts and moved slots.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Connection, Redis
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError

from scripts.cli.arq_queue import TAG
from scripts.cli.webhook_jobs import make_webhook_worker
from shared.artifacts.store import IN_REDIS_BYTES, ArtifactStore
from shared.events.log import LogReader
from shared.events.subscriptions import Subscriptions
from shared.messages import Cancelled, Event, Job, Started, Tokens
from shared.queue import keys
from shared.queue.broker import UNAVAILABLE, Broker, open_broker
from shared.queue.evaluation_runs import EvaluationRuns, RunSpec
from shared.queue.janitor import Janitor
from shared.queue.leases import Claim
from shared.queue.submission import QueueLimits, Quota, SubmitRequest
from shared.queue.webhooks import EVENT_TYPES, WebhookDeliveries, WebhookEndpoints
from shared.settings.layers import SettingsError
from shared.telemetry.metrics import JanitorMetrics
from shared.webhooks.deliverer import Deliverer
from shared.webhooks.sender import Sender
from shared.webhooks.targets import networks
from tests.fixtures.burst_worker import make_burst_worker
from tests.fixtures.desk import DONE, SAY_HI, Desk
from tests.fixtures.polling import DEADLINE_S, until, wait_until
from tests.fixtures.receiver import receiving
from tests.fixtures.redis_cluster import RedisCluster, move, redis_cluster, replica_of
from tests.fixtures.redis_server import RedisServer

SHARDS = 4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with redis_cluster(tmp_path_factory.mktemp("cluster"), node_timeout_ms=3000) as running:
        yield running


@pytest.fixture
async def broker(cluster: RedisCluster) -> AsyncIterator[Broker]:
    async with open_broker(cluster.url, SHARDS) as broker:
        for node in await broker.nodes():
            await node.flushall()
        yield broker


async def on_every_shard(desk: Desk) -> dict[str, Job]:
    """Submit until one job waits on each shard; cancel what is too much."""
    jobs: dict[str, Job] = {}
    while len(jobs) < SHARDS:
        (job,) = await desk.submit(tenant=f"t{len(jobs)}")
        shard = keys.shard_of(job.id)
        if shard in jobs:
            await desk.submissions.end([job], Cancelled())
        else:
            jobs[shard] = job

    return jobs


def ids_of(jobs: Iterable[Job]) -> set[str]:
    return {job.id for job in jobs}


def jobs_of(claims: list[Claim]) -> list[Job]:
    return [claim.job for claim in claims]


async def test_shards_lie_on_several_nodes(broker: Broker) -> None:
    assert len(await broker.nodes()) > 1
    await broker.client("00").set("{00}x", 1)
    # This slot is another node's, whatever the client tries.
    with pytest.raises(UNAVAILABLE):
        await broker.client("00").set("{01}x", 1)


async def test_jobs_live_on_every_shard_and_are_followed_from_any_node(broker: Broker) -> None:
    desk = Desk(broker, lease_s=60)
    subscriptions = Subscriptions(broker.client(keys.PRESENCE))
    jobs = await on_every_shard(desk)
    assert await desk.counts() == (SHARDS, 0)

    async def follow(job: Job) -> list[Event]:
        # The poll is so slow that events can only come by pub/sub.
        reader = LogReader(broker, subscriptions, poll_s=60)
        return [event async for _, event in reader.follow(job.id)]

    following = [asyncio.create_task(follow(job)) for job in jobs.values()]
    claims = await desk.take(9)
    assert ids_of(jobs_of(claims)) == ids_of(jobs.values())

    events: list[Event] = [Started(1, "w1", 1), Tokens((5,), "a"), DONE]
    for index, event in enumerate(events):
        for claim in claims:
            assert await desk.say(claim, event, after=index)

    async with asyncio.timeout(DEADLINE_S):
        for task in following:
            assert await task == events

    await subscriptions.close()
    assert await desk.counts() == (0, 0)


async def test_a_bell_rings_on_every_shard(broker: Broker) -> None:
    desk = Desk(broker)
    for shard in await on_every_shard(desk):
        assert await desk.queue().await_bell([shard], 5) == shard


async def test_a_submit_that_is_repeated_queues_once(broker: Broker) -> None:
    """A submission that had run, and whose answer was lost, is repeated without effect."""
    desk = Desk(broker)
    submit_request = SubmitRequest("m", (SAY_HI,))
    request_id, [job] = desk.submissions.jobs_of(submit_request)

    for _ in range(3):
        request = await desk.submissions.submit(
            submit_request, request_id, [job], Quota(), QueueLimits(1)
        )
        assert request.job_ids == (job.id,)

    assert await desk.counts() == (1, 0)


async def test_a_script_whose_connection_is_cut_runs_again(
    broker: Broker, cluster: RedisCluster
) -> None:
    """Appends go on while every connection of every node is cut between them."""
    desk = Desk(broker, lease_s=60)
    await on_every_shard(desk)
    claims = await desk.take(9)
    for index in range(5):
        await cut_all(cluster)
        for claim in claims:
            assert await desk.say(claim, Tokens((index,), "a"), after=index)


async def cut_all(cluster: RedisCluster) -> None:
    for node in cluster.nodes:
        async with Redis.from_url(node.url) as client:
            await client.client_kill_filter(_type="normal", skipme=True)


async def test_a_slot_that_moves_is_found_again(broker: Broker, cluster: RedisCluster) -> None:
    """MOVED: clients and pipelines follow a slot to its new node, with all that was in it."""
    desk = Desk(broker, lease_s=60)
    jobs = await on_every_shard(desk)
    slot = key_slot(b"00")
    origin, target = origin_and_target(cluster, slot)

    await asyncio.to_thread(move, slot, origin, target)

    try:
        assert await desk.counts() == (SHARDS, 0), "a pipeline"

        claims = await desk.take(9)
        assert ids_of(jobs_of(claims)) == ids_of(jobs.values()), "scripts"
        assert await desk.events(jobs["00"]) == [], "a read"
        for claim in claims:
            assert await desk.say(claim, DONE)
    finally:
        await asyncio.to_thread(move, slot, target, origin)

    assert await desk.counts() == (0, 0)


async def test_a_slot_on_the_move_is_unavailable_for_so_long(
    broker: Broker, cluster: RedisCluster
) -> None:
    """A script must see all keys of its shard or none: between two nodes it is refused."""
    desk = Desk(broker)
    slot = key_slot(b"00")
    origin, target = origin_and_target(cluster, slot)

    async with Redis.from_url(origin.url) as source, Redis.from_url(target.url) as sink:
        target_id = (await sink.execute_command("CLUSTER", "MYID")).decode()
        await source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        with pytest.raises(UNAVAILABLE):
            await desk.take(1)
        await source.execute_command("CLUSTER", "SETSLOT", slot, "STABLE")

    assert await desk.take(1) == []


def origin_and_target(cluster: RedisCluster, slot: int) -> tuple[RedisServer, RedisServer]:
    """Return the node that owns the slot, and one that does not."""
    origin = cluster.owner(slot)
    [target, *_] = [node for node in cluster.nodes if node is not origin]
    return origin, target


async def test_a_node_that_restarts_is_waited_for(broker: Broker, cluster: RedisCluster) -> None:
    """A node that is away makes its shards, and soon all of them, unavailable.

    When it is back all goes on from its file.
    """
    desk = Desk(broker, lease_s=60)
    await on_every_shard(desk)
    claims = await desk.take(9)
    node = cluster.owner(key_slot(b"00"))
    [on_node] = [claim for claim in claims if keys.shard_of(claim.job.id) == "00"]

    node.stop()

    try:
        with pytest.raises(UNAVAILABLE):
            await desk.say(on_node, Tokens((1,), "a"))

        wait_until(lambda: cluster.states(but=node) == {"fail"}, "the others notice")

        for claim in claims:
            with pytest.raises(UNAVAILABLE):
                await desk.say(claim, Tokens((1,), "a"))
            with pytest.raises(UNAVAILABLE):
                await desk.reader.read(claim.job.id)
    finally:
        node.start()

    wait_until(lambda: cluster.states() == {"ok"}, "the cluster is whole again")
    for claim in claims:
        assert await desk.say(claim, Tokens((1,), "a"), DONE)

    assert await desk.counts() == (0, 0)


async def test_a_replica_takes_over_for_clients_that_go_on(tmp_path: Path) -> None:
    """After a failover clients find the shards of the lost node at its replica."""
    with redis_cluster(tmp_path) as cluster:
        node = cluster.owner(key_slot(b"00"))

        with replica_of(node, cluster, tmp_path / "replica") as replica:
            async with open_broker(node.url) as broker:
                desk = Desk(broker, lease_s=60)
                await desk.submit()
                (claim,) = await desk.take(1)

                async with Redis.from_url(node.url) as dying:
                    # The replica has all before the node goes.
                    await dying.execute_command("WAIT", 1, 5000)

                node.stop()

                async with Redis.from_url(replica.url) as heir:
                    await heir.execute_command("CLUSTER", "FAILOVER", "TAKEOVER")
                    async with asyncio.timeout(DEADLINE_S):
                        while (await heir.info("replication"))["role"] != "master":
                            await asyncio.sleep(0.01)

                async with asyncio.timeout(DEADLINE_S):
                    while not await could_append_end(desk, claim):
                        await asyncio.sleep(0.05)

                assert await desk.counts() == (0, 0)


async def could_append_end(desk: Desk, claim: Claim) -> bool:
    """Return False while the other nodes have not heard of the failover."""
    try:
        return await desk.say(claim, DONE)
    except UNAVAILABLE:
        return False


async def test_everybody_divides_it_alike(broker: Broker, cluster: RedisCluster) -> None:
    await broker.settle()
    with pytest.raises(SettingsError, match="redis_shards: this Redis is divided into 4, got 2"):
        async with open_broker(cluster.url, 2):
            pass

    async with open_broker(cluster.nodes[2].url, SHARDS) as other:
        assert len(other.shards) == SHARDS, "any node is a door"


async def test_the_janitor_and_its_clock_live_on_it_too(broker: Broker) -> None:
    desk = Desk(broker)
    jobs = await on_every_shard(desk)
    for shard, job in jobs.items():
        past = {"expires_ms": "1", "deadline_ms": "1"}
        await broker.client(shard).hset(keys.job(job.id), mapping=past)  # type: ignore[misc]

    metrics = JanitorMetrics()
    worker = make_burst_worker(broker, Janitor(broker, grace_s=0), metrics)
    await worker.pool.enqueue_job(f"{{{TAG}}}:jobs", _job_id=f"{{{TAG}}}:jobs:1")
    await worker.async_run()

    late_jobs = metrics.registry.get_sample_value("aios_janitor_found_total", {"what": "late_jobs"})
    assert late_jobs == SHARDS
    assert await desk.counts() == (0, 0)


async def test_events_of_every_shard_are_delivered_through_arq(broker: Broker) -> None:
    """Each is put out on the node of its job, and planned, tried and noted on that of webhooks."""
    desk = Desk(broker)
    async with receiving() as receiver:
        endpoints = WebhookEndpoints(broker)
        endpoint = await endpoints.create("ann", name="", url=receiver.url, event_types=EVENT_TYPES)
        shards: set[str] = set()
        while len(shards) < SHARDS:
            _, [job] = await desk.request(tenant="ann", has_webhook=True)
            shards.add(keys.shard_of(job.id))
        claims = await desk.take(64)
        for claim in claims:
            assert await desk.say(claim, DONE)

        sender = Sender(networks(("127.0.0.0/8",)))
        metrics = JanitorMetrics().webhooks
        deliverer = Deliverer(WebhookDeliveries(broker), sender, metrics)
        worker = make_webhook_worker(broker, deliverer, poll_delay=0.02)
        name = f"{{{TAG}}}:webhook-events"
        await worker.pool.enqueue_job(name, _job_id=f"{name}:1")
        running = asyncio.create_task(worker.async_run())
        await until(lambda: len(receiver.got) == len(claims), "all events are delivered")
        client = broker.client(keys.WEBHOOKS)

        async def are_over() -> bool:
            return not await client.exists(keys.PENDING_DELIVERIES)

        await until(are_over, "that is noted")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    attempts = await endpoints.attempts("ann", endpoint.id, 100)
    assert {attempt.outcome for attempt in attempts} == {"delivered"}
    assert len(attempts) == len({attempt.event for attempt in attempts}) == len(claims)


async def test_artifacts_live_on_one_node(broker: Broker, tmp_path: Path) -> None:
    store = ArtifactStore(broker, str(tmp_path))
    large_data = bytes(2 * IN_REDIS_BYTES)
    small = await store.put("ann", b"small")
    large = await store.put("ann", large_data)
    assert await store.find("ann", small.id) == small
    assert await store.find("ann", large.id) == large

    page, _ = await store.page("ann", limit=9)
    assert {artifact.id for artifact in page} == {small.id, large.id}
    assert await store.read_all("ann", large.id, max_bytes=len(large_data)) == large_data

    await store.delete("ann", small.id)
    client = broker.client(keys.ARTIFACTS)
    await client.hset(keys.artifact(large.id), "expires_ms", 1)  # type: ignore[misc]
    await client.zadd(keys.EXPIRING, {large.id: 1})
    assert await Janitor(broker, artifacts=store).artifacts() == {"expired_artifacts": 1}
    assert await store.used_bytes("ann") == 0


async def test_evaluations_live_on_one_node(broker: Broker) -> None:
    runs = EvaluationRuns(broker)
    made = await runs.create(RunSpec(tasks=("mathematics",)), window_s=60)
    claim = await runs.claim()
    assert claim is not None and claim.batch_id == made.id
    assert await runs.claim() is None
    assert await runs.begin(claim, total=2, plan=b"{}")
    assert await runs.note(claim, 1, b"first")
    assert await runs.note(claim, 1, b"another")
    assert await runs.results(claim) == {1: b"first"}
    assert await runs.end(claim, report=b"{}")
    assert not await runs.end(claim, report=b"{}")
    assert await runs.latest_id() == made.id
    [run] = await runs.done(9)
    assert (run.state, run.num_done, run.total, run.report) == ("done", 1, 2, b"{}")


async def test_without_any_node_the_failure_is_a_connection_error() -> None:
    async with open_broker("redis://127.0.0.1:1/0", SHARDS) as broker:
        with pytest.raises(RedisConnectionError):
            await broker.client("00").get("x")


async def test_a_connection_that_was_closed_under_us_is_a_lost_one(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A RuntimeError of a closed transport counts as a lost connection.

    uvloop raises it on a write, and redis-py lets it through.
    """
    async with open_broker(redis_url) as broker:
        client = broker.client("00")
        await client.ping()
        send = Connection.send_packed_command
        failures = [RuntimeError("unable to perform: the handler is closed")]

        async def send_or_fail(connection: Connection, *args: object, **kwargs: object) -> None:
            if failures:
                raise failures.pop()
            await send(connection, *args, **kwargs)

        monkeypatch.setattr(Connection, "send_packed_command", send_or_fail)
        with pytest.raises(UNAVAILABLE):
            await client.ping()
        assert await client.ping()
