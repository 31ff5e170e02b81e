"""The kernels of `kernels.c`, as `setup.py` compiled them for this processor's instructions.

They are optional. Without a compiled file, or on a processor for which there is none, everything is
computed by torch alone.
"""

import ctypes
import functools
import hashlib
from collections.abc import Callable
from ctypes import c_float, c_int, c_long, c_void_p
from pathlib import Path
from typing import Any

import torch

FILES = {"AVX512": "kernels_avx512.so", "AVX2": "kernels_avx2.so"}
"""The compiled files, by torch's names of what a processor can do.

torch reads the name from the environment variable ATEN_CPU_CAPABILITY where that is set.
"""
FOLDER = Path(__file__).parent
Function = Callable[..., None]

_LANES = {"AVX512": 16, "AVX2": 8}

_SIZES = [c_long, c_long]
_FLAG_AND_THREADS = [c_int, c_long]
# In the order of the parameters in `kernels.c`.
_PARAMETERS: dict[str, list[Any]] = {
    "set_parallel": [c_void_p],
    "rms_norm": [*[c_void_p] * 2, c_long, c_void_p, c_float, *_SIZES, *_FLAG_AND_THREADS],
    "rotate": [c_void_p, c_long, *[c_void_p] * 2, c_long, *_SIZES, *_FLAG_AND_THREADS],
    "gate": [*[c_void_p] * 2, c_long, c_void_p, c_long, *_SIZES, c_int, *_FLAG_AND_THREADS],
    "write_rows": [*[c_void_p] * 3, c_long, *_SIZES],
    "paged_attention": [
        *[c_void_p] * 2,
        c_long,
        *[c_void_p] * 3,
        c_long,
        *[c_void_p] * 2,
        *[c_long] * 5,
        c_float,
        c_long,
        *_FLAG_AND_THREADS,
    ],
}


class Library:
    """The compiled kernels.

    `lanes` is the number of elements of which widths must be multiples. `digest` is the hash of the
    file: other compilers may round other last bits.
    """

    def __init__(self, path: Path, lanes: int) -> None:
        self.lanes = lanes
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()
        functions = ctypes.CDLL(str(path))
        for name, parameters in _PARAMETERS.items():
            function = getattr(functions, name)
            function.argtypes = parameters
            function.restype = None
        self.rms_norm: Function = functions.rms_norm
        self.rotate: Function = functions.rotate
        self.gate: Function = functions.gate
        self.write_rows: Function = functions.write_rows
        self.paged_attention: Function = functions.paged_attention

        # The threads are those of torch's own OpenMP runtime: a second runtime's would wait for
        # the same processors.
        everything = ctypes.CDLL(None)
        if hasattr(everything, "GOMP_parallel"):
            functions.set_parallel(ctypes.cast(everything.GOMP_parallel, c_void_p))


@functools.cache
def library() -> Library | None:
    """Return the kernels for this processor, or None where there are none."""
    return open_kernels(capability())


def capability() -> str:
    """Return torch's name of what this processor can do: AVX512, AVX2, DEFAULT or another."""
    return torch.backends.cpu.get_cpu_capability()


def open_kernels(capability: str) -> Library | None:
    """Return the kernels for what a processor can do, by torch's name of that.

    Return None without a compiled file, or for one of another platform.
    """
    if capability not in FILES:
        return None
    try:
        return Library(FOLDER / FILES[capability], _LANES[capability])
    except OSError:
        return None
