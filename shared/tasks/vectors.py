"""Vectors on the wire: float32, little-endian, nothing else."""

import sys
from array import array
from collections.abc import Iterable


def pack(values: Iterable[float]) -> bytes:
    """Return the wire form of a vector."""
    return _swapped(array("f", values)).tobytes()


def unpack(payload: bytes) -> list[float]:
    """Return the vector. Raise ValueError for bytes that are no whole number of floats."""
    values = array("f")
    values.frombytes(payload)
    return _swapped(values).tolist()


def _swapped(values: "array[float]") -> "array[float]":
    """Return the values, with their bytes swapped in place on a big-endian machine."""
    if sys.byteorder == "big":
        values.byteswap()
    return values
