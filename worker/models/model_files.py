"""The size of a model by its files alone, before anything is loaded, and without torch."""

import json
from math import prod
from os.path import isfile
from pathlib import Path
from typing import Any

BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
_PIPELINE = "model_index.json"
_STEMS = ("model", "diffusion_pytorch_model")
"""The names of weights files, without endings: those of transformers and of diffusers."""
# Large graphs keep their weights beside them, in files such as model.onnx.data.
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".onnx*")


def num_parameters(path: Path) -> int | None:
    """Return the number of parameters of a Hugging Face directory by its safetensors headers.

    Return None where only loading would tell.
    """
    try:
        files = _safetensors(path)
        if not files:
            return None
        return sum(_num_elements(file) for file in files)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # A file is damaged. The loader says what is wrong with it.
        return None


def weight_bytes(path: Path, dtype: str) -> int:
    """Return the bytes of memory that the weights take in `dtype`.

    Return 0 where no file of weights is at `path`.
    """
    count = num_parameters(path)
    if count is not None:
        return count * BYTES_OF[dtype]
    # Without safetensors headers the size of the files is as exact as a plan needs.
    return sum(file.stat().st_size for file in _weight_files(path))


def stored_bytes(path: Path) -> int:
    """Return the bytes of all files of a model, 0 where there are none."""
    return sum(file.stat().st_size for file in stored_files(path))


def stored_files(path: Path) -> list[Path]:
    """Return the files of a model in the order of their names: a file, or those of a directory.

    They lie in the directory, or one below. Hidden files are left out.
    """
    if isfile(path):
        return [path]
    files: list[Path] = []
    for pattern in ("[!.]*", "[!.]*/[!.]*"):
        files += [file for file in path.glob(pattern) if isfile(file)]
    return sorted(files)


def _weight_files(path: Path) -> list[Path]:
    """Return the files of the first suffix in `_SUFFIXES` of which there are any."""
    if isfile(path):  # Path.is_file raises where permissions are missing
        return [path]
    for suffix in _SUFFIXES:
        files = [file for file in path.glob(f"*{suffix}") if isfile(file)]
        if files:
            return files
    return []


def _safetensors(path: Path) -> list[Path]:
    """Return the files of weights: for each network those that its index names, or else the one.

    A pipeline of diffusers has each of its networks in a folder. Files that are missing are left
    out.
    """
    folders = [path]
    if (path / _PIPELINE).is_file():
        folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
    files: list[Path] = []
    for folder in folders:
        for stem in _STEMS:
            names = {f"{stem}.safetensors"}
            index = folder / f"{stem}.safetensors.index.json"
            if index.is_file():
                names = set(json.loads(index.read_text())["weight_map"].values())
            files += [folder / name for name in names if (folder / name).is_file()]
    return files


def _num_elements(file: Path) -> int:
    """Return the number of elements in a safetensors file.

    The file begins with a little-endian length of 8 bytes, then as many bytes of JSON with every
    tensor's shape.
    """
    with file.open("rb") as stream:
        num_bytes = int.from_bytes(stream.read(8), "little")
        # The length in a damaged file may be larger than all memory.
        if num_bytes > file.stat().st_size:
            raise ValueError(f"{file} has a header longer than itself")
        header: dict[str, Any] = json.loads(stream.read(num_bytes))

    num_elements = 0
    for name, entry in header.items():
        if name != "__metadata__":
            num_elements += prod(entry["shape"])
    return num_elements
