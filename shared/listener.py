"""Listening: the one place where a port is opened, and a small HTTP server for probes and scrapers.

The server answers GET of a few paths, one request a connection, in a process that serves nothing
else at that port. It runs in the process's event loop: when it does not answer, the loop is stuck.
"""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from shared.settings.layers import SettingsError, env_name, flag_name
from shared.settings.settings import Settings
from shared.telemetry.logging_setup import fields

_REQUEST_TIMEOUT_S = 5.0
_MOST_BYTES = 16_384
_NOT_OURS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL)
"""Errors for an address that this machine cannot listen on.

It belongs to another machine, is of a kind that this machine does not speak (::1 without IPv6), or
needs the name of an interface (fe80::1).
"""

logger = logging.getLogger("aios.listener")


Answer = tuple[int, str, bytes]
"""Status, content type and body."""
Routes = Mapping[str, Callable[[], Awaitable[Answer]]]
"""The function that answers each path."""

_NOT_FOUND: Answer = (404, "text/plain", b"Not found.\n")
_NOT_ALLOWED: Answer = (405, "text/plain", b"GET is expected.\n")


@contextmanager
def open_port(
    settings: Settings, setting: str, *, host_setting: str = "host"
) -> Iterator[list[socket.socket]]:
    """Listen at the port that `setting` names, on every address of the host of `host_setting`.

    The sockets are closed at the end of the context. Port 0 is one free port for all addresses.
    Raise SettingsError, which names the setting at fault: the port, or the host where it is no
    address of this machine.
    """
    sockets = _bind_all(settings, setting, host_setting)
    try:
        yield sockets
    finally:
        _close(sockets)


def port_of(sockets: list[socket.socket]) -> int:
    """Return the port that `open_port` opened."""
    return int(sockets[0].getsockname()[1])


@asynccontextmanager
async def listening(settings: Settings, setting: str, routes: Routes) -> AsyncIterator[int]:
    """Serve `routes` at the port that `setting` names. Yield the port.

    Raise SettingsError as `open_port` does.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                writer.write(await _answer(reader, routes))
                await writer.drain()
        except (
            TimeoutError,
            ConnectionError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
        ):
            logger.debug("caller given up", extra=fields(port=port))
        finally:
            writer.close()

    async with AsyncExitStack() as stack:
        sockets = stack.enter_context(open_port(settings, setting))
        port = port_of(sockets)
        for opened in sockets:
            server = await asyncio.start_server(serve, sock=opened, limit=_MOST_BYTES)
            await stack.enter_async_context(server)
        logger.info("port opened", extra=fields(host=settings.host, port=port, paths=list(routes)))
        yield port


def _bind_all(settings: Settings, setting: str, host_setting: str) -> list[socket.socket]:
    port = int(getattr(settings, setting))
    host = getattr(settings, host_setting)
    sockets: list[socket.socket] = []
    last_error = 0
    try:
        for family, address in _addresses(settings, host_setting):
            # For port 0 the first address gets a free port, and the others get the same one.
            port_here = port_of(sockets) if sockets else port
            try:
                sockets.append(_bind(family, (address[0], port_here, *address[2:])))
            except OSError as error:
                if error.errno not in _NOT_OURS:
                    raise
                last_error = error.errno
    except OSError as error:
        _close(sockets)
        # A port that is free on one address may be taken on the next: try another one.
        if sockets and not port:
            return _bind_all(settings, setting, host_setting)
        problem = f"cannot listen on {host} port {port}: {_os_error_text(error.errno)}"
        remedy = (
            f"name another port by {flag_name(setting)} or {env_name(setting)}, or 0 for a free one"
        )
        raise settings.refusal(setting, problem, remedy) from None
    if not sockets:
        raise _host_refusal(settings, host_setting, _os_error_text(last_error))
    return sockets


def _bind(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    # The protocol is named because asyncio sends small writes at once (TCP_NODELAY) only for a
    # socket that is TCP by its number.
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # On other systems the option would let two processes have the same port.
        if os.name == "posix":
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(address)
        opened.listen()
    except OSError:
        opened.close()
        raise
    return opened


def _addresses(
    settings: Settings, host_setting: str
) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    """Return the families and addresses of the host, each once."""
    try:
        infos = socket.getaddrinfo(
            getattr(settings, host_setting), 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise _host_refusal(settings, host_setting, str(error.strerror).lower()) from None
    except ValueError as error:
        # Some names cannot even be looked up: one with an empty or too long part, or with a null.
        raise _host_refusal(settings, host_setting, str(error)) from None

    addresses: list[tuple[socket.AddressFamily, tuple[Any, ...]]] = []
    for family, _, _, _, address in infos:
        if (family, address) not in addresses:
            addresses.append((family, address))
    return addresses


def _host_refusal(settings: Settings, setting: str, reason: str) -> SettingsError:
    problem = f"{getattr(settings, setting)!r} is no address of this machine: {reason}"
    remedy = f"name one by {flag_name(setting)} or {env_name(setting)}, or 0.0.0.0 for all of them"
    return settings.refusal(setting, problem, remedy)


def _os_error_text(number: int | None) -> str:
    return os.strerror(number or 0).lower()


def _close(sockets: list[socket.socket]) -> None:
    for opened in sockets:
        opened.close()


async def _answer(reader: asyncio.StreamReader, routes: Routes) -> bytes:
    """Read the head of a request. Return the whole response, as HTTP has it."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    request_line = head.partition("\r\n")[0].split(" ")
    method = ""
    path = ""
    if len(request_line) == 3:
        method = request_line[0]
        path = urlsplit(request_line[1]).path

    if path not in routes:
        answer = _NOT_FOUND
    elif method not in ("GET", "HEAD"):
        answer = _NOT_ALLOWED
    else:
        answer = await routes[path]()
    status, kind, body = answer

    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close"]
    response = ("\r\n".join(lines) + "\r\n\r\n").encode()
    if method != "HEAD":
        response += body
    return response
