"""Decode pictures that callers send: hostile bytes in, RGB pixels out, within limits.

Pictures that models make become PNGs.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from shared.errors import InvalidRequest

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_IMAGE_BYTES = 64 << 20
PNG = "image/png"

_MODES_OF_MORE_BITS = ("I", "F")
_PREVIEW_QUALITY = 70
_WHITE = (255, 255, 255)


def decode_image(data: bytes, *, max_pixels: int, field: str = "image") -> Image.Image:
    """Return the picture [height, width] in RGB, 8 bits each, upright.

    Of an animation or a document the first picture is taken. What is transparent becomes white, and
    more than 8 bits of grey are scaled to 8. Raise InvalidRequest, which names `field`, for bytes
    that are no picture in one of `FORMATS`, that are cut off, or that have more than `max_pixels`.
    """
    problem: Exception
    try:
        # A warning for many pixels is ours to give, below.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=FORMATS) as image,
        ):
            # Known from the head of the file, before any pixel is unpacked.
            width, height = image.size
            if width * height > max_pixels:
                raise InvalidRequest(
                    f"{field}: expected at most {max_pixels} pixels, got {width} x {height}.",
                    field=field,
                )
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except InvalidRequest:
        raise
    except Image.DecompressionBombError:
        raise InvalidRequest(
            f"{field}: expected at most {max_pixels} pixels, got many more.", field=field
        ) from None
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
