"""How large a model is, from its files alone: before anything is loaded, and without torch."""

import json
from collections.abc import Iterable
from itertools import chain
from math import prod
from os.path import isfile
from pathlib import Path
from typing import Any

BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def num_parameters(path: Path) -> int | None:
    """Parameters of a Hugging Face directory by its safetensors headers; None where only loading
    would tell.

    Damaged files are among the latter: it is the loader that says what is wrong with them.
    """
    try:
        files = _safetensors(path)
        return sum(map(_elements, files)) if files else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def weight_bytes(path: Path, dtype: str) -> int:
    """Memory of the weights in `dtype`. Without safetensors headers it is the size of the files,
    which is as exact as a plan needs; 0 where no file of weights lies at `path`."""
    count = num_parameters(path)
    return (
        sum(file.stat().st_size for file in _weight_files(path))
        if count is None
        else count * BYTES_OF[dtype]
    )


def _weight_files(path: Path) -> Iterable[Path]:
    if isfile(path):  # Path's own raises for what may not be looked at
        return [path]
    by_kind = ([file for file in path.glob(f"*{suffix}") if isfile(file)] for suffix in _SUFFIXES)
    return next(filter(None, by_kind), [])


def _safetensors(path: Path) -> list[Path]:
    """The files that `model.safetensors.index.json` names, or the one file, as far as they are
    there."""
    if (path / _INDEX).is_file():
        names = set(json.loads((path / _INDEX).read_text())["weight_map"].values())
    else:
        names = {_SINGLE}
    return [path / name for name in names if (path / name).is_file()]


def _elements(file: Path) -> int:
    """Numbers in a safetensors file: a little-endian length, then as many bytes of JSON with every
    tensor's shape."""
    with file.open("rb") as stream:
        num_bytes = int.from_bytes(stream.read(8), "little")
        if num_bytes > file.stat().st_size:  # of a damaged file; so much memory may not be there
            raise ValueError(f"{file} has a header longer than itself")
        header: dict[str, Any] = json.loads(stream.read(num_bytes))
    shapes = (entry["shape"] for name, entry in header.items() if name != "__metadata__")
    return sum(chain(map(prod, shapes)))
