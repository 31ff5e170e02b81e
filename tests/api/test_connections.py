"""Connections: idle ones, those that offer HTTP/2, and heads without end."""

import asyncio
import time

from redis.asyncio import Redis

from api.__main__ import server_config
from api.http.app import create_app
from api.http.protocol import MAX_HEAD_BYTES, without_offer
from shared.queue.broker import Broker
from shared.settings.settings import Settings
from tests.fixtures.api.fronts import process

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: front\r\n\r\n"
WITHOUT_THE_SETTING_S = 60.0
ANSWERED_S = 20.0


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    """Read one whole answer: its head, and as many bytes as the head announces."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


async def read_until_closed(reader: asyncio.StreamReader) -> bytes:
    """Read until the connection ends. A server that closes it in the middle of a request resets
    it."""
    received = b""
    try:
        while part := await reader.read(4096):
            received += part
    except ConnectionResetError:
        pass
    return received


async def test_an_idle_connection_is_closed_when_its_setting_says_so(redis_url: str) -> None:
    """A connection serves several requests and is closed after its idle time.

    Without the setting it would be kept far longer.
    """
    async with process(redis_url, keep_alive_s=3) as (_, client):
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        try:
            for _ in range(3):
                # The idle time begins with the answer, which may be read much later.
                idle_since_s = time.monotonic()
                writer.write(REQUEST)
                assert (await read_answer(reader)).startswith(b"HTTP/1.1 200")

            assert await asyncio.wait_for(reader.read(), WITHOUT_THE_SETTING_S) == b""
            assert 2.9 < time.monotonic() - idle_since_s < WITHOUT_THE_SETTING_S
        finally:
            writer.close()


def test_by_default_it_is_kept_longer_than_proxies_keep_theirs(redis: Redis) -> None:
    """Most proxies keep a connection for 60 s, and Traefik for 90 s."""
    for settings in (Settings(), Settings(keep_alive_s=7.5)):
        config = server_config(create_app(settings, Broker(redis)), settings)
        assert config.timeout_keep_alive == settings.keep_alive_s
    assert Settings().keep_alive_s > 90


async def test_a_client_that_offers_http2_is_answered_in_http_1(redis_url: str) -> None:
    """The body of a request with an offer is read, and so is the next request on its connection.

    Java's HttpClient offers HTTP/2 with its first request.
    """
    body = b'{"prompts": 7}'
    head = (
        b"POST /generate HTTP/1.1\r\n"
        b"Host: front\r\n"
        b"Content-Type: application/json\r\n"
        b"Connection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAoAAA\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )

    async with process(redis_url) as (_, client):
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        try:
            writer.write(head + body)
            refused = await asyncio.wait_for(read_answer(reader), ANSWERED_S)
            assert refused.startswith(b"HTTP/1.1 400")
            # The front names the wrong field, so it has read the body.
            assert b"prompts" in refused

            writer.write(REQUEST)
            health = await asyncio.wait_for(read_answer(reader), ANSWERED_S)
            assert health.startswith(b"HTTP/1.1 200")
        finally:
            writer.close()


def test_no_byte_of_a_body_is_taken_for_an_offer() -> None:
    body = b"\r\nUpgrade: h2c\r\n"
    head = b"POST / HTTP/1.1\r\nHost: front\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert without_offer(head + body) == head + body
    assert without_offer(body) == body

    offer = b"GET / HTTP/1.1\r\nUPGRADE: h2c\r\nHost: x\r\n\r\n"
    assert without_offer(offer) == b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_a_head_without_end_is_refused(redis_url: str) -> None:
    """One endless header, many headers and an endless path are all refused, because all callers
    share the front's memory and time."""
    one_header = (b"GET /healthz HTTP/1.1\r\nX-Long: ", b"a" * 1024)
    many_headers = (b"GET /healthz HTTP/1.1\r\n", b"X-Many: b\r\n" * 100)
    long_path = (b"GET /", b"a" * 1024)

    async with process(redis_url) as (_, client):
        for beginning, more in (one_header, many_headers, long_path):
            reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
            try:
                # The limit holds for later requests of a connection, too.
                writer.write(REQUEST)
                await read_answer(reader)

                writer.write(beginning + more * (4 * MAX_HEAD_BYTES // len(more)))
                refused = await asyncio.wait_for(read_until_closed(reader), ANSWERED_S)
                assert b"HTTP/1.1 431" in refused
            finally:
                writer.close()
        assert (await client.get("/healthz")).status_code == 200
