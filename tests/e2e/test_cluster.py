"""A front and a worker run on a Redis Cluster with four shards while one of its nodes restarts."""

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
    """Return the shard of each job that has a log."""
    shards = []
    for node in await broker.nodes():
        async for name in node.scan_iter(keys.pattern("log")):
            shard = keys.parts(name.decode(), "log")[0]
            shards.append(shard)
    return shards


async def test_the_fleet_on_a_cluster_outlives_a_restart_of_a_node(tmp_path: Path) -> None:
    """Requests under way when a node goes away end with all of their text.

    They are spread over the shards.
    """
    with redis_cluster(tmp_path) as cluster:
        async with (
            front(cluster.url, *CAP, *FLAGS) as door,
            open_broker(cluster.url, SHARDS) as broker,
            httpx.AsyncClient(base_url=door.url, timeout=120) as http,
        ):
            worker = await start_worker(cluster.url, broker.client(keys.PRESENCE), *CAP, *FLAGS)
            try:

                async def generate(prompt: str, max_tokens: int) -> str:
                    body = {"prompts": [prompt], "max_tokens": max_tokens}
                    answer = await http.post("/generate", json=body)
                    assert answer.status_code == 200, answer.text
                    text: str = answer.json()["completions"][0]
                    return text

                await door.ready()
                under_way = [asyncio.create_task(generate("abc", 2000)) for _ in range(12)]
                # New work is refused while a node is away, so all jobs have to be at work before.
                shards: list[str] = []
                async with asyncio.timeout(DEADLINE_S):
                    while len(shards) < len(under_way):
                        shards = await shards_at_work(broker)
                        await asyncio.sleep(0.005)

                node = cluster.owner(key_slot(shards.pop().encode()))
                node.stop()
                node.start()
                wait_until(lambda: cluster.states() == {"ok"}, "the cluster is whole again")

                assert await asyncio.gather(*under_way) == [("abc" * 700)[:2000]] * 12
                later = [generate("xyz", 4) for _ in range(16)]
                assert await asyncio.gather(*later) == ["xyzx"] * 16
            finally:
                await worker.end()
