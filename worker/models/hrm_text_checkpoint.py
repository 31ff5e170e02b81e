"""The loader of raw HRM-Text training checkpoints, without a conversion.

A checkpoint is the directory that the trainer writes:

    all_config.yaml
    train_metadata.yaml
    fsdp2_epoch_<e>/      torch.distributed.checkpoint of {"model", "optim"}

Sizes come from the two YAML files, so that a network that has lost a layer is refused. Only the
width of the MLP comes from the tensors. The optimizer keeps the moving average of the weights under
the parameter's name (`optim.state.<parameter>.param_ema`). A checkpoint that numbers its parameters
instead is refused.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from worker.models.distributed_checkpoint import read_named, tensor_names
from worker.models.errors import ModelFormatError
from worker.models.hrm_text import HrmTextModel, HrmTextShape, build_model
from worker.models.hrm_text_prompt import CONDITIONS, PromptMarks
from worker.models.reading import Count, Positive, converted, read_yaml_mapping, unusable
from worker.models.weights import matrix_shape

_NETWORK = "HierarchicalReasoningModel"
_EPOCH = re.compile(r"fsdp2_epoch_(\d+)")
_WEIGHT = "model.{}"
_AVERAGE = "optim.state.{}.param_ema"
# A buffer, which no optimizer knows.
_NOT_AVERAGED = "model.zL_init"
# Left by older trainers.
_UNUSED = re.compile(r"model\.(?:zH_init|[HL]_level\.core\.rotary_emb\..*)")
_RENAMED = (
    (re.compile(r"^model\.([HL])_level\.core\.layers\."), r"model.\1_module.layers."),
    (re.compile(r"^model\.zL_init$"), "model.z_L_init"),
    (re.compile(r"^embed_tokens\.embedding_weight$"), "model.embed_tokens.weight"),
)


class _Arch(msgspec.Struct):
    """Section `arch` of `all_config.yaml`.

    The types allow only those values of the trainer's options that this network covers.
    """

    n_layers: Count
    hidden_size: Count
    num_heads: Count
    h_cycles: Count = msgspec.field(name="H_cycles")
    l_cycles: Count = msgspec.field(name="L_cycles")
    norm_eps: Positive
    rope_theta: Positive
    norm_type: Literal["pre"]
    pos_emb_type: Literal["rope"]
    init_type: Literal["lecun_normal", "megatron", "fixed_normal"]
    init_std: Positive | None = None
    half_layers: bool = False
    attn_type: Literal["prefixlm"] = "prefixlm"
    h_override: dict[str, Any] = msgspec.field(name="H_override", default_factory=dict)


class _TokenizerInfo(msgspec.Struct):
    tokenizer_path: str | None = None
    boq: str = "<|im_start|>"
    eoq: str = "<|im_end|>"
    eoa: str = "<|box_end|>"
    condition_mapping: dict[str, str] = msgspec.field(default_factory=lambda: dict(CONDITIONS))


class _TrainMetadata(msgspec.Struct):
    max_seq_len: Count
    vocab_size: Count | None = None
    tokenizer_info: _TokenizerInfo = msgspec.field(default_factory=_TokenizerInfo)


@dataclass(frozen=True)
class HrmTextCheckpoint:
    """A loaded checkpoint.

    `model` is in eval mode on the CPU. `tokenizer_path` is None if the tokenizer is not on this
    machine. `note` tells people which weights were taken.
    """

    model: HrmTextModel
    marks: PromptMarks
    tokenizer_path: Path | None
    note: str


def load_checkpoint(
    path: Path, dtype: torch.dtype = torch.float32, *, use_ema: bool = True
) -> HrmTextCheckpoint:
    """Load the newest epoch in `path`, or the epoch directory that it names.

    The averaged weights are taken if `use_ema` is set and the training kept them. Raise
    ModelFormatError for files that are missing, for a network that is not served, and for tensors
    that are not exactly the network of the configuration.
    """
    epoch_dir = _epoch_dir(path)
    config_file = epoch_dir.parent / "all_config.yaml"
    config = read_yaml_mapping(config_file)
    metadata_file = epoch_dir.parent / "train_metadata.yaml"
    metadata = converted(
        read_yaml_mapping(metadata_file), _TrainMetadata, metadata_file, strict=False
    )
    arch = _arch(config, config_file)

    weights, is_average = _read_weights(epoch_dir, use_ema=use_ema, ema_decay=config.get("ema"))
    shape = _shape(arch, metadata, weights, epoch_dir)
    model = build_model(shape, weights, epoch_dir, dtype)

    info = metadata.tokenizer_info
    weights_taken = "averaged (EMA)" if is_average else "plain"
    return HrmTextCheckpoint(
        model,
        marks=PromptMarks(info.boq, info.eoq, info.eoa, conditions=info.condition_mapping),
        tokenizer_path=_tokenizer_path(info.tokenizer_path, epoch_dir.parent),
        note=f"{epoch_dir.name}, {weights_taken} weights",
    )


def _epoch_dir(path: Path) -> Path:
    """Return the epoch directory that `path` names, or the newest one in it."""
    directory = path.absolute() if path.is_dir() else path.absolute().parent
    if _EPOCH.fullmatch(directory.name):
        return directory

    epochs: dict[int, Path] = {}
    try:
        for entry in directory.iterdir():
            match = _EPOCH.fullmatch(entry.name)
            if match:
                epochs[int(match[1])] = entry
    except OSError as error:
        raise unusable(directory, error) from error
    if not epochs:
        raise ModelFormatError(f"{directory} has no directory fsdp2_epoch_<number>; copy it there.")
    return epochs[max(epochs)]


def _arch(config: Mapping[str, Any], file: Path) -> _Arch:
    """Return the `arch` section. Raise ModelFormatError for a network that is not served."""
    section = config.get("arch")
    name = section.get("name") if isinstance(section, dict) else None
    if not str(name).endswith(f"@{_NETWORK}"):
        problem = f"{file} names the network {name!r}; only {_NETWORK} is served"
        raise ModelFormatError(f"{problem}, so serve another checkpoint.")
    arch = converted(section, _Arch, f"{file}, section arch,", strict=False)
    if arch.h_override:
        problem = (
            f"{file} overrides {', '.join(arch.h_override)} in the H stack, which is not served"
        )
        raise ModelFormatError(f"{problem}; serve a checkpoint without that.")
    return arch


def _read_weights(
    epoch_dir: Path, *, use_ema: bool, ema_decay: object
) -> tuple[dict[str, Tensor], bool]:
    """Return the tensors by our names, and whether they are the averaged ones.

    `ema_decay` is the trainer's setting, which is true if the training kept an average.
    """
    stored_names = tensor_names(epoch_dir)
    prefix = _WEIGHT.format("")
    needed = []
    averaged = set()
    for stored_name in stored_names:
        name = stored_name.removeprefix(prefix)
        if not stored_name.startswith(prefix) or _UNUSED.fullmatch(name):
            continue
        needed.append(name)
        if _AVERAGE.format(name) in stored_names:
            averaged.add(name)

    # Plain and averaged weights are never mixed.
    is_average = use_ema and bool(averaged or ema_decay)
    if is_average:
        lacking = sorted(set(needed) - averaged - {_NOT_AVERAGED})
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise ModelFormatError(
                f"{epoch_dir} keeps no averaged weights (EMA) by the name of {lacking[0]}{more}; "
                "set use_ema to false to take the plain ones."
            )

    stored_name_of = {}
    for name in needed:
        template = _AVERAGE if is_average and name in averaged else _WEIGHT
        stored_name_of[name] = template.format(name)
    tensors = read_named(epoch_dir, stored_name_of.values())
    weights = {}
    for name, stored_name in stored_name_of.items():
        weights[_our_name(name)] = tensors[stored_name]
    return weights, is_average


def _our_name(name: str) -> str:
    """Return the name that Hugging Face exports have for a parameter of the trainer."""
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def _shape(
    arch: _Arch, metadata: _TrainMetadata, weights: Mapping[str, Tensor], source: Path
) -> HrmTextShape:
    rows, _ = matrix_shape(weights, "model.embed_tokens.weight", source)
    _, intermediate = matrix_shape(weights, "model.L_module.layers.0.mlp.down_proj.weight", source)
    if arch.hidden_size % arch.num_heads or (arch.half_layers and arch.n_layers % 2):
        raise ModelFormatError(
            f"all_config.yaml: {arch.hidden_size} wide, {arch.num_heads} heads, {arch.n_layers} "
            "layers is no network; correct it."
        )
    return HrmTextShape(
        vocab_size=metadata.vocab_size or rows,
        hidden_size=arch.hidden_size,
        intermediate_size=intermediate,
        num_heads=arch.num_heads,
        head_dim=arch.hidden_size // arch.num_heads,
        num_layers=arch.n_layers // 2 if arch.half_layers else arch.n_layers,
        h_cycles=arch.h_cycles,
        l_cycles=arch.l_cycles,
        embedding_scale=1.0 / _embedding_std(arch),
        max_positions=metadata.max_seq_len,
        rope_theta=arch.rope_theta,
        norm_eps=arch.norm_eps,
    )


def _embedding_std(arch: _Arch) -> float:
    """Return the standard deviation of fresh embeddings, by which the forward pass divides."""
    lecun = 1.0 / math.sqrt(arch.hidden_size)
    if arch.init_type == "lecun_normal":
        return lecun
    if arch.init_std is not None:
        return arch.init_std
    if arch.init_type == "megatron":
        return lecun
    return 0.02


def _tokenizer_path(declared: str | None, directory: Path) -> Path | None:
    """Return the path of the tokenizer on this machine, None if it is not here."""
    # The declared path may be one on the training's machine.
    if declared is not None:
        for path in (directory / declared, Path(declared)):
            if path.exists():
                return path
    if (directory / "tokenizer.json").is_file():
        return directory
    return None
