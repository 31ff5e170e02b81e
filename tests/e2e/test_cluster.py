"""Front and worker as processes on a Redis Cluster with four shards, while one of its nodes
restarts."""

import asyncio
from pathlib import Path

import httpx
from redis.crc import key_slot

from shared.queue import keys
from shared.queue.broker import Broker, open_broker
from tests.fixtures.e2e.fleet import front, start_worker
from tests.fixtures.e2e.roles_apart import CAP
from tests.fixtures.polling import DEADLINE_S, wait_until
from tests.fixtures.redis_cluster import redis_cluster

SHARDS = 4
FLAGS = ("--redis-shards", str(SHARDS))


async def shards_at_work(broker: Broker) -> list[str]:
    """The shard of each job that says something."""
    pattern = keys.pattern("log")
    logs = [name for node in await broker.nodes() async for name in node.scan_iter(pattern)]
    return [keys.parts(name.decode(), "log")[0] for name in logs]


async def test_the_fleet_on_a_cluster_outlives_a_restart_of_a_node(tmp_path: Path) -> None:
    """Requests spread over the shards; those under way when a node goes away end with all of their
    text."""
    with redis_cluster(tmp_path) as cluster:
        async with (
            front(cluster.url, *CAP, *FLAGS) as door,
            open_broker(cluster.url, SHARDS) as broker,
            httpx.AsyncClient(base_url=door.url, timeout=120) as http,
        ):
            worker = await start_worker(cluster.url, broker.client(keys.PRESENCE), *CAP, *FLAGS)
            try:

                async def ask(prompt: str, tokens: int) -> str:
                    answer = await http.post(
                        "/generate", json={"prompts": [prompt], "max_tokens": tokens}
                    )
                    assert answer.status_code == 200, answer.text
                    text: str = answer.json()["completions"][0]
                    return text

                await door.ready()
                # New work would be refused meanwhile.
                asked = [asyncio.create_task(ask("abc", 2000)) for _ in range(12)]
                async with asyncio.timeout(DEADLINE_S):
                    while len(shards := await shards_at_work(broker)) < len(asked):
                        await asyncio.sleep(0.005)
                node = cluster.owner(key_slot(shards.pop().encode()))
                node.stop()
                node.start()
                wait_until(lambda: cluster.states() == {"ok"}, "the cluster is whole again")
                assert await asyncio.gather(*asked) == [("abc" * 700)[:2000]] * 12
                assert await asyncio.gather(*(ask("xyz", 4) for _ in range(16))) == ["xyzx"] * 16
            finally:
                await worker.end()
