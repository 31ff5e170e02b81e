"""A Redis Cluster of three nodes for tests, each a real redis-server on free ports."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
            with redis.Redis.from_url(node.url) as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)  # type: ignore[no-untyped-call]
                own = [slot for slot in range(_SLOTS) if slot * size // _SLOTS == number]
                client.execute_command("CLUSTER", "ADDSLOTS", *own)  # type: ignore[no-untyped-call]
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)  # type: ignore[no-untyped-call]
        cluster = RedisCluster(tuple(nodes))
        wait_until(lambda: cluster.states() == {"ok"}, "the cluster is formed")
        yield cluster
    finally:
        for node in nodes:
            node.stop()


def move(slot: int, origin: RedisServer, target: RedisServer) -> None:
    """Give one slot with its keys to another node."""
    with redis.Redis.from_url(origin.url) as source, redis.Redis.from_url(target.url) as sink:
        ids = [client.execute_command("CLUSTER", "MYID").decode() for client in (source, sink)]  # type: ignore[no-untyped-call]
        sink.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])  # type: ignore[no-untyped-call]
        source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])  # type: ignore[no-untyped-call]
        while names := source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):  # type: ignore[no-untyped-call]
            source.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *names)  # type: ignore[no-untyped-call]
        for client in (sink, source):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])  # type: ignore[no-untyped-call]


def _state(node: RedisServer) -> str:
    with redis.Redis.from_url(node.url) as client:
        told = client.execute_command("CLUSTER", "INFO")  # type: ignore[no-untyped-call]
    fields = told if isinstance(told, dict) else dict(line.split(":") for line in told.decode().split())
    slots_ok, known = int(fields["cluster_slots_assigned"]), fields["cluster_state"]
    return known if slots_ok == _SLOTS else "forming"


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
