"""How long a connection is kept that carries no request."""

import asyncio
import time

from redis.asyncio import Redis

from api.__main__ import server_config
from api.app import create_app
from shared.broker import Broker
from shared.settings import Settings
from tests.api.fronts import process

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: front\r\n\r\n"
WITHOUT_THE_SETTING_S = 5.0


async def answer(reader: asyncio.StreamReader) -> bytes:
    """One whole answer, whose head says how long it is."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


async def test_an_idle_connection_is_closed_when_its_setting_says_so(redis_url: str) -> None:
    """Requests on one connection follow each other; then the server closes it, long before it would by itself."""
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
