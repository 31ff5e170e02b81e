"""Readers of weights, configs and tokenizers on disk.

They refuse files that do not match. They know file formats, and no architectures.
"""

import pathlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import torch
from numpy import _core as numpy_core
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from worker.models.errors import ModelFormatError
from worker.models.hf_directory import (
    CONFIG,
    TOKENIZER_CONFIG,
    check_directory,
    check_tokenizer,
    directory_of,
    is_there,
    weight_files,
)
from worker.models.reading import COPY_AGAIN, faulty, read_json_object, reading, unusable

_ZIP = b"PK\x03\x04"
# What trainers leave beside weights, such as states of random generators and output directories.
_HARMLESS: list[Any] = [
    numpy_core.multiarray._reconstruct,
    (numpy_core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    numpy.ndarray,
    numpy.dtype,
    *(type(numpy.dtype(name)) for name in ("uint8", "uint32", "uint64", "int64", "float64")),
    pathlib.PosixPath,
    (pathlib.PosixPath, "pathlib._local.PosixPath"),
]
_PLAIN_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_MAX_FAULTS = 8
_GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
# More than one, because layers may share their weights.
_MAX_LAYERS_PER_TENSOR = 4

NO_NETWORK = "config.json may not be that of these weights: copy both again"
"""The remedy where files are whole, but do not make a network together."""


def read_safetensors_dir(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a Hugging Face directory, by name.

    They are those of `model.safetensors`, or of the shards that the index names. Raise
    ModelFormatError for files that are missing or damaged.
    """
    files = weight_files(path)
    if not files:
        raise ModelFormatError(
            f"{path} has no model.safetensors and no model.safetensors.index.json; copy them "
            "there, or convert the weights that are there to safetensors."
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        with reading(file):
            tensors |= load_file(file)
    return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors, by name, of a safetensors or torch zip file.

    The format is found by the file's first bytes, never by its suffix. Raise ModelFormatError when
    the file has neither format, is damaged, or holds anything but named tensors.
    """
    with _opened(path) as (file, head), reading(path, kind="weights"):
        if head.startswith(_ZIP):
            # The open file, not the path, because torch goes by a path's suffix.
            loaded: object = torch.load(file, map_location="cpu", weights_only=True)
        elif head[8:] == b"{":
            loaded = load_file(path)
        else:
            raise faulty(path, "is neither a safetensors file nor a torch zip file; copy it again.")
    return as_tensors(loaded, path)


def as_tensors(loaded: object, path: Path) -> dict[str, Tensor]:
    """Return what a file holds as named tensors. Raise ModelFormatError for anything else."""
    problem = (
        f"{path} holds something other than a flat map of named tensors; copy or save it again."
    )
    if not isinstance(loaded, Mapping):
        raise ModelFormatError(problem)
    tensors: dict[str, Tensor] = {}
    for name, value in loaded.items():
        if not isinstance(value, Tensor):
            raise ModelFormatError(problem)
        tensors[str(name)] = value
    return tensors


def read_mapped(path: Path) -> Mapping[str, Any]:
    """Return the map in a torch zip or safetensors file, its tensors mapped into memory.

    Besides tensors a zip file may hold plain values, arrays and paths. The tensors are read from
    the file when they are used, so it must stay as it is. Raise ModelFormatError when the file has
    another format, is damaged, or holds no map.
    """
    with _opened(path) as (_, head):
        is_zip = head.startswith(_ZIP)
    if not is_zip:
        return read_tensors(path)
    with reading(path, kind="weights"), torch.serialization.safe_globals(_HARMLESS):
        loaded: object = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(loaded, Mapping):
        raise ModelFormatError(f"{path} holds no map of names; copy or save it again.")
    return loaded


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, bytes]]:
    """Open a file, and return it with its first bytes, which tell the format.

    A zip file begins with its signature, a safetensors file with the header's length in 8 bytes and
    the header's brace.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise unusable(path, error) from error
    with file:
        with reading(path, kind="weights"):
            head = file.read(9)
            file.seek(0)
        yield file, head


def without_prefixes(
    tensors: Mapping[str, Tensor], wrappers: re.Pattern[str], source: Path
) -> dict[str, Tensor]:
    """Return the tensors without the prefixes that training put before their names.

    Raise ModelFormatError if two names become one.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = wrappers.sub("", name)
        if bare in weights:
            raise ModelFormatError(
                f"{source} holds {bare} twice, under different prefixes; save it again."
            )
        weights[bare] = tensor
    return weights


def check_names(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor], source: Path) -> None:
    """Raise ModelFormatError unless `actual` has the names and the shapes of `expected`.

    The error names the first tensors that are missing, unexpected, of another shape, or not
    floating point.
    """
    missing = []
    misshaped = []
    not_floating = []
    for name, tensor in expected.items():
        if name not in actual:
            missing.append(f"missing {name}")
            continue
        shape = actual[name].shape
        if shape != tensor.shape:
            misshaped.append(f"{name} has shape {list(shape)} where {list(tensor.shape)} was due")
        if actual[name].dtype not in _PLAIN_DTYPES:
            not_floating.append(f"{name} is {actual[name].dtype}")
    unexpected = [f"unexpected {name}" for name in actual if name not in expected]

    faults = [*missing, *unexpected, *misshaped, *not_floating]
    if not faults:
        return
    description = ", ".join(faults[:_MAX_FAULTS])
    if len(faults) > _MAX_FAULTS:
        description += f", and {len(faults) - _MAX_FAULTS} more"
    raise ModelFormatError(
        f"{source} does not hold one whole network: {description}; copy it again, with the "
        "configuration it belongs to."
    )


def check_all_loaded(info: Mapping[str, Any], source: Path) -> None:
    """Raise ModelFormatError unless a library has loaded each tensor of a network, and no other.

    `info` is the library's own report (`output_loading_info`).
    """
    problems = [*info["missing_keys"], *info["unexpected_keys"]]
    if problems:
        names = ", ".join(sorted(str(name) for name in problems)[:5])
        raise ModelFormatError(
            f"The weights in {source} do not match the model of config.json: missing or left "
            f"over: {names}; copy both again."
        )


def check_finite(tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raise ModelFormatError for tensors that are not finite.

    Use this for tensors that take decisions, such as those of a head that halts: their results are
    not checked later.
    """
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ModelFormatError(
            f"{source} holds numbers that are not finite, in {', '.join(broken)}; copy it again."
        )


def matrix_shape(weights: Mapping[str, Tensor], name: str, source: Path) -> tuple[int, int]:
    """Return the numbers of rows and of columns of a matrix.

    Raise ModelFormatError where there is no matrix of that name.
    """
    if name not in weights:
        raise ModelFormatError(
            f"{source} is not one whole network: {name} is missing; copy it again."
        )
    shape = weights[name].shape
    if len(shape) != 2:
        problem = f"{source} does not hold the network it should: {name} has shape {list(shape)}"
        raise ModelFormatError(f"{problem}; copy it again.")
    return shape[0], shape[1]


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local directory, or of the directory of a file in it.

    No hub is ever asked. Raise ModelFormatError.
    """
    path = directory_of(path)
    if not is_there(path):
        raise ModelFormatError(
            f"There is no tokenizer at {path}: give the directory of one with --tokenizer-path."
        )
    check_tokenizer(path)
    with reading(
        f"The tokenizer in {path}", "copy its files again, or name another with --tokenizer-path"
    ):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, config=_tokenizer_config(path), local_files_only=True, trust_remote_code=False
        )
    if not isinstance(tokenizer.model_max_length, int | float):
        problem = (
            f"{path / TOKENIZER_CONFIG} says model_max_length is {tokenizer.model_max_length!r}"
        )
        raise ModelFormatError(f"{problem}, no number; correct it.")
    return tokenizer


def _tokenizer_config(path: Path) -> PretrainedConfig | None:
    """Return a config for a tokenizer whose class does not depend on the model's config.

    Return None for any other: transformers then reads `config.json`, which for HRM-Text imports
    torch's compiler and takes more than a second.
    """
    if not (is_there(path / CONFIG) and is_there(path / TOKENIZER_CONFIG)):
        return None
    tokenizer = read_json_object(path / TOKENIZER_CONFIG)
    is_generic = tokenizer.get("tokenizer_class") in _GENERIC_TOKENIZERS
    is_hrm_text = read_json_object(path / CONFIG).get("model_type") == "hrm_text"
    if is_generic and is_hrm_text and "auto_map" not in tokenizer:
        return PretrainedConfig()
    return None


def read_config(path: Path) -> PretrainedConfig:
    """Return the config of a Hugging Face directory. No code in it is run.

    Raise ModelFormatError unless all of its files are whole.
    """
    declared = check_directory(path)
    file = path / CONFIG
    if "auto_map" in declared and declared.get("model_type") not in CONFIG_MAPPING:
        raise ModelFormatError(
            f"{file} asks for code of the model's own (auto_map), which is not run here; serve a "
            "model that the installed transformers knows."
        )
    with reading(file, f"correct it, or {COPY_AGAIN}"):
        config: PretrainedConfig = AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    _check_num_layers(config, path)
    return config


def _check_num_layers(config: PretrainedConfig, path: Path) -> None:
    """Raise ModelFormatError for a config with many more layers than there are tensors."""
    # transformers would build all layers before it compares them with the tensors.
    num_layers = getattr(config, "num_hidden_layers", 0)
    num_tensors = 0
    for file in weight_files(path):
        with reading(file), safe_open(file, "pt") as tensors:
            num_tensors += len(tensors.keys())
    if isinstance(num_layers, int) and num_layers > _MAX_LAYERS_PER_TENSOR * num_tensors:
        problem = (
            f"{path / CONFIG} says num_hidden_layers is {num_layers}, and there are "
            f"{num_tensors} tensors"
        )
        raise ModelFormatError(f"{problem}: {NO_NETWORK}.")


def start_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids that stand before a text without a context: bos, else eos, else none."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return (int(token),)
    return ()
