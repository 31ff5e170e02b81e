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
_DECODERS = (
    *sorted(name for name in av.codecs_available if name.startswith("pcm_")),
    *("adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "g722", "gsm", "gsm_ms", "speex"),
    *("aac", "aac_latm", "ac3", "amrnb", "amrwb", "dca", "eac3", "mp2", "mp3", "opus", "vorbis"),
    *("mp1float", "mp2float", "mp3float", "libopus", "wmapro", "wmav1", "wmav2"),
    *("alac", "flac", "truehd", "tta", "wavpack", "wmalossless"),
)
# Without a list of formats FFmpeg would read playlists, and open the files and URLs in them.
# Without a list of decoders it would try those of videos, too: it unpacked the cover of an MP3.
_OPTIONS = {
    "format_whitelist": ",".join(FORMATS),
    "protocol_whitelist": "pipe",
    "codec_whitelist": ",".join(_DECODERS),
}
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


class _TooLong(Exception):
    """A sound has more seconds than are allowed."""


def decode_sound(data: bytes, *, rate: int, max_seconds: float, field: str = "audio") -> Samples:
    """Return the samples [n] of the first sound in a file, `rate` a second, from -1 to 1.

    Several channels are mixed to one. Raise InvalidRequest, which names `field`, for bytes that are
    no sound or lack one, for more than `max_seconds`, and for samples that are no numbers.
    """
    try:
        pieces = list(_pieces(data, rate, max_seconds))
    except _TooLong:
        raise _refusal(field, f"expected at most {max_seconds:g} seconds of sound") from None
    except Exception as error:
        # FFmpeg is foreign code, and PyAV raises all kinds of errors on broken files. FFmpeg's own
        # words come without the number of the error, and the name of a file.
        problem = getattr(error, "strerror", None) or error
        raise _refusal(field, f"{_EXPECTED}; this cannot be read: {problem}") from error

    if not any(len(piece) for piece in pieces):
        raise _refusal(field, f"{_EXPECTED}; there is none in this file")
    samples = np.concatenate(pieces)
    if not np.isfinite(samples).all():
        raise _refusal(field, "expected samples that are finite numbers")
    return samples


def _pieces(data: bytes, rate: int, max_seconds: float) -> Iterator[Samples]:
    """Yield the samples of a file's first sound, mixed to one channel, in pieces.

    Raise _TooLong as soon as there are more than `max_seconds`.
    """
    num_samples = 0
    with av.open(io.BytesIO(data), "r", options=_OPTIONS, metadata_errors="ignore") as container:
        if not container.streams.audio:
            return
        resampler = av.AudioResampler("flt", "mono", rate)
        for frame in container.decode(audio=0):
            # Before the rate is converted: of one sample a second that makes thousands.
            num_samples += frame.samples
            if num_samples > max_seconds * frame.sample_rate:
                raise _TooLong
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
