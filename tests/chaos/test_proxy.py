"""The proxy of the kill matrix, in front of a server that says everything in capitals."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from scripts.chaos.polling import came_true
from scripts.chaos.proxy import Proxy

WaitingLine = tuple[asyncio.StreamReader, asyncio.StreamWriter]


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


async def line_to(proxy: Proxy) -> WaitingLine:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def said(line: WaitingLine, text: bytes) -> bytes:
    line[1].write(text)
    return await line[0].readexactly(len(text))


async def test_it_carries_both_ways(proxy: Proxy) -> None:
    one = await line_to(proxy)
    other = await line_to(proxy)
    assert (await said(one, b"a"), await said(other, b"b"), await said(one, b"c")) == (
        b"A",
        b"B",
        b"C",
    )


@pytest.mark.parametrize("way", ["to_server", "to_client"])
async def test_a_trap_holds_from_its_word_on(proxy: Proxy, way: str) -> None:
    one = await line_to(proxy)
    other = await line_to(proxy)
    proxy.trap(b"now", getattr(proxy, way))
    assert await said(one, b"not yet") == b"NOT YET"
    waiting = [asyncio.create_task(said(one, b"now")), asyncio.create_task(said(other, b"then"))]

    async def is_sprung() -> bool:
        return proxy.is_sprung

    assert await came_true(is_sprung, 5)
    assert not any(task.done() for task in waiting)
    proxy.restore()
    assert await asyncio.gather(*waiting) == [b"NOW", b"THEN"]
    assert proxy.answer == b"NOW"


async def test_a_cut_line_is_broken_until_it_is_restored(proxy: Proxy) -> None:
    line = await line_to(proxy)
    assert await said(line, b"a") == b"A"
    proxy.cut()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await said(line, b"b")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await said(await line_to(proxy), b"c")
    proxy.restore()
    assert await said(await line_to(proxy), b"d") == b"D"


async def test_a_slow_line_is_late_both_ways(proxy: Proxy) -> None:
    line = await line_to(proxy)
    proxy.slow(0.05, 0.06)
    begun_s = time.monotonic()
    assert await said(line, b"a") == b"A"
    assert time.monotonic() - begun_s >= 0.1
