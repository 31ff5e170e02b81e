"""A TCP proxy between a role and what it connects to: holds bytes back, delays them, or cuts the
line.

Knows nothing of what it carries, but may be told a word to wait for. One direction is `to_server`,
one `to_client`.
"""

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

_CHUNK = 1 << 16


@dataclass
class Direction:
    """What happens to bytes on their way: all come later by `delay_s` (from, to); while `open` is
    not set they wait."""

    open: asyncio.Event = field(default_factory=asyncio.Event)
    delay_s: tuple[float, float] = (0.0, 0.0)

    def hold(self) -> None:
        self.open.clear()

    def release(self) -> None:
        self.open.set()


class Proxy:
    """Listens on a free port of the loopback and forwards to `host:port`."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.is_cut = False
        self._trap: tuple[bytes, Direction] | None = None
        self._trapped: object = None
        self.answer = b""
        self._server: asyncio.Server | None = None
        self.to_server, self.to_client = Direction(), Direction()
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
        """Hold `way` from the moment at which `word` is on its way to the server: with it, or with
        its answer.

        What the server says to it, in the end, is `answer`.
        """
        self._trap, self._trapped, self.answer = (word, way), None, b""

    @property
    def is_sprung(self) -> bool:
        """Whether the word has come that `trap` waits for."""
        return self._trap is None

    def cut(self) -> None:
        """Break every connection, with whatever is held, and refuse new ones until `restore`."""
        self.is_cut = True
        for writer in self._writers:
            writer.transport.abort()
        for pump in self._pumps:
            pump.cancel()

    def restore(self) -> None:
        """Let everything through again."""
        self.is_cut, self._trap = False, None
        self.to_server.release()
        self.to_client.release()

    def slow(self, from_s: float, to_s: float) -> None:
        """Whatever comes from now on, either way, comes so much later."""
        self.to_server.delay_s = self.to_client.delay_s = (from_s, to_s)

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
        if self.is_cut:
            writer.transport.abort()
            far_writer.transport.abort()
            return
        line = object()
        self._pump(line, reader, far_writer, self.to_server)
        self._pump(line, far_reader, writer, self.to_client)

    def _pump(
        self,
        line: object,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        way: Direction,
    ) -> None:
        pump = asyncio.create_task(self._carry(line, reader, writer, way))
        self._writers.add(writer)
        self._pumps.add(pump)
        pump.add_done_callback(self._pumps.discard)
        pump.add_done_callback(lambda _: self._writers.discard(writer))

    async def _carry(
        self,
        line: object,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        way: Direction,
    ) -> None:
        """Until one side closes; then the other side is closed too."""
        try:
            with suppress(ConnectionError):
                while data := await reader.read(_CHUNK):
                    self._look(line, data, way)
                    await way.open.wait()
                    if any(way.delay_s):
                        await asyncio.sleep(random.uniform(*way.delay_s))
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.close()

    def _look(self, line: object, data: bytes, way: Direction) -> None:
        if way is self.to_server and self._trap is not None and self._trap[0] in data:
            self._trap[1].hold()
            self._trap, self._trapped = None, line
        elif way is self.to_client and self._trapped is line and not self.answer:
            self.answer = data
