"""Whole layers of a decoder in one call of the kernels.

A decoding step of a small network takes as long as calling its operators from Python. Here a call
runs several layers, or an HRM's passes through its stacks, and computes what the operators in
`operators.py` and attention over pages (`worker/kv/paged_native.py`) compute, bit by bit. The
structures are those of `kernels.c`.
"""

import ctypes
from ctypes import c_float, c_int, c_long, c_void_p


class NativeWeight(ctypes.Structure):
    """A weight [outputs, inputs] in the layout of `linear` or `byte_linear`."""

    _fields_ = (
        ("weight", c_void_p),
        ("scales", c_void_p),
        ("offsets", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_long),
        ("outputs", c_long),
        ("kind", c_long),
    )


class NativeLayer(ctypes.Structure):
    """The weights of a layer, and those [hidden] of its norms, which may have none."""

    _fields_ = (
        ("heads", NativeWeight),
        ("attended", NativeWeight),
        ("gate_up", NativeWeight),
        ("down", NativeWeight),
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
    )


class NativePass(ctypes.Structure):
    """A pass of an HRM through a stack of layers, whose slots begin with `first_slot`."""

    _fields_ = (
        ("layers", c_void_p),
        ("count", c_long),
        ("first_slot", c_long),
        ("is_high", c_long),
    )


class NativeEncoderLayer(ctypes.Structure):
    """The weights of a layer of an encoder, and the scales and shifts [hidden] of its norms."""

    _fields_ = (
        ("heads", NativeWeight),
        ("attended", NativeWeight),
        ("up", NativeWeight),
        ("down", NativeWeight),
        ("attention_scale", c_void_p),
        ("attention_shift", c_void_p),
        ("mlp_scale", c_void_p),
        ("mlp_shift", c_void_p),
    )


class NativeAttention(ctypes.Structure):
    """The attention of a step over pages, in the order of `kernels.c`."""

    _fields_ = (
        ("out", c_void_p),
        ("query", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("fresh_keys", c_void_p),
        ("fresh_values", c_void_p),
        ("block_table", c_void_p),
        ("num_stored", c_void_p),
        ("fresh_starts", c_void_p),
        ("blocks", c_void_p),
        ("positions", c_void_p),
        ("ends", c_void_p),
        ("query_stride", c_long),
        ("table_width", c_long),
        ("kv_heads", c_long),
        ("group", c_long),
        ("head_dim", c_long),
        ("page_size", c_long),
        ("window", c_long),
        ("scale", c_float),
        ("type", c_int),
        ("kv_type", c_int),
    )


class NativeStep(ctypes.Structure):
    """A step: its rows, its attention, and where the pools keep its keys and values."""

    _fields_ = (
        ("attention", ctypes.POINTER(NativeAttention)),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("places", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("slot_bytes", c_long),
        ("rows", c_long),
        ("num_blocks", c_long),
        ("hidden", c_long),
        ("is_gated", c_long),
        ("is_signed", c_long),
        ("eps", c_float),
        ("threads", c_long),
    )
