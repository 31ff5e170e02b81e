"""Decode pictures that callers send: hostile bytes in, RGB pixels out, within limits.

Pictures that models make become PNGs.
"""

import io
import re
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from shared.errors import InvalidRequest

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_IMAGE_BYTES = 64 << 20
MAX_SCANS = 100
"""The most scans of a JPEG, as libtiff allows. Encoders make about ten.

A scan may say in ten bytes that it changes nothing, and the decoder goes through the whole picture.
"""
PNG = "image/png"

_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
"""The head of a scan: its marker, its length, and the number of colours that it has.

The marker alone may also be in the bytes behind a picture, where a phone leaves a film.
"""
_LEAST_READS = 20_000
_BYTES_A_READ = 512
"""A chunk of a PNG takes four reads, and those of encoders have 4 KiB or more."""
_MODES_OF_MORE_BITS = ("I", "F")
_PREVIEW_QUALITY = 70
_WHITE = (255, 255, 255)


class _LimitedFile(io.BytesIO):
    """A file that can be read so many times, by its size. Then `read` raises ValueError.

    Decoders read the parts of a file one by one. With 64 MiB of empty ones they would be busy for
    twenty seconds, and fill gigabytes.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads_left = _LEAST_READS + len(data) // _BYTES_A_READ

    def read(self, size: int | None = -1, /) -> bytes:
        if self._reads_left == 0:
            raise ValueError("it has too many parts")
        self._reads_left -= 1
        return super().read(size)


def decode_image(data: bytes, *, max_pixels: int, field: str = "image") -> Image.Image:
    """Return the picture [height, width] in RGB, 8 bits each, upright.

    Of an animation or a document the first picture is taken. What is transparent becomes white, and
    more than 8 bits of grey are scaled to 8. Raise InvalidRequest, which names `field`, for bytes
    that are no picture in one of `FORMATS`, that are cut off, that have more than `max_pixels`, or
    that would keep a decoder busy for long.
    """
    problem: Exception
    try:
        # A warning for many pixels is ours to give, below.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(_LimitedFile(data), formats=FORMATS) as image,
        ):
            # Known from the head of the file, before any pixel is unpacked.
            width, height = image.size
            if width * height > max_pixels:
                raise InvalidRequest(
                    f"{field}: expected at most {max_pixels} pixels, got {width} x {height}.",
                    field=field,
                )
            if isinstance(image, JpegImageFile) and len(_SCAN.findall(data)) > MAX_SCANS:
                raise InvalidRequest(
                    f"{field}: expected a JPEG of at most {MAX_SCANS} scans.", field=field
                )
            image.load()
            upright = _rgb(ImageOps.exif_transpose(image))
            # What the file says beside its pixels: libraries would read the broken parts again.
            upright.info = {}
            return upright
    except InvalidRequest:
        raise
    except Image.DecompressionBombError:
        raise InvalidRequest(
            f"{field}: expected at most {max_pixels} pixels, got many more.", field=field
        ) from None
    except UnidentifiedImageError:
        # Its own message has an address in memory.
        problem = ValueError("it is in none of these formats, or its beginning is broken")
    except Exception as error:
        # The decoders are foreign code, and raise all kinds of errors on broken files.
        problem = error
    raise InvalidRequest(
        f"{field}: expected a picture ({', '.join(FORMATS)}); this cannot be read: {problem}.",
        field=field,
    ) from problem


def png_of(image: Image.Image) -> bytes:
    """Return a picture as a PNG."""
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def jpeg_of(image: Image.Image) -> bytes:
    """Return a picture in RGB as a small JPEG."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=_PREVIEW_QUALITY)
    return data.getvalue()


def _rgb(image: Image.Image) -> Image.Image:
    """Return the picture in RGB of 8 bits."""
    if image.mode.startswith(_MODES_OF_MORE_BITS):
        # Pillow's own conversion cuts all that is above 255.
        grey = np.asarray(image, dtype=np.float64)
        low, high = 0.0, 65_535.0
        if not image.mode.startswith("I;16"):
            low, high = grey.min(), grey.max()
        scaled = (grey - low) * (255.0 / max(high - low, 1.0))
        return Image.fromarray(np.nan_to_num(scaled).round().astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or "A" in image.getbands():
        opaque = Image.new("RGBA", image.size, _WHITE)
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")
