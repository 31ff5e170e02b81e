"""The small HTTP server: a few paths, and nothing that a caller sends harms it."""

import asyncio

import httpx
import pytest

from shared.listener import Answer, listening
from shared.setting_layers import SettingsError


async def hello() -> Answer:
    return 200, "text/plain", b"hello"


async def test_it_answers_its_paths_alone() -> None:
    async with listening("p", "127.0.0.1", 0, {"/hello": hello}) as port, httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{port}"
        found = await client.get(f"{url}/hello?x=1")
        assert (found.status_code, found.text, found.headers["content-type"]) == (200, "hello", "text/plain")
        assert (await client.head(f"{url}/hello")).headers["content-length"] == "5"
        assert (await client.get(f"{url}/other")).status_code == 404
        refused = await client.post(f"{url}/hello", json={})
        assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("sent", [b"\r\n\r\n", b"x" * 20_000, b"\x00\xff \r\n\r\n", b"GET /hello"])
async def test_nonsense_harms_nobody(sent: bytes) -> None:
    async with listening("p", "127.0.0.1", 0, {"/hello": hello}) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        writer.write_eof()
        answer = await reader.read()
        assert answer == b"" or b" 404 " in answer
        writer.close()
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/hello")).text == "hello"


async def test_a_port_in_use_is_told_by_the_settings_name() -> None:
    async with listening("first", "127.0.0.1", 0, {}) as port:
        with pytest.raises(SettingsError, match="worker_port: cannot listen on "):
            async with listening("worker_port", "127.0.0.1", port, {}):
                pass
