"""The kernels of `kernels.c`, as `setup.py` compiled them for this processor's instructions.

They are optional. Without a compiled file, or on a processor for which there is none, everything is
computed by torch alone.
"""

import ctypes
import functools
import hashlib
import logging
from collections.abc import Callable
from ctypes import c_char_p, c_float, c_int, c_long, c_void_p
from pathlib import Path
from typing import Any

import torch

from shared.telemetry.logging_setup import fields

logger = logging.getLogger("aios.native")

_AVX2 = ("avx2", "fma3", "f16c", "bmi", "bmi2", "lzcnt")
_AVX512 = ("avx512_f", "avx512_bw", "avx512_cd", "avx512_dq", "avx512_vl")
INSTRUCTIONS = {
    "avx512_bf16": (*_AVX512, "avx512_vnni", "avx512_bf16"),
    "avx512_vnni": (*_AVX512, "avx512_vnni"),
    "avx512": _AVX512,
    "avx_vnni": (*_AVX2, "avx_vnni"),
    "avx2": _AVX2,
}
"""The sets of instructions that there are kernels for, the best first.

Each names what a processor must be able to do, in the words of `torch.cpu.get_capabilities`.
"""

FOLDER = Path(__file__).parent
Function = Callable[..., None]

_SIZES = [c_long, c_long]
_FLAG_AND_THREADS = [c_int, c_long]
# In the order of the parameters in `kernels.c`.
_PARAMETERS: dict[str, list[Any]] = {
    "set_parallel": [c_void_p],
    "rms_norm": [*[c_void_p] * 2, c_long, c_void_p, c_float, *_SIZES, *_FLAG_AND_THREADS],
    "rotate": [c_void_p, c_long, *[c_void_p] * 2, c_long, *_SIZES, c_int, *_FLAG_AND_THREADS],
    "gate": [*[c_void_p] * 2, c_long, c_void_p, c_long, *_SIZES, c_int, *_FLAG_AND_THREADS],
    "write_rows": [*[c_void_p] * 3, *[c_long] * 4, c_int, c_int],
    "linear": [*[c_void_p] * 2, c_long, *[c_void_p] * 2, c_long, *_SIZES, *_FLAG_AND_THREADS],
    "byte_linear": [*[c_void_p] * 2, c_long, *[c_void_p] * 4, c_long, *_SIZES, *_FLAG_AND_THREADS],
    "choose_tokens": [*[c_void_p] * 2, *_SIZES, *[c_void_p] * 5, c_long],
    "all_finite": [*[c_void_p] * 2, *_SIZES],
    "paged_attention": [c_void_p, *_SIZES],
    "run_layers": [*[c_void_p] * 2, c_long, c_void_p, c_long],
    "run_passes": [*[c_void_p] * 2, c_long, *[c_void_p] * 2],
    "run_encoder_layers": [*[c_void_p] * 2, c_long, c_void_p],
}


class Library:
    """The compiled kernels.

    `lanes` is the number of elements of which widths must be multiples, and `panel` the number of
    outputs that lie together in a packed weight. `weight_peak` is the largest weight in int8, and
    `queries_at_once` the most queries that attend together.
    `digest` is the hash of the compiled file: other compilers may round other last bits.
    """

    def __init__(self, functions: ctypes.CDLL, digest: str) -> None:
        self.digest = digest
        for name, parameters in _PARAMETERS.items():
            function = getattr(functions, name)
            function.argtypes = parameters
            function.restype = None
        self.rms_norm: Function = functions.rms_norm
        self.rotate: Function = functions.rotate
        self.gate: Function = functions.gate
        self.write_rows: Function = functions.write_rows
        self.linear: Function = functions.linear
        self.byte_linear: Function = functions.byte_linear
        self.choose_tokens: Function = functions.choose_tokens
        self.all_finite: Function = functions.all_finite
        self.paged_attention: Function = functions.paged_attention
        self.run_layers: Function = functions.run_layers
        self.run_passes: Function = functions.run_passes
        self.run_encoder_layers: Function = functions.run_encoder_layers
        self.lanes = int(functions.num_lanes())
        self.panel = int(functions.panel_width())
        self.weight_peak = int(functions.weight_peak())
        self.queries_at_once = int(functions.queries_at_once())

        # The threads are those of torch's own OpenMP runtime: a second runtime's would wait for
        # the same processors.
        everything = ctypes.CDLL(None)
        if hasattr(everything, "GOMP_parallel"):
            functions.set_parallel(ctypes.cast(everything.GOMP_parallel, c_void_p))


@functools.cache
def library() -> Library | None:
    """Return the best kernels for this processor, or None where there are none."""
    for name in INSTRUCTIONS:
        kernels = open_kernels(name)
        if kernels is not None:
            return kernels
    return None


def open_kernels(name: str) -> Library | None:
    """Return the kernels for a set of instructions.

    Return None if this processor lacks some of these, without a compiled file, and for a file of
    another platform or of other sources.
    """
    can = torch.cpu.get_capabilities()
    if not all(can.get(instruction, False) for instruction in INSTRUCTIONS[name]):
        return None
    path = FOLDER / f"kernels_{name}.so"
    try:
        functions = ctypes.CDLL(str(path))
    except OSError:
        return None

    # In a checkout the sources may be newer than what was compiled. Functions may then be missing
    # or have other parameters. A wheel holds no sources.
    source = FOLDER / "kernels.c"
    functions.source_digest.restype = c_char_p
    if source.exists() and _digest(source) != functions.source_digest().decode():
        extra = fields(file=path.name, remedy="scripts/setup_venv.sh compiles them again")
        logger.warning("kernels not used, sources have changed", extra=extra)
        return None
    return Library(functions, _digest(path))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
