"""A Redis Cluster of three nodes for tests, each a real redis-server on free ports."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from tests.polling import wait_until
from tests.redis_server import RedisServer, free_port, redis_executable

_SLOTS = 16384
_BUS = 10_000  # a node's second port is its first and this
_OPTIONS = {
    "cluster-enabled": "yes",
    "cluster-config-file": "nodes.conf",
    "cluster-node-timeout": 1000,
    "appendonly": "yes",
    "appendfsync": "always",
}


@dataclass(frozen=True)
class RedisCluster:
    nodes: tuple[RedisServer, ...]

    @property
    def url(self) -> str:
        return self.nodes[0].url

    def owner(self, slot: int) -> RedisServer:
        """The node that the slots were given to at first."""
        return self.nodes[slot * len(self.nodes) // _SLOTS]

    def states(self, *, but: RedisServer | None = None) -> set[str]:
        """What the nodes that run make of the cluster: `ok`, `fail`."""
        return {_state(node) for node in self.nodes if node is not but}


@contextmanager
def redis_cluster(directory: Path, size: int = 3) -> Iterator[RedisCluster]:
    """One whose slots are all served."""
    nodes: list[RedisServer] = []
    try:
        for number in range(size):
            home = directory / str(number)
            home.mkdir()
            nodes.append(RedisServer(home, _two_free_ports(), redis_executable(), more=_OPTIONS))
            nodes[-1].start()
        for number, node in enumerate(nodes):
            _ask(node, "SET-CONFIG-EPOCH", number + 1)
            _ask(
                node,
                "ADDSLOTS",
                *(slot for slot in range(_SLOTS) if slot * size // _SLOTS == number),
            )
            _ask(node, "MEET", "127.0.0.1", nodes[0].port)
        cluster = RedisCluster(tuple(nodes))
        wait_until(lambda: cluster.states() == {"ok"}, "the cluster is formed")
        yield cluster
    finally:
        for node in nodes:
            node.stop()


@contextmanager
def replica_of(node: RedisServer, cluster: RedisCluster, directory: Path) -> Iterator[RedisServer]:
    """One more node, with all that `node` has; the others know it."""
    directory.mkdir()
    replica = RedisServer(directory, _two_free_ports(), redis_executable(), more=_OPTIONS)
    replica.start()
    try:
        own_id = _ask(replica, "MYID").decode()
        _ask(replica, "MEET", "127.0.0.1", node.port)
        everybody = (*cluster.nodes, replica)
        wait_until(
            lambda: all(_num_known(each) == len(everybody) for each in everybody), "all have met"
        )
        _ask(replica, "REPLICATE", _ask(node, "MYID"))
        for each in cluster.nodes:
            wait_until(
                lambda each=each: own_id in str(_ask(each, "SLOTS")), "it is known as a replica"
            )  # type: ignore[misc]
        yield replica
    finally:
        replica.stop()


def move(slot: int, origin: RedisServer, target: RedisServer) -> None:
    """Give one slot with its keys to another node."""
    target_id = _ask(target, "MYID")
    _ask(target, "SETSLOT", slot, "IMPORTING", _ask(origin, "MYID"))
    _ask(origin, "SETSLOT", slot, "MIGRATING", target_id)
    with redis.Redis.from_url(origin.url) as source:
        while names := _ask(origin, "GETKEYSINSLOT", slot, 100):
            source.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *names)  # type: ignore[no-untyped-call]
    for node in (target, origin):
        _ask(node, "SETSLOT", slot, "NODE", target_id)


def _ask(node: RedisServer, *words: object) -> Any:
    """What it answers to CLUSTER and `words`."""
    with redis.Redis.from_url(node.url) as client:
        return client.execute_command("CLUSTER", *words)  # type: ignore[no-untyped-call]


def _told(node: RedisServer) -> dict[str, str]:
    return dict(line.split(":") for line in _ask(node, "INFO").decode().split())


def _num_known(node: RedisServer) -> int:
    return int(_told(node)["cluster_known_nodes"])


def _state(node: RedisServer) -> str:
    told = _told(node)
    return told["cluster_state"] if int(told["cluster_slots_assigned"]) == _SLOTS else "forming"


def _two_free_ports() -> int:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        port = free_port()
        if port + _BUS > 65_535:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port + _BUS))
            except OSError:
                continue
            return port
    raise RuntimeError("no two free ports")
