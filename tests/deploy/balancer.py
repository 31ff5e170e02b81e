"""HAProxy with the repository's own configuration, for tests: only its addresses are others."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.polling import until
from tests.redis_server import free_port

CONFIG = Path(__file__).parents[2] / "deploy" / "compose" / "haproxy.cfg"
HAPROXY = shutil.which("haproxy") or "/usr/sbin/haproxy"
_TEMPLATE = re.compile(r"server-template (\w+) \S+ api:8000 (.*) resolvers network init-addr none")


def with_fronts(config: str, ports: Sequence[int]) -> str:
    """The configuration with these fronts in place of the names of a container network."""
    lines = "\n    ".join(
        rf"server \g<1>{number} 127.0.0.1:{port} \2" for number, port in enumerate(ports, 1)
    )
    changed, count = _TEMPLATE.subn(lines, config)
    assert count == 2, "both backends have been given their fronts"
    return changed


@asynccontextmanager
async def balancing(
    directory: Path, change: Callable[[str], str]
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Clients of the balancer and of its own pages (`/metrics`); `change` gives the configuration
    its upstreams."""
    port, watch = free_port(), free_port()
    config = change(CONFIG.read_text())
    config = config.replace("bind *:8000", f"bind 127.0.0.1:{port}").replace(
        "bind *:8404", f"bind 127.0.0.1:{watch}"
    )
    (directory / "haproxy.cfg").write_text(config)
    process = await asyncio.create_subprocess_exec(
        HAPROXY, "-q", "-db", "-f", str(directory / "haproxy.cfg")
    )
    try:
        async with (
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{watch}", timeout=60) as pages,
        ):
            await until(lambda: _is_up(process, pages), "the balancer listens")
            yield client, pages
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _is_up(process: asyncio.subprocess.Process, pages: httpx.AsyncClient) -> bool:
    assert process.returncode is None, f"haproxy ended with {process.returncode}"
    try:
        return (await pages.get("/healthz")).status_code == 200
    except httpx.TransportError:
        return False


async def num_up(pages: httpx.AsyncClient, backend: str) -> int:
    """How many fronts of a backend pass their health check."""
    lines = (await pages.get("/metrics")).text.splitlines()
    found = [
        line
        for line in lines
        if line.startswith(f'haproxy_backend_active_servers{{proxy="{backend}"')
    ]
    return int(found[0].split()[1])


@dataclass
class RudeFront:
    """Passes every check, reads every other request, and hangs up without a word; remembers what
    came."""

    heads: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith(("GET /readyz", "GET /healthz")):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        elif head.startswith("GET /name"):
            self.heads.append(head)
            name = writer.get_extra_info("sockname")[0].encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(name), name))
        else:
            self.heads.append(head)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def rude(*hosts: str) -> AsyncIterator[tuple[RudeFront, int]]:
    """One such front on one free port of every host (by default 127.0.0.1), and the port."""
    front, port = RudeFront(), free_port()
    servers = [
        await asyncio.start_server(front.serve, host, port) for host in hosts or ("127.0.0.1",)
    ]
    try:
        yield front, port
    finally:
        for server in servers:
            server.close()


class Names(asyncio.DatagramProtocol):
    """A name server that knows the addresses of one name, whatever it is asked for."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = list(addresses)

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        end = data.index(b"\0", 12) + 5  # a name, its type and class
        is_v4 = data[end - 4 : end - 2] == b"\0\1"
        answers = (
            [bytes(map(int, address.split("."))) for address in self.addresses] if is_v4 else []
        )
        records = b"".join(b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + address for address in answers)
        head = data[:2] + b"\x81\x80\0\1" + len(answers).to_bytes(2, "big") + b"\0\0\0\0"
        self._transport.sendto(head + data[12:end] + records, addr)
