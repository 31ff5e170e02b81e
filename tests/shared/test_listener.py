"""The small HTTP server answers a few paths, and nothing that a caller sends harms it."""

import asyncio
import errno
import os
import socket

import httpx
import pytest

from shared.listener import Answer, listening, open_port, port_of
from shared.settings.settings import Settings, SettingsError

HERE = Settings(host="127.0.0.1", port=0)


async def hello() -> Answer:
    return 200, "text/plain", b"hello"


async def test_it_answers_its_paths_alone() -> None:
    async with listening(HERE, "port", {"/hello": hello}) as port, httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{port}"
        answer = await client.get(f"{url}/hello?x=1")
        assert answer.status_code == 200
        assert answer.text == "hello"
        assert answer.headers["content-type"] == "text/plain"

        assert (await client.head(f"{url}/hello")).headers["content-length"] == "5"
        assert (await client.get(f"{url}/other")).status_code == 404

        refused = await client.post(f"{url}/hello", json={})
        assert refused.status_code == 405
        assert refused.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("sent", [b"\r\n\r\n", b"x" * 20_000, b"\x00\xff \r\n\r\n", b"GET /hello"])
async def test_nonsense_harms_nobody(sent: bytes) -> None:
    async with listening(HERE, "port", {"/hello": hello}) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        writer.write_eof()
        answer = await reader.read()
        assert answer == b"" or b" 404 " in answer

        writer.close()
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/hello")).text == "hello"


async def test_a_port_in_use_is_told_by_the_settings_name() -> None:
    async with listening(HERE, "port", {}) as port:
        settings = Settings(host="127.0.0.1", worker_port=port)
        with pytest.raises(SettingsError, match="worker_port: cannot listen on "):
            async with listening(settings, "worker_port", {}):
                pass


async def test_a_host_has_one_port_on_all_its_addresses() -> None:
    """A host with two addresses, as `localhost` may have, answers on both at one port."""
    settings = Settings(host="localhost", port=0)

    async with (
        listening(settings, "port", {"/hello": hello}) as port,
        httpx.AsyncClient() as client,
    ):
        assert (await client.get(f"http://localhost:{port}/hello")).text == "hello"

    with open_port(settings, "port") as sockets:
        addresses = socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)
        families = {family for family, *_ in addresses}
        assert sockets
        for each in sockets:
            assert each.getsockname()[1] == port_of(sockets)
            assert each.family in families


async def test_small_answers_are_sent_at_once() -> None:
    """Nagle's algorithm is off for each connection, since streams are small writes.

    asyncio turns it off only for sockets that it knows to be TCP.
    """
    no_delay: list[int] = []

    async def note_option(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        no_delay.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with open_port(HERE, "port") as (listener,):
        async with await asyncio.start_server(note_option, sock=listener):
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of([listener]))
            await reader.read()
            writer.close()

    assert no_delay == [1]


@pytest.mark.parametrize(
    ("number", "setting", "words"),
    [
        (errno.EACCES, "port", "permission denied"),
        (errno.EADDRINUSE, "port", "address already in use"),
        (errno.EADDRNOTAVAIL, "host", "cannot assign requested address"),
        (errno.EAFNOSUPPORT, "host", "address family not supported"),
        (errno.EINVAL, "host", "invalid argument"),
    ],
)
def test_the_setting_at_fault_is_named(
    number: int, setting: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with (
        pytest.raises(SettingsError, match=f"^{setting}: .*{words}"),
        open_port(Settings(port=80), "port"),
    ):
        pass
