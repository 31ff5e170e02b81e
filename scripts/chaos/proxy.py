"""A TCP proxy between a client and a server that can hold, delay or cut its connections.

The proxy knows nothing of the protocol that it carries, but it can wait for a given word in it. Its
two directions are `to_server` and `to_client`.
"""

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

_CHUNK = 1 << 16


@dataclass
class Direction:
    """The state of one direction.

    Each chunk is delayed by a random time between the two values of `delay_s`, in seconds. While
    `open` is not set, chunks wait.
    """

    open: asyncio.Event = field(default_factory=asyncio.Event)
    delay_s: tuple[float, float] = (0.0, 0.0)

    def hold(self) -> None:
        self.open.clear()

    def release(self) -> None:
        self.open.set()


class Proxy:
    """A proxy that listens on a free port of the loopback and forwards to `host:port`."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.is_cut = False
        self._server: asyncio.Server | None = None

        # Before the trap springs: its word, and the direction to hold when the word comes.
        # Afterwards: the connection on which the word came, which the answer comes on too.
        self._trap: tuple[bytes, Direction] | None = None
        self._trapped: object = None
        self.answer = b""

        self.to_server = Direction()
        self.to_client = Direction()
        self.to_server.release()
        self.to_client.release()

    async def start(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    @property
    def port(self) -> int:
        assert self._server is not None, "not started"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def trap(self, word: bytes, direction: Direction) -> None:
        """Hold a direction from the moment at which `word` is on its way to the server.

        If `to_server` is held, the word itself is held back. If `to_client` is held, the answer to
        it is. The first bytes of the answer are kept in `answer`.
        """
        self._trap = (word, direction)
        self._trapped = None
        self.answer = b""

    @property
    def is_sprung(self) -> bool:
        """Return whether the word of the last `trap` has come."""
        return self._trap is None

    def cut(self) -> None:
        """Break all connections, and refuse new ones until `restore`.

        Bytes that are held are lost.
        """
        self.is_cut = True
        for writer in self._writers:
            writer.transport.abort()
        for pump in self._pumps:
            pump.cancel()

    def restore(self) -> None:
        """Accept connections and forward bytes again, and remove the trap."""
        self.is_cut = False
        self._trap = None
        self.to_server.release()
        self.to_client.release()

    def slow(self, from_s: float, to_s: float) -> None:
        """Delay each chunk in both directions by a random time between `from_s` and `to_s`."""
        self.to_server.delay_s = (from_s, to_s)
        self.to_client.delay_s = (from_s, to_s)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return

        # The proxy may have been cut while the connection to the server was made.
        if self.is_cut:
            writer.transport.abort()
            server_writer.transport.abort()
            return

        connection = object()
        self._pump(connection, reader, server_writer, direction=self.to_server)
        self._pump(connection, server_reader, writer, direction=self.to_client)

    def _pump(
        self,
        connection: object,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        direction: Direction,
    ) -> None:
        """Forward bytes in a task, which `cut` cancels."""
        pump = asyncio.create_task(self._carry(connection, reader, writer, direction=direction))
        self._writers.add(writer)
        self._pumps.add(pump)
        pump.add_done_callback(self._pumps.discard)
        pump.add_done_callback(lambda _: self._writers.discard(writer))

    async def _carry(
        self,
        connection: object,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        direction: Direction,
    ) -> None:
        """Forward bytes until one side closes, then close the other side too."""
        try:
            with suppress(ConnectionError):
                while data := await reader.read(_CHUNK):
                    # The trap comes first, as it may hold the very bytes that spring it.
                    self._inspect(connection, data, direction)
                    await direction.open.wait()
                    if any(direction.delay_s):
                        await asyncio.sleep(random.uniform(*direction.delay_s))
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.close()

    def _inspect(self, connection: object, data: bytes, direction: Direction) -> None:
        """Spring the trap if its word is in `data`, or keep `data` if it is the answer to it."""
        if direction is self.to_server and self._trap is not None:
            word, held_direction = self._trap
            if word in data:
                held_direction.hold()
                self._trap = None
                self._trapped = connection
            return
        is_answer = direction is self.to_client and self._trapped is connection
        if is_answer and not self.answer:
            self.answer = data
