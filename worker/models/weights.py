"""Reading weights and tokenizers from disk, and refusing what does not match. Knows file formats, no architectures."""

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from worker.models.errors import ModelFormatError

_FAULTS_NAMED = 8


def read_safetensors_dir(path: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face directory: `model.safetensors`, or the shards its index names."""
    index = path / "model.safetensors.index.json"
    single = path / "model.safetensors"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif single.is_file():
        shards = [single.name]
    else:
        raise ModelFormatError(f"{path} has no model.safetensors and no model.safetensors.index.json.")
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        tensors |= load_file(path / shard)
    return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The flat name -> tensor map of a safetensors or torch zip file, told apart by their bytes, never by the suffix.

    Raises ModelFormatError when it is neither, is damaged, or holds anything but named tensors.
    """
    with path.open("rb") as file:
        head = file.read(9)
        file.seek(0)
        try:
            if head.startswith(b"PK\x03\x04"):  # an open file, since torch goes by the suffix of a path
                loaded: object = torch.load(file, map_location="cpu", weights_only=True)
            elif head[8:] == b"{":
                loaded = load_file(path)
            else:
                raise ModelFormatError(f"{path} is neither a safetensors file nor a torch zip file")
        except (SafetensorError, pickle.UnpicklingError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise ModelFormatError(f"{path} cannot be read as weights: {reason}") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ModelFormatError(f"{path} holds something other than a flat map of named tensors")
    return {str(name): tensor for name, tensor in loaded.items()}


def without_prefixes(tensors: Mapping[str, Tensor], wrappers: re.Pattern[str], source: Path) -> dict[str, Tensor]:
    """The same tensors without what training put before their names. Raises ModelFormatError if two become one."""
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = wrappers.sub("", name)
        if bare in weights:
            raise ModelFormatError(f"{source} holds {bare} twice, under different prefixes")
        weights[bare] = tensor
    return weights


def check_names(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: Path) -> None:
    """Raise ModelFormatError naming the first tensors that are missing, left over, mis-shaped or not floating point."""
    shared = [name for name in expected if name in found]
    faults = [f"missing {name}" for name in expected if name not in found]
    faults += [f"unexpected {name}" for name in found if name not in expected]
    faults += [
        f"{name} has shape {list(found[name].shape)} where {list(expected[name].shape)} was due"
        for name in shared
        if found[name].shape != expected[name].shape
    ]
    faults += [f"{name} is {found[name].dtype}" for name in shared if not found[name].is_floating_point()]
    if faults:
        more = f", and {len(faults) - _FAULTS_NAMED} more" if len(faults) > _FAULTS_NAMED else ""
        raise ModelFormatError(f"{source} does not hold one whole network: {', '.join(faults[:_FAULTS_NAMED])}{more}")


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a local directory, or of the directory of a file in it; never asks a hub."""
    path = path.parent if path.is_file() else path
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelFormatError(f"No tokenizer could be loaded from {path}: {error}") from None
    return tokenizer


def start_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What stands before a text that has nothing before it: bos, else eos; empty if there is neither."""
    first = tokenizer.bos_token_id
    start = first if first is not None else tokenizer.eos_token_id
    return () if start is None else (int(start),)
