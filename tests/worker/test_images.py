"""Pictures of callers are decoded upright and in RGB, or refused with a sentence."""

import zlib

import numpy as np
import pytest
from PIL import Image

from shared.errors import InvalidRequest
from tests.fixtures.broken_pictures import chunk, odd_pictures, scans_bomb
from tests.fixtures.pictures import encoded, picture
from worker.media.images import FORMATS, MAX_SCANS, decode_image

MANY = 10_000_000


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data, max_pixels=MANY))


@pytest.mark.parametrize("kind", FORMATS)
def test_all_formats_are_read(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = pixels(encoded(picture(), kind, **options))
    assert decoded.shape == (50, 70, 3)
    # JPEG and the palette of a GIF change colours a little.
    tolerance = {"JPEG": 12, "GIF": 40}.get(kind, 0)
    difference = np.abs(decoded.astype(int) - np.asarray(picture()).astype(int))
    assert np.median(difference) <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_upright(orientation: int) -> None:
    """A camera writes how it was held. Here the red corner is at the top left when upright."""
    upright = Image.new("RGB", (60, 40), (0, 0, 255))
    upright.paste((255, 0, 0), (0, 0, 20, 20))
    turns = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for turn in turns[orientation]:
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = pixels(encoded(stored, "JPEG", exif=exif, quality=95))
    assert decoded.shape == (40, 60, 3)
    assert decoded[10, 10, 0] > 200
    assert decoded[10, 50, 0] < 50
    assert decoded[35, 10, 0] < 50


def test_other_colours_become_rgb() -> None:
    grey = Image.new("L", (4, 4), 100)
    assert (pixels(encoded(grey)) == 100).all()

    transparent = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (pixels(encoded(transparent)) == 255).all()

    inks = Image.new("CMYK", (4, 4), (0, 0, 0, 0))
    assert (pixels(encoded(inks, "JPEG")) > 250).all()

    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30])
    assert (pixels(encoded(palette)) == [10, 20, 30]).all()

    deep = Image.fromarray(np.full((4, 4), 0x8080, dtype=np.uint16))
    assert (pixels(encoded(deep)) == 0x80).all()

    floats = Image.fromarray(np.array([[0.0, 0.5], [0.5, 1.0]], dtype=np.float32))
    assert pixels(encoded(floats, "TIFF"))[..., 0].tolist() == [[0, 128], [128, 255]]


def test_of_an_animation_the_first_picture_is_taken() -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    blue = Image.new("RGB", (8, 8), (0, 0, 255))
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(red, kind, save_all=True, append_images=[blue], duration=100)
        assert pixels(data)[4, 4].argmax() == 0


def bomb() -> bytes:
    """Return a PNG of 60 KB that says it has 3,600 million pixels."""
    data = bytearray(encoded(Image.new("L", (16, 16))))
    header = data[12:29]
    header[4:12] = (60_000).to_bytes(4, "big") * 2
    data[12:29] = header
    data[29:33] = zlib.crc32(header).to_bytes(4, "big")
    return bytes(data)


WHOLE = encoded(picture())
BAD = {
    "no bytes": b"",
    "text": b"this is no picture",
    "html": b"<html><script>alert(1)</script></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>',
    "pdf": b"%PDF-1.7\n",
    "a zip": b"PK\x03\x04" + bytes(100),
    "zeros": bytes(1000),
    "a head alone": WHOLE[:24],
    "cut off": WHOLE[: len(WHOLE) // 2],
    "a broken middle": WHOLE[:60] + bytes(40) + WHOLE[100:],
    "a cut JPEG": encoded(picture(), "JPEG")[:200],
    "a cut GIF": encoded(picture(), "GIF")[:100],
    "a cut WebP": encoded(picture(), "WEBP")[:100],
    "a cut TIFF": encoded(picture(), "TIFF")[:400],
    "a cut BMP": encoded(picture(), "BMP")[:400],
    "a bomb": bomb(),
    "EPS, which would start Ghostscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "a sound": b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(40),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^photo: expected ") as caught:
        decode_image(BAD[name], max_pixels=MANY, field="photo")
    assert caught.value.field == "photo"
    assert str(caught.value).endswith(".")


def test_too_many_pixels_are_refused_before_they_are_unpacked() -> None:
    data = encoded(Image.new("1", (3000, 2000)))
    with pytest.raises(InvalidRequest, match="at most 5999999 pixels, got 3000 x 2000"):
        decode_image(data, max_pixels=5_999_999)
    assert decode_image(data, max_pixels=6_000_000).size == (3000, 2000)


@pytest.mark.parametrize("is_progressive", [True, False])
def test_a_jpeg_has_a_bounded_number_of_scans(is_progressive: bool) -> None:
    """Each scan costs a pass over the whole picture, and has ten bytes."""

    def of_scans(count: int) -> bytes:
        return scans_bomb(count, side=64, is_progressive=is_progressive)

    assert decode_image(of_scans(MAX_SCANS), max_pixels=MANY).size == (64, 64)
    with pytest.raises(InvalidRequest, match="photo: expected a JPEG of at most 100 scans"):
        decode_image(of_scans(MAX_SCANS + 1), max_pixels=MANY, field="photo")


def test_bytes_behind_a_jpeg_are_no_scans() -> None:
    """A phone appends the film of a moment. Any bytes may look like the marker of a scan."""
    film = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8).tobytes()
    film += b"\xff\xda" * 1000
    assert pixels(encoded(picture(), "JPEG") + film).shape == (50, 70, 3)


def test_a_file_of_many_parts_is_read_unless_they_are_empty() -> None:
    """A PNG in pieces of 4 KiB, as the smallest that encoders write, has as many as it likes."""
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), compress_level=0)
    start = whole.index(b"IDAT") - 4
    packed = b""
    place = start
    while whole[place + 4 : place + 8] == b"IDAT":
        length = int.from_bytes(whole[place : place + 4], "big")
        packed += whole[place + 8 : place + 8 + length]
        place += 12 + length
    pieces = [chunk(b"IDAT", packed[at : at + 4096]) for at in range(0, len(packed), 4096)]
    assert len(pieces) > 2900
    assert (pixels(whole[:start] + b"".join(pieces) + whole[place:]) == noise).all()

    empty = [chunk(b"IDAT", b"")] * 100_000
    with pytest.raises(InvalidRequest, match="too many parts"):
        pixels(whole[:start] + b"".join(empty + pieces) + whole[place:])


def test_what_a_picture_says_beside_its_pixels_goes_no_further() -> None:
    """Libraries read EXIF again, and would fail on what is broken, or turn the picture again."""
    for name, data in odd_pictures().items():
        decoded = decode_image(data, max_pixels=MANY)
        assert decoded.info == {}, name
        assert not decoded.getexif(), name
