"""uvicorn's HTTP protocol, mended for clients that offer an upgrade or send an endless head.

A client that offers to go on in another protocol is answered in HTTP/1.1, as RFC 9110 allows.
Java's HttpClient offers `Upgrade: h2c` with every first request; the parser would drop the body of
that request and whatever follows it.

A head is the request line with its headers. It has a bound here, because the parser keeps in memory
whatever comes.
"""

import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 65_536
"""The most bytes of a head that is not complete yet. Proxies allow 8 to 32 KiB by default."""

_HEAD_END = b"\r\n\r\n"
_OFFER = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)
_TOO_LARGE = b"The request line and its headers are too large."
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\n"
    b"connection: close\r\n"
    b"\r\n"
    b"%s"
) % (len(_TOO_LARGE), _TOO_LARGE)


class Protocol(HttpToolsProtocol):
    """One connection.

    `_num_head_bytes` have come of a head that is not complete; it is None while a body comes.
    """

    _num_head_bytes: int | None = 0

    def data_received(self, data: bytes) -> None:
        if self._num_head_bytes == 0:
            data = without_offer(data)
        if self._num_head_bytes is not None:
            self._num_head_bytes += len(data)
        super().data_received(data)
        if self._num_head_bytes is not None and self._num_head_bytes > MAX_HEAD_BYTES:
            self._refuse()

    def on_headers_complete(self) -> None:
        self._num_head_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._num_head_bytes = 0
        super().on_message_complete()

    def _refuse(self) -> None:
        """Answer 431, and close the connection.

        While an earlier request is being answered, the connection is only closed: nothing may be
        written into that answer.
        """
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_REFUSAL)
        self.transport.close()


def without_offer(data: bytes) -> bytes:
    """Return the data without the `Upgrade` headers of the head that it begins with.

    They are removed only where the head is complete. A body stands behind it, and no byte of that
    may be lost.
    """
    end = data.find(_HEAD_END)
    if end < 0:
        return data
    return _OFFER.sub(b"", data[:end]) + data[end:]
