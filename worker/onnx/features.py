"""Features of sounds: the logarithm of a spectrogram in mel bands."""

from functools import lru_cache

import numpy as np
from transformers.audio_utils import mel_filter_bank

from worker.media.sound import Samples
from worker.onnx.declaration import MelFeatures
from worker.onnx.graph import Array


def num_frames(num_samples: int, declared: MelFeatures) -> int:
    """Return the number of frames of a sound."""
    return max(0, 1 + (num_samples - declared.window) // declared.hop)


def log_mel(samples: Samples, declared: MelFeatures, rate: int) -> Array:
    """Return the features [bands, frames], or [frames, bands] in the layout BTF, in float32.

    A frame is a window of samples, from the first that fits, times a periodic Hann window.
    """
    frames = np.lib.stride_tricks.sliding_window_view(samples, declared.window)[:: declared.hop]
    shape = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(declared.window) / declared.window)
    size = declared.fft or declared.window
    spectrum = np.abs(np.fft.rfft(frames * shape, n=size, axis=1)) ** declared.power
    bands = np.maximum(spectrum @ _filters(declared, rate), declared.floor)
    if declared.log == "natural":
        features = np.log(bands)
    elif declared.log == "log10":
        features = np.log10(bands)
    else:
        # Of powers. Those of amplitudes are twice as much.
        features = 20 / declared.power * np.log10(bands)
    if declared.layout == "BFT":
        features = features.T
    return np.ascontiguousarray(features, dtype=np.float32)


@lru_cache(maxsize=64)
def _filters(declared: MelFeatures, rate: int) -> Array:
    """Return the triangular filters [fft // 2 + 1, bands]."""
    filters: Array = mel_filter_bank(
        num_frequency_bins=(declared.fft or declared.window) // 2 + 1,
        num_mel_filters=declared.bands,
        min_frequency=declared.low,
        max_frequency=declared.high or rate / 2,
        sampling_rate=rate,
        norm="slaney" if declared.normalize else None,
        mel_scale=declared.scale,
    )
    return filters
