"""A sender on real sockets, between hostile resolvers and hostile receivers.

`RESOLVED` are names that the resolver of a test knows. Whatever else a receiver does, the sender
returns in time, and connects to nothing but the address that was checked.
"""

import asyncio
import socket
import ssl
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from shared.webhooks.sender import Reply, Sender
from shared.webhooks.targets import networks
from tests.fixtures.polling import DEADLINE_S
from tests.fixtures.receiver import Handler, receiving

HERE = networks(("127.0.0.0/8",))
HEADERS = {"webhook-id": "evt_1"}
OK = b"HTTP/1.1 200 OK\r\n\r\n"


class Resolver:
    """A resolver whose answers are in order, the last one again and again."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.num_calls = 0

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.num_calls += 1
        if len(self.answers) > 1:
            return self.answers.pop(0)
        return self.answers[0]


async def post(sender: Sender, url: str) -> Reply:
    return await sender.post(url, b'{"a":1}', HEADERS)


async def test_a_receiver_gets_the_payload_once_with_its_headers() -> None:
    async with receiving() as receiver:
        reply = await post(Sender(HERE), f"{receiver.url}?key=1")
    assert (reply.status, reply.error) == (200, "")
    [got] = receiver.got
    assert got.line == "POST /hooks?key=1 HTTP/1.1"
    assert got.body == b'{"a":1}'
    assert got.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["webhook-id"] == "evt_1"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    async with receiving() as receiver:
        receiver.answers = [status]
        reply = await post(Sender(HERE), receiver.url)
    assert reply.status == status
    assert len(receiver.got) == 1


async def test_a_name_is_resolved_once_and_called_at_the_address_that_was_checked() -> None:
    """DNS rebinding: the second answer would be another receiver."""
    async with receiving("127.0.0.1") as good, receiving("127.0.0.2", port=good.port) as evil:
        resolver = Resolver(["127.0.0.1"], ["127.0.0.2"])
        only_good = networks(("127.0.0.1/32",))
        url = f"http://rebound.test:{good.port}/hooks"
        reply = await post(Sender(only_good, resolve=resolver), url)
    assert reply.status == 200
    assert (len(good.got), len(evil.got), resolver.num_calls) == (1, 0, 1)
    assert good.got[0].headers["host"] == f"rebound.test:{good.port}"


async def test_no_part_of_the_system_resolves_it_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The resolver of the system answers first with this address, and never again."""
    asked: list[object] = []

    def getaddrinfo(host: object, port: int, *rest: object, **more: object) -> list[object]:
        asked.append(host)
        assert len(asked) == 1, asked
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    async with receiving() as receiver:
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        reply = await post(Sender(HERE), f"http://rebound.test:{receiver.port}/")
    assert reply.status == 200
    assert asked == [b"rebound.test"]


@pytest.mark.parametrize(
    "addresses",
    [
        ["8.8.8.8", "127.0.0.1"],
        ["127.0.0.1", "8.8.8.8"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["2002:7f00:1::1"],
        ["::1"],
        ["0.0.0.0"],
        ["169.254.169.254"],
    ],
)
async def test_mixed_and_disguised_answers_are_refused_before_a_connection(
    addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it connects")

    monkeypatch.setattr(asyncio, "open_connection", never)
    resolver = Resolver(addresses)
    reply = await post(Sender((), resolve=resolver), "https://mixed.test/")
    assert (reply.status, reply.error) == (0, "address_refused")


async def test_the_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiving() as proxy, receiving() as receiver:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert (await post(Sender(HERE), receiver.url)).status == 200
    assert (len(proxy.got), len(receiver.got)) == (0, 1)


async def test_the_next_address_is_called_where_the_first_refuses() -> None:
    async with receiving("127.0.0.2") as receiver:
        resolver = Resolver(["127.0.0.1", "127.0.0.2"])
        url = f"http://two.test:{receiver.port}/"
        assert (await post(Sender(HERE, resolve=resolver), url)).status == 200


@pytest.mark.parametrize(
    ("resolver", "error"),
    [
        (Resolver([]), "unresolved"),
        (Resolver(["127.0.0.1"]), "unreachable"),
    ],
)
async def test_what_cannot_be_reached_is_told(resolver: Resolver, error: str) -> None:
    async with receiving() as receiver:
        pass  # nobody listens at its port any more
    url = f"http://nobody.test:{receiver.port}/"
    assert (await post(Sender(HERE, resolve=resolver), url)).error == error


async def test_a_name_that_does_not_exist_is_told() -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    assert (await post(Sender(HERE, resolve=resolve), "https://x.test/")).error == "unresolved"


async def _drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"x: y\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


async def _say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def _send_headers_without_end(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"x: " + b"y" * 4096 + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0)


async def _send_interim_answers_without_end(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0)  # the sender shares this event loop


async def _speak_another_protocol(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    await writer.drain()


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _send_a_body_without_end(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    writer.write(OK)
    while True:
        writer.write(bytes(65536))
        await writer.drain()


async def _answer_after_an_early_hint(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" + OK)
    await writer.drain()


@pytest.mark.parametrize(
    ("handler", "status", "error"),
    [
        (_drip, 0, "timeout"),
        (_say_nothing, 0, "timeout"),
        (_send_headers_without_end, 0, "bad_answer"),
        (_send_interim_answers_without_end, 0, "bad_answer"),
        (_speak_another_protocol, 0, "bad_answer"),
        (_hang_up, 0, "bad_answer"),
        (_send_a_body_without_end, 200, ""),
        (_answer_after_an_early_hint, 200, ""),
    ],
)
async def test_a_hostile_receiver_holds_nothing_up(
    handler: Handler, status: int, error: str
) -> None:
    async with receiving() as receiver:
        receiver.handler = handler
        timeout_s = 0.3 if error == "timeout" else DEADLINE_S
        reply = await post(Sender(HERE, timeout_s=timeout_s), receiver.url)
    assert (reply.status, reply.error) == (status, error)
    assert error != "timeout" or reply.took_ms >= 300


async def test_a_resolver_that_hangs_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def resolve(host: str, port: int) -> list[str]:
        loop.call_soon_threadsafe(asked.set)
        time.sleep(0.5)
        return []

    sender = Sender(HERE, timeout_s=0.1, resolve=resolve)
    assert (await post(sender, "https://slow.test/")).error == "timeout"
    await asyncio.wait_for(asked.wait(), DEADLINE_S)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of its own authority, for receiver.test, with its key in the same file."""
    folder = tmp_path_factory.mktemp("certificate")
    path = folder / "receiver.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=receiver.test"]
    command += ["-addext", "subjectAltName=DNS:receiver.test"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes((folder / "cert.pem").read_bytes() + (folder / "key.pem").read_bytes())
    return path


@pytest.mark.parametrize(
    ("host", "is_trusted", "status", "error"),
    [
        ("receiver.test", True, 200, ""),
        ("another.test", True, 0, "tls_failed"),
        ("receiver.test", False, 0, "tls_failed"),
    ],
)
async def test_the_certificate_is_that_of_the_name_in_the_url(
    certificate: Path, host: str, is_trusted: bool, status: int, error: str
) -> None:
    """The connection goes to an address, and the name is asked for and checked all the same."""
    names: list[str | None] = []
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(certificate)
    server_tls.sni_callback = lambda socket, name, context: names.append(name)
    tls = ssl.create_default_context(cafile=str(certificate)) if is_trusted else None
    async with receiving(tls=server_tls) as receiver:
        sender = Sender(HERE, tls=tls, resolve=Resolver(["127.0.0.1"]))
        reply = await post(sender, f"https://{host}:{receiver.port}/hooks")
    assert (reply.status, reply.error) == (status, error)
    assert names == [host]
    assert len(receiver.got) == (1 if status else 0)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/\r\nX: 1", "http://a@127.0.0.1/", "gopher://127.0.0.1/"]
)
async def test_a_url_that_could_smuggle_something_is_not_even_resolved(url: str) -> None:
    resolver = Resolver(["127.0.0.1"])
    assert (await post(Sender(HERE, resolve=resolver), url)).error == "bad_url"
    assert resolver.num_calls == 0
