"""The loader of Sapient HRM checkpoints, directories of `all_config.yaml` and torch state dicts.

The network was built from `all_config.yaml`, so every tensor must fit that file. The facts that
depend on the data set are not in the file, and come from the tensors: the vocabulary, which tells
the kind of puzzle, and the number of puzzle identifiers. A checkpoint that does not match in full
is refused.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from worker.models.errors import ModelFormatError
from worker.models.hf_directory import is_there
from worker.models.reading import faulty, read_json, read_yaml
from worker.models.sapient import SapientConfig, SapientModel
from worker.models.weights import check_names, matrix_shape, read_tensors, without_prefixes
from worker.text.puzzles import KINDS, PuzzleKind

_CONFIG = "all_config.yaml"
_IDENTIFIERS = "identifiers.json"
_STEP = re.compile(r"step_(\d+)")
# Prefixes that torch.compile, DDP, the loss head and the ACT wrapper put before parameter names.
_WRAPPERS = re.compile(r"^(?:_orig_mod\.|module\.|model\.|inner\.)+")

Section = Mapping[str, object]


@dataclass(frozen=True)
class SapientCheckpoint:
    """A loaded checkpoint.

    `model` is in eval mode, without gradients. `kind` is the kind of puzzle that it solves.
    `identifiers` are the named rows of its puzzle embeddings. `description` is for people.
    """

    model: SapientModel
    kind: PuzzleKind
    identifiers: Mapping[str, int]
    description: str


def load_sapient_checkpoint(path: Path, dtype: torch.dtype = torch.float32) -> SapientCheckpoint:
    """Load `path`, a directory (its latest step) or a state dict in it, onto the CPU in `dtype`.

    Raise ModelFormatError for files that are missing or unreadable, and for tensors that are not
    exactly the network of the configuration.
    """
    directory = path if path.is_dir() else path.parent
    file = path if path.is_file() else _latest(directory)
    arch, data_path = _read_config(directory / _CONFIG)
    weights = without_prefixes(read_tensors(file), _WRAPPERS, file)
    kind = _kind(_rows(weights, "embed_tokens.embedding_weight", file), data_path, file)
    config = _network(arch, weights, kind, file)

    # Built on the meta device: it is compared with the file's tensors, and then takes them over.
    with torch.device("meta"):
        model = SapientModel(config)
    check_names(model.state_dict(), weights, file)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
    model.eval().requires_grad_(False)

    identifiers = _read_identifiers(directory / _IDENTIFIERS, config)
    return SapientCheckpoint(model, kind, identifiers, _describe(kind, model, file))


def _latest(directory: Path) -> Path:
    """Return the file `checkpoint` of published models, or else that of the highest step."""
    if (directory / "checkpoint").is_file():
        return directory / "checkpoint"
    steps = []
    for file in directory.glob("step_*"):
        match = _STEP.fullmatch(file.name)
        if match and file.is_file():
            steps.append((int(match[1]), file))
    if not steps:
        problem = f"{directory} has neither a file named checkpoint nor one named step_<number>"
        raise ModelFormatError(f"{problem}; copy one there.")
    _, latest = max(steps)
    return latest


def _read_config(file: Path) -> tuple[Section, str]:
    """Return the `arch` section, and the path of the data set, which may name the puzzle."""
    if not is_there(file):
        raise ModelFormatError(f"{file.parent} has no {file.name}; copy it there.")
    config = read_yaml(file)
    arch = config.get("arch") if isinstance(config, dict) else None
    if not isinstance(arch, dict):
        raise faulty(file, "has no section arch; copy it again.")
    name = str(arch.get("name"))
    if "hrm" not in name.lower():
        raise ModelFormatError(
            f"{file} says arch.name is {name!r}, which is no Sapient HRM network; serve another."
        )
    return arch, str(config.get("data_path") or "")


def _kind(vocab_size: int, data_path: str, file: Path) -> PuzzleKind:
    """Return the kind of puzzle with this vocabulary.

    Raise ModelFormatError for an unknown vocabulary, or if the data set is named after another
    puzzle.
    """
    kinds = {kind.vocab_size: kind for kind in KINDS}
    if vocab_size not in kinds:
        known = ", ".join(f"{kind.vocab_size} ({kind.name})" for kind in KINDS)
        problem = (
            f"{file} has a vocabulary of {vocab_size} tokens, which is no puzzle we know: {known}"
        )
        raise ModelFormatError(f"{problem}; serve another.")

    kind = kinds[vocab_size]
    words = set(re.split(r"[^a-z]+", Path(data_path).name.lower()))
    for other in KINDS:
        if other.name in words and kind.name not in words:
            problem = f"{file} has the vocabulary of {kind.name}, but was trained on {data_path}"
            raise ModelFormatError(f"{problem}; copy the {_CONFIG} that belongs to it.")
    return kind


def _network(
    arch: Section, weights: Mapping[str, Tensor], kind: PuzzleKind, file: Path
) -> SapientConfig:
    """Return the configuration of the network that the files describe."""
    hidden_size = _whole(arch, "hidden_size")
    puzzle_emb_ndim = _whole(arch, "puzzle_emb_ndim", default=0)
    down = weights.get("H_level.layers.0.mlp.down_proj.weight")
    if down is None or down.dim() != 2:
        problem = f"{file} has no matrix named H_level.layers.0.mlp.down_proj.weight"
        raise ModelFormatError(f"{problem}; copy it again.")
    return SapientConfig(
        vocab_size=kind.vocab_size,
        seq_len=kind.num_cells,
        hidden_size=hidden_size,
        intermediate_size=down.shape[1],
        num_heads=_whole(arch, "num_heads"),
        h_layers=_whole(arch, "H_layers"),
        l_layers=_whole(arch, "L_layers"),
        h_cycles=_whole(arch, "H_cycles"),
        l_cycles=_whole(arch, "L_cycles"),
        halt_max_steps=_whole(arch, "halt_max_steps"),
        pos_encoding=_positions(arch),
        puzzle_emb_ndim=puzzle_emb_ndim,
        num_identifiers=_rows(weights, "puzzle_emb.weights", file) if puzzle_emb_ndim else 1,
        rope_theta=_positive(arch, "rope_theta", default=1e4),
        norm_eps=_positive(arch, "rms_norm_eps", default=1e-5),
    )


def _rows(weights: Mapping[str, Tensor], name: str, file: Path) -> int:
    rows, _ = matrix_shape(weights, name, file)
    return rows


def _whole(arch: Section, key: str, default: int | None = None) -> int:
    """Return a whole number that is at least 1, or the default.

    Raise ModelFormatError for any other value, or if the key is absent and there is no default.
    """
    value = arch.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or (value < 1 and value != default):
        raise ModelFormatError(
            f"{_CONFIG} says arch.{key} is {value!r}, not a whole number from 1 up; correct it."
        )
    return value


def _positive(arch: Section, key: str, default: float) -> float:
    value = arch.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ModelFormatError(
            f"{_CONFIG} says arch.{key} is {value!r}, not a number over 0; correct it."
        )
    return float(value)


def _positions(arch: Section) -> Literal["rope", "learned"]:
    value = arch.get("pos_encodings")
    if value == "rope" or value == "learned":
        return value
    raise ModelFormatError(
        f"{_CONFIG} says arch.pos_encodings is {value!r}, neither 'rope' nor 'learned'; correct it."
    )


def _read_identifiers(file: Path, config: SapientConfig) -> dict[str, int]:
    """Return puzzle identifiers by name.

    They come from the data set's list of names, if that is beside the checkpoint.
    """
    if not config.puzzle_emb_ndim or not is_there(file):
        return {}
    names = read_json(file)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelFormatError(f"{file} is not a list of names; correct or remove it.")
    if len(names) != config.num_identifiers:
        problem = (
            f"{file} has {len(names)} names, but puzzle_emb.weights {config.num_identifiers} rows"
        )
        raise ModelFormatError(f"{problem}; correct or remove it.")

    # Gaps in the list all have the same name. It stands for the first gap.
    identifiers: dict[str, int] = {}
    for number, name in enumerate(names):
        identifiers.setdefault(name, number)
    return identifiers


def _describe(kind: PuzzleKind, model: SapientModel, file: Path) -> str:
    config = model.config
    identifiers = "no puzzle embedding"
    if config.puzzle_emb_ndim:
        identifiers = f"{config.num_identifiers} identifiers"
    count = 0
    for name, weight in model.named_parameters():
        if not name.startswith("puzzle_emb."):
            count += weight.numel()
    return (
        f"Sapient HRM for {kind.name} ({file.name}): {count / 1e6:.1f} M parameters, hidden "
        f"{config.hidden_size}, {config.h_layers}+{config.l_layers} layers, "
        f"{config.h_cycles}x{config.l_cycles} cycles, {config.halt_max_steps} ACT segments, "
        f"{config.pos_encoding} positions, {identifiers}"
    )
