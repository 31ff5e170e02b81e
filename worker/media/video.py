"""Videos: hostile bytes of callers in, some pictures out, within limits; and pictures back."""

import io
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
from PIL import Image

from shared.errors import InvalidRequest

MAX_VIDEO_BYTES = 512 << 20
FORMATS = ("mov", "matroska", "webm", "avi")
# Without a list of formats FFmpeg would read playlists, and open the files and URLs in them.
_OPTIONS = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "pipe"}
_EXPECTED = "expected a video (MP4, MOV, MKV, WebM or AVI)"


def decode_video(
    data: bytes, *, num_frames: int, max_frames: int, max_pixels: int, field: str = "video"
) -> list[Image.Image]:
    """Return `num_frames` pictures in RGB, evenly spaced over a file's first video.

    A shorter video repeats some of them. Raise InvalidRequest, which names `field`, for bytes that
    are no video, and for more than `max_frames` or, in one frame, `max_pixels`.
    """
    try:
        num_known = _count(data, max_frames, field)
        wanted = np.linspace(0, max(0, num_known - 1), num=num_frames).round().astype(int).tolist()
        frames = _frames(data, set(wanted), max_pixels, field)
    except InvalidRequest:
        raise
    except Exception as error:
        # FFmpeg is foreign code, and PyAV raises all kinds of errors on broken files.
        raise _refusal(field, f"{_EXPECTED}; this cannot be read: {error}") from error
    if not frames:
        raise _refusal(field, f"{_EXPECTED}; there is none in this file")
    return _chosen(frames, wanted)


def encode_video(frames: Sequence[Image.Image], rate: int = 8) -> bytes:
    """Return pictures of one size as an MP4 (MPEG-4), `rate` a second."""
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return data.getvalue()


def _open(data: bytes) -> Any:
    return av.open(io.BytesIO(data), "r", options=_OPTIONS, metadata_errors="ignore")


def _count(data: bytes, max_frames: int, field: str) -> int:
    """Return the number of a video's packets, each of which is a frame, without unpacking them."""
    count = 0
    with _open(data) as container:
        if not container.streams.video:
            return 0
        for packet in container.demux(video=0):
            # The last packet is empty.
            count += packet.size > 0
            if count > max_frames:
                raise _refusal(field, f"expected at most {max_frames} frames")
    return count


def _frames(data: bytes, wanted: set[int], max_pixels: int, field: str) -> dict[int, Image.Image]:
    """Return the frames with these numbers, as far as they are there."""
    frames: dict[int, Image.Image] = {}
    last = max(wanted)
    with _open(data) as container:
        if not container.streams.video:
            return frames
        for number, frame in enumerate(container.decode(video=0)):
            if frame.width * frame.height > max_pixels:
                raise _refusal(
                    field,
                    f"expected at most {max_pixels} pixels, got {frame.width} x {frame.height}",
                )
            if number in wanted:
                frames[number] = frame.to_image()
            if number >= last:
                break
    return frames


def _chosen(frames: dict[int, Image.Image], wanted: Sequence[int]) -> list[Image.Image]:
    """Return the wanted frames in order. Packets without a frame repeat the last one before."""
    known = sorted(frames)
    chosen = []
    for number in wanted:
        before = [one for one in known if one <= number]
        chosen.append(frames[before[-1] if before else known[0]])
    return chosen


def _refusal(field: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {problem}.", field=field)
