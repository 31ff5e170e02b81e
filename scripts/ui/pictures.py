"""Pictures with what a model has found in them: outlines with labels, and masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont, ImageOps

# The colours of Okabe and Ito, which people tell apart who see few colours.
_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
_LEAST_SIDE = 480
_MOST_SIDE = 1600
_MASK_SHARE = 0.55
_FONT_SIZE = 16
_ROW = 26
_MOST_LABELS = 20
# A mask of 8 bits is bright inside.
_SHARES = [0] * 128 + [round(255 * _MASK_SHARE)] * 128

Point = tuple[float, float]


@dataclass(frozen=True)
class Outline:
    """Corners in pixels of the picture, one after the other, and what is there."""

    label: str
    corners: tuple[Point, ...]


@dataclass(frozen=True)
class Mask:
    """A PNG of the picture's size that is bright where something is, and what that is."""

    label: str
    png: bytes


def colour_of(place: int) -> str:
    """Return the colour of the finding with this place in its list."""
    return _COLOURS[place % len(_COLOURS)]


def outlined(picture: bytes, outlines: Sequence[Outline]) -> Image.Image:
    """Return a picture with outlines. Raise OSError for bytes that are no picture.

    Small pictures are enlarged and large ones are made smaller, so that the labels can be read.
    """
    canvas, scale = _canvas(picture)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_FONT_SIZE)
    for place, outline in enumerate(outlines):
        colour = colour_of(place)
        corners = [(x * scale, y * scale) for x, y in outline.corners]
        draw.line([*corners, corners[0]], fill=colour, width=3)
        left, top, right, bottom = draw.textbbox(_label_at(corners), outline.label, font=font)
        draw.rectangle((left - 3, top - 2, right + 3, bottom + 2), fill=colour)
        draw.text(_label_at(corners), outline.label, fill="black", font=font)
    return canvas


def _label_at(corners: Sequence[Point]) -> Point:
    left = min(x for x, _ in corners)
    top = min(y for _, y in corners)
    return max(0.0, left) + 4, max(0.0, top - _FONT_SIZE - 6)


def masked(picture: bytes, masks: Sequence[Mask]) -> Image.Image:
    """Return a picture with each mask in a colour of its own, and the colours' labels below it.

    Raise OSError for bytes that are no picture.
    """
    canvas, _ = _canvas(picture)
    for place, mask in enumerate(masks):
        with Image.open(BytesIO(mask.png)) as opened:
            shape = opened.convert("L").resize(canvas.size, Image.Resampling.NEAREST)
        share = shape.point(_SHARES)
        canvas.paste(Image.new("RGB", canvas.size, colour_of(place)), mask=share)
    return _with_legend(canvas, [mask.label for mask in masks[:_MOST_LABELS]])


def _with_legend(picture: Image.Image, labels: Sequence[str]) -> Image.Image:
    """Return a picture with a row below it for each label, in its colour."""
    height = picture.height + len(labels) * _ROW
    canvas = Image.new("RGB", (picture.width, height), "white")
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_FONT_SIZE)
    for place, label in enumerate(labels):
        top = picture.height + place * _ROW
        draw.rectangle((0, top, picture.width, top + _ROW), fill=colour_of(place))
        draw.text((8, top + 3), label, fill="black", font=font)
    return canvas


def shown(picture: bytes) -> Image.Image:
    """Return a picture of 8 bits, also of one with 16. Raise OSError for no picture."""
    with Image.open(BytesIO(picture)) as opened:
        if opened.mode.startswith("I"):
            # The upper byte of each pixel.
            return opened.convert("I").point([n // 256 for n in range(65536)], "L")
        return opened.copy()


def _canvas(picture: bytes) -> tuple[Image.Image, float]:
    """Return a picture that can be drawn on, and how much larger it is than before."""
    with Image.open(BytesIO(picture)) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    longest = max(upright.size)
    scale = min(max(1.0, _LEAST_SIDE / longest), _MOST_SIDE / longest)
    size = (max(1, round(upright.width * scale)), max(1, round(upright.height * scale)))
    return upright.resize(size), scale
