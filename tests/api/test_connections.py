"""How long a connection is kept that carries no request."""

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
WITHOUT_THE_SETTING_S = 5.0
ANSWERED_S = 20.0


async def answer(reader: asyncio.StreamReader) -> bytes:
    """One whole answer, whose head says how long it is."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


async def test_an_idle_connection_is_closed_when_its_setting_says_so(redis_url: str) -> None:
    """Requests on one connection follow each other; then the server closes it, long before it would
    by itself."""
    async with process(redis_url, keep_alive_s=0.5) as (_, client):
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        try:
            for _ in range(3):
                writer.write(REQUEST)
                assert (await answer(reader)).startswith(b"HTTP/1.1 200")
            idle_since_s = time.monotonic()
            assert await asyncio.wait_for(reader.read(), WITHOUT_THE_SETTING_S) == b""
            assert 0.4 < time.monotonic() - idle_since_s < WITHOUT_THE_SETTING_S
        finally:
            writer.close()


def test_by_default_it_is_kept_longer_than_proxies_keep_theirs(redis: Redis) -> None:
    """Sixty seconds is what most of them do; Traefik has ninety."""
    for settings in (Settings(), Settings(keep_alive_s=7.5)):
        config = server_config(create_app(settings, Broker(redis)), settings)
        assert config.timeout_keep_alive == settings.keep_alive_s
    assert Settings().keep_alive_s > 90


async def test_a_client_that_offers_http2_is_answered_in_http_1(redis_url: str) -> None:
    """As Java's HttpClient does with its first request: its body is read, and what follows on the
    connection."""
    body = b'{"prompts": 7}'
    offers = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAA\r\n"
    head = b"POST /generate HTTP/1.1\r\nHost: front\r\nContent-Type: application/json\r\n"
    async with process(redis_url) as (_, client):
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        try:
            writer.write(head + offers + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            refused = await asyncio.wait_for(answer(reader), ANSWERED_S)
            # It has read what is wrong.
            assert refused.startswith(b"HTTP/1.1 400") and b"prompts" in refused
            writer.write(REQUEST)
            answered = await asyncio.wait_for(answer(reader), ANSWERED_S)
            assert answered.startswith(b"HTTP/1.1 200")
        finally:
            writer.close()


def test_no_byte_of_a_body_is_taken_for_an_offer() -> None:
    body = b"\r\nUpgrade: h2c\r\n"
    head = b"POST / HTTP/1.1\r\nHost: front\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert without_offer(head + body) == head + body
    assert without_offer(body) == body
    assert (
        without_offer(b"GET / HTTP/1.1\r\nUPGRADE: h2c\r\nHost: x\r\n\r\n")
        == b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    )


async def test_a_head_without_end_is_refused(redis_url: str) -> None:
    """However it is spread: one header, many, or the path. Memory and time of the front are
    everybody's."""
    beginnings = {
        b"GET /healthz HTTP/1.1\r\nX-Long: ": b"a" * 1024,
        b"GET /healthz HTTP/1.1\r\n": b"X-Many: b\r\n" * 100,
        b"GET /": b"a" * 1024,
    }
    async with process(redis_url) as (_, client):
        for beginning, more in beginnings.items():
            reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
            try:
                writer.write(REQUEST)
                await answer(reader)
                writer.write(beginning + more * (4 * MAX_HEAD_BYTES // len(more)))
                assert b"HTTP/1.1 431" in await asyncio.wait_for(
                    said_before_the_end(reader), ANSWERED_S
                )
            finally:
                writer.close()
        assert (await client.get("/healthz")).status_code == 200


async def said_before_the_end(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection ends; a server that closes it in the middle of a request
    resets it."""
    said = b""
    try:
        while part := await reader.read(4096):
            said += part
    except ConnectionResetError:
        pass
    return said
