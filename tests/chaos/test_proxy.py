"""The proxy of the kill matrix, in front of a server that answers in capitals."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from scripts.chaos.polling import came_true
from scripts.chaos.proxy import Proxy

Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data.upper())
    writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    proxy = await Proxy(host, port).start()
    yield proxy
    await proxy.close()
    server.close()


async def line_to(proxy: Proxy) -> Line:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def answer(line: Line, text: bytes) -> bytes:
    """Send a text, and return what comes back."""
    reader, writer = line
    writer.write(text)
    return await reader.readexactly(len(text))


async def test_it_carries_both_ways(proxy: Proxy) -> None:
    one = await line_to(proxy)
    other = await line_to(proxy)
    assert await answer(one, b"a") == b"A"
    assert await answer(other, b"b") == b"B"
    assert await answer(one, b"c") == b"C"


@pytest.mark.parametrize("way", ["to_server", "to_client"])
async def test_a_trap_holds_from_its_word_on(proxy: Proxy, way: str) -> None:
    one = await line_to(proxy)
    other = await line_to(proxy)
    proxy.trap(b"now", getattr(proxy, way))
    assert await answer(one, b"not yet") == b"NOT YET"

    trapped = asyncio.create_task(answer(one, b"now"))
    behind = asyncio.create_task(answer(other, b"then"))

    async def is_sprung() -> bool:
        return proxy.is_sprung

    assert await came_true(is_sprung, 5)
    assert not trapped.done()
    assert not behind.done()

    proxy.restore()
    assert await trapped == b"NOW"
    assert await behind == b"THEN"
    assert proxy.answer == b"NOW"


async def test_a_cut_line_is_broken_until_it_is_restored(proxy: Proxy) -> None:
    line = await line_to(proxy)
    assert await answer(line, b"a") == b"A"

    proxy.cut()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await answer(line, b"b")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await answer(await line_to(proxy), b"c")

    proxy.restore()
    assert await answer(await line_to(proxy), b"d") == b"D"


async def test_a_slow_line_is_late_both_ways(proxy: Proxy) -> None:
    line = await line_to(proxy)
    proxy.slow(0.05, 0.06)
    begun_s = time.monotonic()
    assert await answer(line, b"a") == b"A"
    # The two delays add up to 0.11 s.
    assert time.monotonic() - begun_s >= 0.1
