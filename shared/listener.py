"""A small HTTP server for probes and scrapers, in a process that serves nothing else: GET of a few paths, one a
connection.

It runs in the process's event loop, so one that does not answer is a loop that does not get on.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from urllib.parse import urlsplit

from shared.logs import fields
from shared.setting_layers import SettingsError

_PATIENCE_S = 5.0
_MOST_BYTES = 16_384

logger = logging.getLogger("aios.listener")


Answer = tuple[int, str, bytes]
"""Status, content type and body."""
Routes = Mapping[str, Callable[[], Awaitable[Answer]]]


@asynccontextmanager
async def listening(setting: str, host: str, port: int, routes: Routes) -> AsyncIterator[int]:
    """Answer what `routes` say; gives the port, a free one for 0.

    Raises SettingsError, naming the setting, where it cannot listen.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                writer.write(await _answer(reader, routes))
                await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            logger.debug("caller given up", extra=fields(port=port))
        finally:
            writer.close()

    try:
        server = await asyncio.start_server(serve, host, port, limit=_MOST_BYTES)
    except OSError as error:
        raise SettingsError(f"{setting}: cannot listen on {host} port {port}: {error.strerror}") from error
    async with server:
        found = int(server.sockets[0].getsockname()[1])
        logger.info("port opened", extra=fields(host=host, port=found, paths=list(routes)))
        yield found


async def _answer(reader: asyncio.StreamReader, routes: Routes) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    words = head.partition("\r\n")[0].split(" ")
    method, path = (words[0], urlsplit(words[1]).path) if len(words) == 3 else ("", "")
    if path not in routes:
        status, kind, body = 404, "text/plain", b"Not found.\n"
    elif method not in ("GET", "HEAD"):
        status, kind, body = 405, "text/plain", b"GET is expected.\n"
    else:
        status, kind, body = await routes[path]()
    lines = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        *(["Allow: GET, HEAD"] if status == HTTPStatus.METHOD_NOT_ALLOWED else []),
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        "\r\n",
    )
    return "\r\n".join(lines).encode() + (b"" if method == "HEAD" else body)
