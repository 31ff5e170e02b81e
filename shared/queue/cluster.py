"""The server that has the keys of a hash tag: the only one, or a node of a Redis Cluster.

Redis itself tells whether it is a cluster. A connection looks its node up whenever it connects, so
a client outlives failovers and moved slots. If a node is away, or refuses a command without running
it (MOVED and its like), its connection looks again, and the command is sent to the node that it
finds. While a slot moves, commands for its keys are refused.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection
from redis.asyncio.cluster import ClusterParser
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    NoPermissionError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

ELSEWHERE = (AskError, ClusterDownError, TryAgainError)
"""Errors of a node when another node must run the command, or none can for now.

MOVED is an AskError to redis-py.
"""

_ANY = ""
Address = tuple[str, int]
Slots = list[tuple[int, int, Address]]
"""First and last slot of each range, and its owner; empty where there is no cluster."""


class CannotConnect(RedisConnectionError):
    """There was no connection, so nothing was sent."""


class Topology:
    """The nodes and their slots as `seed` or a node tells them, kept until one proves outdated."""

    def __init__(self, seed: Redis) -> None:
        self._kwargs = seed.connection_pool.connection_kwargs
        self._class = seed.connection_pool.connection_class
        self._seed: Address = (self._kwargs["host"], self._kwargs.get("port", 6379))
        self._known: Slots | None = None
        self._nodes: list[Address] = [self._seed]
        self._look_up: asyncio.Task[Slots] | None = None

    @property
    def is_one_server(self) -> bool:
        """True when Redis has said that it is no cluster."""
        return self._known == []

    async def address(self, tag: str) -> Address:
        """Return the server for keys with this hash tag.

        Raise redis-py's errors if there is none.
        """
        if self._known is None:
            # All callers share one look-up, which goes on when one of them is cancelled.
            if self._look_up is None or self._look_up.done():
                self._look_up = asyncio.create_task(self._ask_any_node())
            self._known = await asyncio.shield(self._look_up)
        if not self._known:
            return self._seed

        slot = key_slot(tag.encode())
        for first, last, owner in self._known:
            if first <= slot <= last:
                return owner
        self._known = None
        raise RedisConnectionError(f"no node of the cluster owns slot {slot}")

    def forget(self) -> bool:
        """Forget the slots, as a node was not where they say. Return whether asking again can help.

        Asking again cannot help with a single server, which stays where it is.
        """
        if self._known:
            self._known = None
        return self._known is None

    async def _ask_any_node(self) -> Slots:
        failure: Exception = RedisConnectionError("no node")
        for address in [*self._nodes, self._seed]:
            try:
                slots = await self._ask(address)
            except (RedisConnectionError, OSError) as error:
                failure = error
                continue
            self._nodes = sorted({owner for _, _, owner in slots})
            return slots
        raise CannotConnect(f"no node of the cluster answers: {failure}") from failure

    async def _ask(self, address: Address) -> Slots:
        host, port = address
        kwargs = {**self._kwargs, "host": host, "port": port}
        pool: ConnectionPool = ConnectionPool(connection_class=self._class, **kwargs)
        client: Redis = Redis.from_pool(pool)
        try:
            call = client.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
            return _parsed(await call, host)
        except ResponseError as error:
            # A server that is no cluster refuses the command, or does not know it.
            message = str(error)
            is_refused = isinstance(error, NoPermissionError) or "support disabled" in message
            if is_refused or "unknown" in message:
                return []
            raise
        finally:
            await client.aclose()


class Cluster:
    """A client for each hash tag, made when it is first asked for.

    Where there is no cluster, one client serves for all tags.
    """

    def __init__(self, seed: Redis) -> None:
        """Take the address and options of `seed`, a client over TCP that is never used itself."""
        self._topology = Topology(seed)
        self._kwargs: Mapping[str, Any] = seed.connection_pool.connection_kwargs
        self._class = _NodeConnection
        if issubclass(seed.connection_pool.connection_class, SSLConnection):
            self._class = _NodeTLSConnection
        self._clients: dict[str, Redis] = {}

    def client(self, tag: str) -> Redis:
        """Return the client for a tag.

        It is the same for all tags once it is known that there is only one server.
        """
        if self._topology.is_one_server:
            tag = _ANY
        if tag not in self._clients:
            pool: ConnectionPool = ConnectionPool(
                connection_class=self._class,
                topology=self._topology,
                tag=tag,
                parser_class=ClusterParser,
                retry_on_error=list(ELSEWHERE),
                **self._kwargs,
            )
            self._clients[tag] = Redis.from_pool(pool)
        return self._clients[tag]

    async def nodes(self, tags: Sequence[str]) -> list[Redis]:
        """Return one client for each server that has keys of these tags."""
        by_address: dict[Address, str] = {}
        for tag in tags:
            by_address[await self._topology.address(tag)] = tag
        return [self.client(tag) for tag in by_address.values()]

    async def by_server(self, tags: Sequence[str]) -> list[list[str]]:
        """Return the tags in parts: one part for each server that has keys of theirs now.

        The client of one tag serves for its whole part, as long as no slot moves.
        """
        parts: dict[Address, list[str]] = {}
        for tag in tags:
            parts.setdefault(await self._topology.address(tag), []).append(tag)
        return list(parts.values())

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.aclose()


class _NodeConnection(Connection):
    """A connection to the node that has the keys of its tag."""

    def __init__(self, *, topology: Topology, tag: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._topology = topology
        self._tag = tag

    async def connect(self) -> None:
        try:
            await super().connect()  # type: ignore[no-untyped-call]
        except RedisConnectionError as error:
            # The subclasses are refusals, such as a wrong password or a server that is still
            # loading.
            if type(error) is RedisConnectionError:
                raise CannotConnect(*error.args) from error
            raise

    async def _connect(self) -> None:
        self.host, self.port = await self._topology.address(self._tag)
        try:
            await super()._connect()  # type: ignore[no-untyped-call]
        except OSError as error:
            if not self._topology.forget():
                raise
            raise RedisConnectionError(f"{self.host}:{self.port} is away: {error}") from error

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        try:
            await super().send_packed_command(*args, **kwargs)
        except RuntimeError as error:
            # uvloop raises it for a transport that the server has closed meanwhile.
            if "closed" not in str(error):
                raise
            raise RedisConnectionError(f"the connection was closed: {error}") from error

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().read_response(*args, **kwargs)
        except ELSEWHERE:
            self._topology.forget()
            raise


class _NodeTLSConnection(_NodeConnection, SSLConnection):
    """The same over TLS."""


def _parsed(answer: Sequence[Sequence[Any]], answered_by: str) -> Slots:
    """Return the slots of an answer to CLUSTER SLOTS, given by the host `answered_by`.

    The answer is a list of [first, last, [host, port, ...], replicas...].
    """
    slots = []
    for first, last, owner, *_ in answer:
        # A node that does not know its own name gives none: it is the host that was asked.
        host = owner[0] or answered_by.encode()
        slots.append((first, last, (host.decode(), owner[1])))
    return slots
