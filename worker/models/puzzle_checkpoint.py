"""The loader of recurrent puzzle networks: HRM, TRM and URM, in the forms that people publish.

- a file `checkpoint`, `step_<N>` or `step_<N>.pt`, with `all_config.yaml` beside it;
- a file that `manifest.yaml` names, such as `model.pt`;
- a Lightning file `*.ckpt`, which has its configuration, and averaged weights, in it.

A checkpoint may be flat or wrapped, with or without the prefixes of training code. The network was
built from its own configuration, so the numbers that decide what it computes are taken from there,
and are never guessed. The facts that depend on the data set come from `dataset.json` or from the
tensors. A checkpoint that does not match in full is refused.

The table of puzzle embeddings, which may be most of the file, stays mapped to it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worker.models.errors import ModelFormatError
from worker.models.hf_directory import is_there
from worker.models.puzzle_config import (
    Section,
    Source,
    network,
    of_lightning,
    read_source,
    sizes_of,
)
from worker.models.puzzle_identifiers import NO_NAMES, IdentifierNames, read_identifiers
from worker.models.puzzle_net import MODELS, Family, PuzzleNetConfig, RecurrentPuzzleModel
from worker.models.weights import as_tensors, check_names, read_mapped, without_prefixes
from worker.puzzles.kinds import KINDS, PuzzleKind, RawTokens, kind_of

_IDENTIFIERS = "identifiers.json"
_TABLE = "puzzle_emb.weights"
# Prefixes that torch.compile, DDP, the loss head and the ACT wrapper put before parameter names.
_WRAPPERS = re.compile(r"^(?:_orig_mod\.|module\.|model\.|inner\.)+")
_NAMES: dict[Family, str] = {"hrm": "Sapient HRM", "trm": "TRM", "urm": "URM"}
# Names in nano-trm's Lightning files, and those of TRM for the same tensors.
_LIGHTNING_NAMES = (
    (re.compile(r"^input_embedding\."), "embed_tokens."),
    (re.compile(r"^lenet\."), "L_level."),
    (re.compile(r"^z_([HL])_init$"), r"\1_init"),
    (re.compile(r"^puzzle_emb\.embedding\.weight$"), _TABLE),
)
# What training keeps of the last batch's puzzles.
_LOCAL = ("puzzle_emb.local_weights", "puzzle_emb.local_ids")


@dataclass(frozen=True)
class PuzzleCheckpoint:
    """A loaded checkpoint.

    `model` is in eval mode, without gradients. `kind` is the kind of puzzle that it solves.
    `identifiers` are the names of the rows of its puzzle embeddings. `description` is for people.
    """

    model: RecurrentPuzzleModel
    kind: PuzzleKind
    identifiers: IdentifierNames
    description: str


def load_puzzle_checkpoint(path: Path, dtype: torch.dtype = torch.float32) -> PuzzleCheckpoint:
    """Load `path`, a directory (its latest step) or a file in it, onto the CPU in `dtype`.

    Raise ModelFormatError for files that are missing or unreadable, and for tensors that are not
    exactly the network of the configuration.
    """
    source = read_source(path)
    content = _read(source.file)
    if source.arch is None:
        source = of_lightning(source, content.hyper_parameters)
    weights = content.tensors
    kind = _kind(weights, source)
    config = network(source, weights, kind.vocab_size, kind.num_cells)
    table = weights.pop(_TABLE, None)
    _check_table(table, config, source.file)

    # Built on the meta device: it is compared with the file's tensors, and then takes them over.
    with torch.device("meta"):
        model = MODELS[config.family](config)
    check_names(model.state_dict(), weights, source.file)
    # Copied, so that only the table is read from the file later on.
    copies = {name: tensor.to(dtype, copy=True) for name, tensor in weights.items()}
    model.load_state_dict(copies, assign=True)
    model.puzzle_table = table
    model.eval().requires_grad_(False)

    identifiers = _read_names(source.file.parent / _IDENTIFIERS, config)
    return PuzzleCheckpoint(model, kind, identifiers, _describe(kind, model, source.file))


@dataclass(frozen=True)
class _Content:
    """The contents of a file: tensors by their bare names, and a Lightning file's settings."""

    tensors: dict[str, Tensor]
    hyper_parameters: Section


def _read(file: Path) -> _Content:
    loaded = read_mapped(file)
    hyper_parameters: Section = {}
    averaged: Mapping[str, Tensor] = {}
    if "model_state_dict" in loaded:
        loaded = _section(loaded, "model_state_dict", file)
    elif "state_dict" in loaded:
        if "hyper_parameters" in loaded:
            hyper_parameters = _section(loaded, "hyper_parameters", file)
        averaged = _averaged(loaded, file)
        loaded = _section(loaded, "state_dict", file)

    tensors = without_prefixes(as_tensors(loaded, file), _WRAPPERS, file)
    # Averaged weights have their own file's names. Buffers are not averaged.
    tensors |= without_prefixes(averaged, _WRAPPERS, file)
    renamed = {_tensor_name(name): tensor for name, tensor in tensors.items()}
    for name in _LOCAL:
        renamed.pop(name, None)
    return _Content(renamed, hyper_parameters)


def _section(loaded: Mapping[str, Any], name: str, file: Path) -> Mapping[str, Any]:
    section = loaded[name]
    if not isinstance(section, Mapping):
        raise ModelFormatError(f"{file} has no map in its {name}; copy or save it again.")
    return section


def _averaged(loaded: Mapping[str, Any], file: Path) -> Mapping[str, Tensor]:
    """Return the averaged weights that a callback of Lightning keeps, or none."""
    callbacks = loaded.get("callbacks")
    if not isinstance(callbacks, Mapping):
        return {}
    for state in callbacks.values():
        shadow = state.get("shadow") if isinstance(state, Mapping) else None
        if isinstance(shadow, Mapping):
            return as_tensors(shadow, file)
    return {}


def _tensor_name(name: str) -> str:
    for pattern, replacement in _LIGHTNING_NAMES:
        name = pattern.sub(replacement, name)
    return name


def _kind(weights: Mapping[str, Tensor], source: Source) -> PuzzleKind:
    """Return the kind of puzzle.

    Raise ModelFormatError for unknown sizes of a checkpoint without its data set's own file, and if
    the data set is named after another puzzle.
    """
    sizes = sizes_of(source, weights)
    assert sizes.vocab_size is not None
    kind = kind_of(sizes.vocab_size, sizes.seq_len, source.words)
    if kind is None and sizes.is_declared and sizes.seq_len is not None:
        return RawTokens(sizes.vocab_size, sizes.seq_len)
    if kind is None:
        cells = "" if sizes.seq_len is None else f" and {sizes.seq_len} cells"
        known = ", ".join(f"{kind.vocab_size} ({kind.name})" for kind in KINDS)
        problem = (
            f"{source.file} has a vocabulary of {sizes.vocab_size} tokens{cells}, which is no puzzle "
            f"we know: {known}"
        )
        raise ModelFormatError(f"{problem}; copy its data set's dataset.json there.")

    for other in KINDS:
        if other.name in source.words and kind.name not in source.words:
            problem = (
                f"{source.file} has the vocabulary of {kind.name}, but was trained on "
                f"{source.data_path}"
            )
            raise ModelFormatError(f"{problem}; copy the {source.name} that belongs to it.")
    return kind


def _check_table(table: Tensor | None, config: PuzzleNetConfig, file: Path) -> None:
    """Raise ModelFormatError unless there is a table of the right width, or none is due."""
    if not config.puzzle_emb_ndim:
        if table is not None:
            raise ModelFormatError(
                f"{file} does not hold one whole network: unexpected {_TABLE}; copy it again, with "
                "the configuration it belongs to."
            )
        return
    expected = [config.num_identifiers, config.puzzle_emb_ndim]
    assert table is not None, "its rows were counted"
    if list(table.shape) != expected or not table.is_floating_point():
        raise ModelFormatError(
            f"{file} does not hold one whole network: {_TABLE} has shape {list(table.shape)} where "
            f"{expected} was due; copy it again, with the configuration it belongs to."
        )


def _read_names(file: Path, config: PuzzleNetConfig) -> IdentifierNames:
    """Return the names of the puzzle identifiers, if the data set's list is beside the checkpoint."""
    if not config.puzzle_emb_ndim or not is_there(file):
        return NO_NAMES
    names = read_identifiers(file)
    if len(names) != config.num_identifiers:
        problem = f"{file} has {len(names)} names, but {_TABLE} {config.num_identifiers} rows"
        raise ModelFormatError(f"{problem}; correct or remove it.")
    return names


def _describe(kind: PuzzleKind, model: RecurrentPuzzleModel, file: Path) -> str:
    config = model.config
    identifiers = "no puzzle embedding"
    if config.puzzle_emb_ndim:
        identifiers = f"{config.num_identifiers} identifiers"
    layers = str(config.l_layers)
    if config.h_layers:
        layers = f"{config.h_layers}+{config.l_layers}"
    mixing = "MLPs over positions" if config.mixing_size else f"{config.pos_encoding} positions"
    count = sum(weight.numel() for weight in model.parameters())
    return (
        f"{_NAMES[config.family]} for {kind.name} ({file.name}): {count / 1e6:.1f} M parameters, "
        f"hidden {config.hidden_size}, {layers} layers, {config.h_cycles}x{config.l_cycles} cycles, "
        f"{config.halt_max_steps} ACT segments, {mixing}, {identifiers}"
    )
