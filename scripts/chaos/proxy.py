"""A TCP proxy between a role and the server it connects to, which holds bytes back, delays them or
cuts the connections.

The proxy knows nothing of the protocol that it carries, but can wait for a given word in it. Its
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
    """The handling of bytes that go one way.

    Each chunk is delayed by a random time between the two values of `delay_s` (seconds). While
    `open` is not set, bytes wait.
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

        # The word that is waited for and the direction to hold when it comes, and then the
        # connection on which it came: only that one's next bytes are the answer.
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

    def trap(self, word: bytes, way: Direction) -> None:
        """Hold the direction `way` from the moment at which `word` is on its way to the server.

        Held `to_server`, the word itself is kept back; held `to_client`, the answer to it is. The
        first bytes that the server answers are kept in `answer`.
        """
        self._trap = (word, way)
        self._trapped = None
        self.answer = b""

    @property
    def is_sprung(self) -> bool:
        """Return whether the word that `trap` waits for has come."""
        return self._trap is None

    def cut(self) -> None:
        """Break every connection, lose the bytes that are held, and refuse new connections until
        `restore`."""
        self.is_cut = True
        for writer in self._writers:
            writer.transport.abort()
        for pump in self._pumps:
            pump.cancel()

    def restore(self) -> None:
        """Let everything through again, and forget the trap."""
        self.is_cut = False
        self._trap = None
        self.to_server.release()
        self.to_client.release()

    def slow(self, from_s: float, to_s: float) -> None:
        """Delay every chunk from now on, in both directions, by a random time between both."""
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
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return

        # The proxy may have been cut while the connection to the server was made.
        if self.is_cut:
            writer.transport.abort()
            far_writer.transport.abort()
            return

        connection = object()
        self._pump(connection, reader, far_writer, way=self.to_server)
        self._pump(connection, far_reader, writer, way=self.to_client)

    def _pump(
        self,
        connection: object,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        way: Direction,
    ) -> None:
        pump = asyncio.create_task(self._carry(connection, reader, writer, way=way))
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
        way: Direction,
    ) -> None:
        """Forward bytes until one side closes, then close the other side too."""
        try:
            with suppress(ConnectionError):
                while data := await reader.read(_CHUNK):
                    # Look first: the trap may hold the very bytes that spring it.
                    self._look(connection, data, way)
                    await way.open.wait()
                    if any(way.delay_s):
                        await asyncio.sleep(random.uniform(*way.delay_s))
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.close()

    def _look(self, connection: object, data: bytes, way: Direction) -> None:
        """Spring the trap if its word is in `data`, or keep `data` if it is the answer to it."""
        if way is self.to_server and self._trap is not None:
            word, held_way = self._trap
            if word in data:
                held_way.hold()
                self._trap = None
                self._trapped = connection
            return
        is_answer = way is self.to_client and self._trapped is connection
        if is_answer and not self.answer:
            self.answer = data
