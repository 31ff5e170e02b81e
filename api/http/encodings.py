"""Unpack bodies that come compressed: `Content-Encoding: gzip` and `deflate` of RFC 9110.

Several codings may be applied one after the other. Nothing is unpacked beyond the size that a body
may have, so a body that swells to more costs no more memory than that.
"""

import zlib
from collections.abc import Callable

from shared.errors import InvalidRequest, PayloadTooLarge, UnsupportedEncoding

ACCEPTED = "gzip, deflate"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_MOST_CODINGS = 4
_MOST_MEMBERS = 1000
_PIECE_BYTES = 16_384
HEADER = "Content-Encoding"


def decoded(body: bytes, content_encoding: str, *, max_bytes: int) -> bytes:
    """Return the body without its codings.

    Raise UnsupportedEncoding, PayloadTooLarge, and InvalidRequest for a body that is broken or cut.
    """
    names = [name.strip().lower() for name in content_encoding.split(",")]
    codings = [name for name in names if name not in ("", "identity")]
    unknown = [name for name in codings if name not in _DECODERS]
    if unknown or len(codings) > _MOST_CODINGS:
        given = unknown[0] if unknown else f"more than {_MOST_CODINGS} codings"
        raise UnsupportedEncoding(
            f"{HEADER}: expected {ACCEPTED} or identity, got {given[:40]!r}.", field=HEADER
        )
    if not body:
        return body
    for name in reversed(codings):  # the last was applied last
        try:
            body = _DECODERS[name](body, max_bytes)
        except (zlib.error, EOFError) as error:
            raise InvalidRequest(
                f"{HEADER}: the body is not whole {name} data.", field=HEADER
            ) from error
    return body


def _gzip(data: bytes, max_bytes: int) -> bytes:
    """Unpack one member or several, as `cat a.gz b.gz` makes them.

    Zeros behind the last member are padding.
    """
    whole = b""
    start = 0
    for _ in range(_MOST_MEMBERS):
        part, start = _unpacked(data, start, _GZIP_WINDOW, max_bytes - len(whole))
        whole += part
        if not data[start : start + 1].strip(b"\0"):
            break
    if data[start:].strip(b"\0"):
        raise EOFError("there are too many members, or something else follows the last")
    return whole


def _deflate(data: bytes, max_bytes: int) -> bytes:
    """Unpack data in the zlib format, as the standard has it, or bare, as some clients send it."""
    try:
        whole, end = _unpacked(data, 0, zlib.MAX_WBITS, max_bytes)
    except zlib.error:
        whole, end = _unpacked(data, 0, -zlib.MAX_WBITS, max_bytes)
    if end < len(data):
        raise EOFError("something follows the end")
    return whole


def _unpacked(data: bytes, start: int, window: int, max_bytes: int) -> tuple[bytes, int]:
    """Unpack the stream that begins at `start`. Return its data, and where it ends.

    It is read in pieces, because the decoder copies whatever it is given behind the end of a
    stream. Raise zlib.error, EOFError and PayloadTooLarge.
    """
    decoder = zlib.decompressobj(window)
    whole = bytearray()
    while not decoder.eof and start < len(data):
        piece = data[start : start + _PIECE_BYTES]
        start += len(piece)
        whole += decoder.decompress(piece, max_bytes + 1 - len(whole))
        if len(whole) > max_bytes:
            raise PayloadTooLarge(f"Expected a body of at most {max_bytes} bytes.")
    if not decoder.eof:
        raise EOFError("the data is cut")
    return bytes(whole), start - len(decoder.unused_data)


_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
}
