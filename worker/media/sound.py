"""Sounds: hostile bytes of callers in, samples of one channel out, within limits; and back."""

import io
import wave
from collections.abc import Iterator

import av
import numpy as np
from numpy.typing import NDArray

from shared.errors import InvalidRequest
from shared.tasks.sound import SoundFormat

MAX_SOUND_BYTES = 256 << 20
FORMATS = ("wav", "mp3", "flac", "ogg", "aac", "aiff", "mov", "matroska", "webm")
# Without a list of formats FFmpeg would read playlists, and open the files and URLs in them.
_OPTIONS = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "pipe"}
_EXPECTED = "expected a sound (WAV, MP3, FLAC, OGG, AAC, AIFF, M4A, MP4, MKV or WebM)"

MEDIA_TYPES: dict[SoundFormat, str] = {
    "wav": "audio/wav",
    "mp3": "audio/mpeg",
    "flac": "audio/flac",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "pcm": "audio/pcm",
}
_CONTAINERS: dict[SoundFormat, tuple[str, str]] = {
    "mp3": ("mp3", "libmp3lame"),
    "flac": ("flac", "flac"),
    "opus": ("ogg", "libopus"),
    "aac": ("adts", "aac"),
}
"""FFmpeg's names of a container and of a codec."""
_OPUS_RATE = 48_000

Samples = NDArray[np.float32]


def decode_sound(data: bytes, *, rate: int, max_seconds: float, field: str = "audio") -> Samples:
    """Return the samples [n] of the first sound in a file, `rate` a second, from -1 to 1.

    Several channels are mixed to one. Raise InvalidRequest, which names `field`, for bytes that are
    no sound or lack one, for more than `max_seconds`, and for samples that are no numbers.
    """
    pieces: list[Samples] = []
    num_samples = 0
    try:
        for piece in _pieces(data, rate):
            pieces.append(piece)
            num_samples += len(piece)
            if num_samples > max_seconds * rate:
                raise _refusal(field, f"expected at most {max_seconds:g} seconds of sound")
    except InvalidRequest:
        raise
    except Exception as error:
        # FFmpeg is foreign code, and PyAV raises all kinds of errors on broken files.
        raise _refusal(field, f"{_EXPECTED}; this cannot be read: {error}") from error

    if not num_samples:
        raise _refusal(field, f"{_EXPECTED}; there is none in this file")
    samples = np.concatenate(pieces)
    if not np.isfinite(samples).all():
        raise _refusal(field, "expected samples that are finite numbers")
    return samples


def _pieces(data: bytes, rate: int) -> Iterator[Samples]:
    """Yield the samples of a file's first sound, mixed to one channel, in pieces."""
    with av.open(io.BytesIO(data), "r", options=_OPTIONS, metadata_errors="ignore") as container:
        if not container.streams.audio:
            return
        resampler = av.AudioResampler("flt", "mono", rate)
        for frame in container.decode(audio=0):
            for resampled in resampler.resample(frame):
                yield resampled.to_ndarray()[0]
        for resampled in resampler.resample(None):
            yield resampled.to_ndarray()[0]


def _refusal(field: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {problem}.", field=field)


def encode_sound(samples: Samples, rate: int, format: SoundFormat) -> bytes:
    """Return samples [n] from -1 to 1, `rate` a second, as a file.

    What is louder is cut. Opus has 48,000 samples a second, all others keep their rate.
    """
    whole = (np.clip(samples, -1, 1) * 32_767).round().astype("<i2")
    if format == "pcm":
        return whole.tobytes()
    data = io.BytesIO()
    if format == "wav":
        with wave.open(data, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(whole.tobytes())
        return data.getvalue()

    container, codec = _CONTAINERS[format]
    with av.open(data, "w", format=container) as output:
        stream = output.add_stream(codec, rate=_OPUS_RATE if format == "opus" else rate)
        assert isinstance(stream, av.AudioStream)
        stream.layout = "mono"
        context = stream.codec_context
        resampler = av.AudioResampler(
            context.format, "mono", context.sample_rate, context.frame_size or None
        )
        frame = av.AudioFrame.from_ndarray(whole[None], format="s16", layout="mono")
        frame.sample_rate = rate
        for resampled in (*resampler.resample(frame), *resampler.resample(None)):
            output.mux(stream.encode(resampled))
        output.mux(stream.encode(None))
    return data.getvalue()
