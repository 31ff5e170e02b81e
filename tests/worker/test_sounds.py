"""Sounds of callers become samples of one channel at the network's rate, or are refused."""

import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from shared.errors import InvalidRequest
from tests.fixtures.broken_sounds import cover_bomb, slow_mkv, with_cover
from tests.fixtures.pictures import encoded, picture
from tests.fixtures.sounds import RATE, Samples, packed, tones, wav
from worker.media.sound import decode_sound

TONE = tones(440)


def pitch(samples: Samples, rate: int = RATE) -> float:
    """Return the frequency that is loudest, in hertz."""
    spectrum = np.abs(np.fft.rfft(samples))
    return float(spectrum.argmax()) * rate / len(samples)


def decoded(data: bytes, *, rate: int = RATE, max_seconds: float = 60.0) -> Samples:
    return decode_sound(data, rate=rate, max_seconds=max_seconds)


def test_a_wav_at_the_networks_rate_keeps_its_samples() -> None:
    assert np.abs(decoded(wav(TONE)) - TONE).max() < 1e-4


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("wav", "pcm_f32le"),
        ("mp3", "libmp3lame"),
        ("flac", "flac"),
        ("ogg", "libopus"),
        ("adts", "aac"),
        ("ipod", "aac"),
        ("matroska", "libopus"),
        ("webm", "libopus"),
    ],
)
def test_all_formats_are_read(container: str, codec: str) -> None:
    rate = 48_000 if codec == "libopus" else RATE
    samples = decoded(packed(tones(440, rate=rate), container, codec, rate))
    assert len(samples) == pytest.approx(RATE, rel=0.2)
    assert pitch(samples) == pytest.approx(440, abs=3)


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 96_000])
def test_other_rates_are_converted(rate: int) -> None:
    samples = decoded(wav(tones(440, rate=rate), rate))
    assert len(samples) == pytest.approx(RATE, abs=RATE // 100)
    assert pitch(samples) == pytest.approx(440, abs=3)


def test_channels_are_mixed() -> None:
    for num_channels in (2, 6, 8):
        channels = np.stack([TONE] * num_channels, axis=1)
        samples = decoded(wav(channels))
        assert len(samples) == pytest.approx(RATE, abs=200)
        assert pitch(samples) == pytest.approx(440, abs=3)


def test_a_sound_that_is_too_long_is_refused_before_it_is_unpacked() -> None:
    data = packed(np.zeros(60 * RATE, dtype=np.float32), "flac", "flac")
    assert len(data) < 100_000
    with pytest.raises(InvalidRequest, match="audio: expected at most 59 seconds"):
        decoded(data, max_seconds=59)
    assert len(decoded(data, max_seconds=61)) == pytest.approx(60 * RATE, rel=0.01)


def header(**fields: int) -> bytes:
    """Return a WAV file with wrong fields in its head."""
    data = bytearray(wav(TONE[:1000]))
    places = {"channels": (22, "<H"), "rate": (24, "<I"), "bits": (34, "<H"), "size": (40, "<I")}
    for name, value in fields.items():
        place, kind = places[name]
        struct.pack_into(kind, data, place, value)
    return bytes(data)


BROKEN_FLOATS = np.array([np.nan, np.inf, 0.5] * 400, dtype="<f4")
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
BAD = {
    "no bytes": b"",
    "text": b"this is no sound",
    "zeros": bytes(1000),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "a head alone": wav(TONE)[:44],
    "half a head": wav(TONE)[:20],
    "a cut MP3": packed(TONE, "mp3", "libmp3lame")[:60],
    "a cut FLAC": packed(TONE, "flac", "flac")[:60],
    "a cut OGG": packed(tones(440, rate=48_000), "ogg", "libopus", 48_000)[:100],
    "a cut M4A": packed(TONE, "ipod", "aac")[:200],
    "a playlist of files": PLAYLIST,
    "a list to join": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
    "no channels": header(channels=0),
    "no rate": header(rate=0),
    "no bits": header(bits=0),
    "numbers that are none": wav(TONE)[:20]
    + struct.pack("<HHIIHH", 3, 1, RATE, 4 * RATE, 4, 32)
    + b"data"
    + struct.pack("<I", BROKEN_FLOATS.nbytes)
    + BROKEN_FLOATS.tobytes(),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_sound_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^voice: expected ") as caught:
        decode_sound(BAD[name], rate=RATE, max_seconds=60, field="voice")
    assert caught.value.field == "voice"


@contextmanager
def memory_within(limit: int) -> Iterator[None]:
    """Fail when the body makes this process larger by more bytes than `limit`, even for a moment."""
    # Linux forgets the peak when it is told so.
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    yield
    assert _memory("VmHWM") - before < limit


def _memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise AssertionError(name)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's memory like this")
def test_the_picture_in_a_sound_is_not_unpacked() -> None:
    """FFmpeg opens all streams to learn of them, and the cover of an MP3 is a video to it."""
    bomb = with_cover(cover_bomb())
    with memory_within(64 << 20):
        samples = decoded(bomb)
    # The same sound with a small cover.
    assert (samples == decoded(with_cover(encoded(picture())))).all()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's memory like this")
def test_a_slow_sound_is_refused_before_its_rate_is_converted() -> None:
    """A rate of 1 Hz is converted to thousands of samples a second: 10 KB would be 320 MB."""
    with memory_within(64 << 20), pytest.raises(InvalidRequest, match="at most 60 seconds"):
        decoded(slow_mkv(5_000))
