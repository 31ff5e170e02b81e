"""Send one webhook: a POST to an address that was checked, of which only the status is read.

HTTP is spoken over a plain stream, since clients resolve the name once more, follow redirects,
obey proxies of the environment, or read the body of the answer. Nothing of that is done here.
"""

import asyncio
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from shared.webhooks.targets import Network, Target, TargetRefused, check_addresses, parse_target

Resolve = Callable[[str, int], Sequence[str]]
"""Return the addresses of a host, for a port. Raise OSError."""

_TIMEOUT_S = 15.0
_HEAD_BYTES = 16 << 10
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?\r?\n")
# Answers before the real one (100, 103), of which a receiver may send any number.
_MOST_INTERIM = 4
# Resolvers that hang keep their threads for longer than an attempt lasts.
_MOST_RESOLVING = 64


@dataclass(frozen=True)
class Reply:
    """The outcome of a POST: a status of HTTP, or 0 and the kind of `error`."""

    status: int
    error: str
    took_ms: int


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host, as the system resolves it."""
    # Text would be encoded by IDNA, which raises errors of its own.
    found = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class Sender:
    """Sends webhooks. Those to the networks `allowed` may be private and over http.

    A POST ends within `timeout_s`. `tls` tells which certificates are trusted.
    """

    def __init__(
        self,
        allowed: Sequence[Network] = (),
        *,
        timeout_s: float = _TIMEOUT_S,
        tls: ssl.SSLContext | None = None,
        resolve: Resolve = resolve,
    ) -> None:
        self._allowed = tuple(allowed)
        self._timeout_s = timeout_s
        self._tls = tls or ssl.create_default_context()
        self._resolve = resolve
        self._may_resolve = asyncio.Semaphore(_MOST_RESOLVING)

    async def post(self, url: str, payload: bytes, headers: Mapping[str, str]) -> Reply:
        """Send a payload and return what came of it. Whatever the receiver does raises nothing."""
        begun_s = time.perf_counter()
        status = 0
        error = ""
        try:
            async with asyncio.timeout(self._timeout_s):
                status = await self._post(parse_target(url), payload, headers)
        except TargetRefused as refused:
            error = refused.kind
        except TimeoutError:
            error = "timeout"
        except ssl.SSLError:
            # So are certificates that nobody vouches for, or for another name.
            error = "tls_failed"
        except socket.gaierror:
            error = "unresolved"
        except _BadAnswer:
            error = "bad_answer"
        except OSError:
            error = "unreachable"
        return Reply(status, error, int((time.perf_counter() - begun_s) * 1000))

    async def _post(self, target: Target, payload: bytes, headers: Mapping[str, str]) -> int:
        addresses = await self._addresses(target)
        check_addresses(target, addresses, self._allowed)
        reader, writer = await self._connect(target, addresses)
        try:
            writer.write(_request(target, payload, headers))
            await writer.drain()
            return await _status(reader)
        finally:
            # Not closed in good order, for which the receiver could let us wait.
            writer.transport.abort()

    async def _addresses(self, target: Target) -> Sequence[str]:
        """Return the addresses of a target. Raise OSError."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Sequence[str]] = loop.create_future()

        def tell(addresses: Sequence[str], error: OSError | None) -> None:
            self._may_resolve.release()
            # The attempt may have ended meanwhile.
            if found.done():
                return
            if error is not None:
                found.set_exception(error)
            else:
                found.set_result(addresses)

        def work() -> None:
            addresses: Sequence[str] = ()
            error: OSError | None = None
            try:
                addresses = self._resolve(target.host, target.port)
            except OSError as caught:
                error = caught
            with suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(tell, addresses, error)

        await self._may_resolve.acquire()
        # The end of the process waits for threads of a pool, and would for a resolver that hangs.
        threading.Thread(target=work, name="webhook-resolver", daemon=True).start()
        return await found

    async def _connect(
        self, target: Target, addresses: Sequence[str]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the first of the checked addresses that answers. Raise OSError."""
        tls: ssl.SSLContext | None = None
        name: str | None = None
        if target.scheme == "https":
            tls = self._tls
            name = target.host
        *others, last = dict.fromkeys(addresses)
        for address in others:
            with suppress(OSError):
                return await self._open(address, target.port, tls, name)
        return await self._open(last, target.port, tls, name)

    @staticmethod
    async def _open(
        address: str, port: int, tls: ssl.SSLContext | None, name: str | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # An address as the host: nothing is resolved here any more.
        return await asyncio.open_connection(
            address, port, ssl=tls, server_hostname=name, limit=_HEAD_BYTES
        )


class _BadAnswer(Exception):
    """The receiver does not speak HTTP/1.1, or has too much to say before its status."""


def _request(target: Target, payload: bytes, headers: Mapping[str, str]) -> bytes:
    lines = [
        f"POST {target.path} HTTP/1.1",
        f"host: {target.authority}",
        "user-agent: aios-webhooks/1",
        "content-type: application/json",
        f"content-length: {len(payload)}",
        "connection: close",
    ]
    for name, value in headers.items():
        lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode("ascii") + payload


async def _status(reader: asyncio.StreamReader) -> int:
    """Return the status of an answer. Its body is not read. Raise _BadAnswer."""
    for _ in range(_MOST_INTERIM):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise _BadAnswer from error
        match = _STATUS_LINE.match(head)
        if match is None:
            raise _BadAnswer
        status = int(match[1])
        if status >= 200:
            return status
    raise _BadAnswer
