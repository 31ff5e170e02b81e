"""The loader of AI-OS brain bundles, directories of `brain.json` and one weights file.

Sizes come from the tensors. brain.json is read only for facts that shapes do not tell, because
upstream writes it in three dialects, and a network built from the wrong one would load with random
layers. A bundle that does not match in full is refused. The tokenizer is not opened here.
`read_newest` chooses the weights file after an interrupted training.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared.telemetry.logging_setup import fields
from worker.models.act_config import ActConfig
from worker.models.errors import ModelFormatError
from worker.models.hf_directory import is_there
from worker.models.hrm_act import ActModel
from worker.models.reading import read_json_object
from worker.models.weights import check_finite, check_names, read_tensors, without_prefixes

logger = logging.getLogger("aios.models")

_WEIGHTS_FILES = ("actv1_student.safetensors", "final_model.safetensors", "actv1_student.pt")
# Prefixes that DDP, torch.compile and PEFT put before parameter names.
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|base_model\.model\.)+")
_LAYER = re.compile(r"^inner\.([HL])_level\.layers\.(\d+)\.")
_MLP = "inner.H_level.layers.0.mlp."
_Q_HEAD = "inner.q_head."
_POSITIONS = "inner.embed_pos.embedding_weight"

Weights = Mapping[str, Tensor]
Attention = Literal["bidirectional", "causal"]


@dataclass(frozen=True)
class ActBundle:
    """A loaded brain.

    `model` is in eval mode, without gradients. `tokenizer_path` is None unless the tokenizer that
    brain.json names exists.
    """

    model: ActModel
    config: ActConfig
    tokenizer_path: Path | None
    name: str
    description: str


def load_act_bundle(
    path: Path, dtype: torch.dtype = torch.float32, attention: Attention | None = None
) -> ActBundle:
    """Load the bundle at `path`, its directory or its weights file.

    The weights are on the CPU in `dtype`. `attention` (bidirectional | causal) overrides that of
    brain.json. Raise ModelFormatError for files that are missing or unreadable, and for tensors
    that are not exactly one network.
    """
    if not path.exists():
        raise ModelFormatError(f"{path} does not exist; give the path of a brain.")
    directory = path if path.is_dir() else path.parent
    brain = _read_brain(directory)
    if path.is_file():
        weights_file = path
        tensors = read_tensors(path)
    else:
        tensors, weights_file = read_newest(path, _weights_names(brain))

    weights = without_prefixes(tensors, _WRAPPERS, weights_file)
    config = _config(brain, weights, weights_file)
    if attention is not None:
        config = replace(config, attention=attention)

    # Built on the meta device: it is compared with the file's tensors, and then takes them over.
    with torch.device("meta"):
        model = ActModel(config)
    check_names(model.state_dict(), weights, weights_file)
    q_head = {name: tensor for name, tensor in weights.items() if name.startswith(_Q_HEAD)}
    check_finite(q_head, weights_file)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
    model.eval().requires_grad_(False)

    name = str(brain.get("name") or brain.get("brain_id") or directory.resolve().name)
    return ActBundle(
        model=model,
        config=config,
        tokenizer_path=_find_tokenizer(directory, brain),
        name=name,
        description=_describe(name, model),
    )


def _read_brain(directory: Path) -> dict[str, object]:
    file = directory / "brain.json"
    if not is_there(file):
        raise ModelFormatError(f"{directory} has no brain.json; copy it there.")
    return read_json_object(file)


def _weights_names(brain: Mapping[str, object]) -> tuple[str, ...]:
    """Return the possible names of the weights file, the declared one first."""
    declared = brain.get("checkpoint_file")
    if isinstance(declared, str):
        return (declared, *_WEIGHTS_FILES)
    return _WEIGHTS_FILES


def _find_tokenizer(directory: Path, brain: Mapping[str, object]) -> Path | None:
    """Return the path of the declared tokenizer, None if it does not exist.

    The declared path is relative to the bundle or to the working directory.
    """
    declared = brain.get("tokenizer_model")
    if not isinstance(declared, str) or not declared:
        return None
    for path in (directory / declared, Path(declared)):
        if path.exists():
            return path
    return None


def _config(brain: Mapping[str, object], weights: Weights, file: Path) -> ActConfig:
    """Return the configuration of the network that the tensors and brain.json describe."""
    router = f"{_MLP}moe.router.gate.weight"
    has_experts = router in weights
    down = f"{_MLP}down_proj.weight"
    if has_experts:
        down = f"{_MLP}moe.experts.0.w2.weight"

    # A table of positions decides, because brain.json may leave out that positions are learned.
    is_learned = _picks(brain, ("pos_encodings", "pos_encoding"), "learned", over="rope")
    is_learned = is_learned or _POSITIONS in weights
    is_causal = _picks(brain, ("attention",), "causal", over="bidirectional")
    declared_length = _whole_number(brain, ("max_seq_len", "seq_len"), default=2048)

    return ActConfig(
        vocab_size=_size(weights, "inner.embed_tokens.embedding_weight", dim=0, file=file),
        hidden_size=_size(weights, "inner.H_init", dim=0, file=file),
        intermediate_size=_size(weights, down, dim=1, file=file),
        num_heads=_whole_number(brain, ("num_heads",), default=8),
        h_layers=_count_layers(weights, "H"),
        l_layers=_count_layers(weights, "L"),
        h_cycles=_whole_number(brain, ("H_cycles", "h_cycles"), default=2),
        l_cycles=_whole_number(brain, ("L_cycles", "l_cycles"), default=2),
        num_experts=_size(weights, router, dim=0, file=file) if has_experts else 0,
        experts_per_token=_whole_number(brain, ("num_experts_per_tok",), default=2),
        pos_encoding="learned" if is_learned else "rope",
        max_seq_len=_size(weights, _POSITIONS, dim=0, file=file) if is_learned else declared_length,
        halt_max_steps=_whole_number(brain, ("halt_max_steps",), default=1),
        window_size=_whole_number(brain, ("window_size",), default=0, least=0) or None,
        attention="causal" if is_causal else "bidirectional",
    )


def _size(weights: Weights, name: str, *, dim: int, file: Path) -> int:
    """Return the size of one dimension of a tensor. Raise ModelFormatError if it is missing."""
    if name not in weights:
        raise ModelFormatError(f"{file} is not an ACTv1 network: missing {name}; copy it again.")
    if weights[name].dim() <= dim:
        shape = list(weights[name].shape)
        raise ModelFormatError(
            f"{file} is not an ACTv1 network: {name} has shape {shape}; copy it again."
        )
    return weights[name].shape[dim]


def _count_layers(weights: Weights, level: str) -> int:
    """Return the number of layers of a level, H or L."""
    numbers = set()
    for name in weights:
        match = _LAYER.match(name)
        if match and match[1] == level:
            numbers.add(match[2])
    # At least one, so that for a level without layers the missing names are reported.
    return max(1, len(numbers))


def _declared(brain: Mapping[str, object], spellings: tuple[str, ...]) -> object:
    """Return the first value that is not null, None if there is none.

    The sections of brain.json come in the order of `arch`, top level, `last_session.config`.
    """
    session = brain.get("last_session")
    session_config = session.get("config") if isinstance(session, dict) else None
    for section in (brain.get("arch"), brain, session_config):
        if not isinstance(section, Mapping):
            continue
        for spelling in spellings:
            value: object = section.get(spelling)
            if value is not None:
                return value
    return None


def _whole_number(
    brain: Mapping[str, object], spellings: tuple[str, ...], *, default: int, least: int = 1
) -> int:
    """Return a declared number, or the default.

    Raise ModelFormatError if it is no whole number, or less than `least`.
    """
    value = _declared(brain, spellings)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        problem = f"brain.json says {spellings[0]} is {value!r}, not a whole number from {least} up"
        raise ModelFormatError(f"{problem}; correct it.")
    return value


def _picks(brain: Mapping[str, object], spellings: tuple[str, ...], choice: str, over: str) -> bool:
    """Return whether brain.json declares `choice`.

    It may also declare the default, `over`, or nothing. Raise ModelFormatError for anything else.
    """
    value = _declared(brain, spellings)
    if value not in (None, choice, over):
        problem = f"brain.json says {spellings[0]} is {value!r}, neither {over!r} nor {choice!r}"
        raise ModelFormatError(f"{problem}; correct it.")
    return value == choice


def _describe(name: str, model: ActModel) -> str:
    config = model.config
    mlp = "dense"
    if config.num_experts:
        mlp = f"{config.num_experts} experts, {config.experts_per_token} a token"
    count = sum(weight.numel() for weight in model.parameters())
    return (
        f"AI-OS ACTv1 brain '{name}': {mlp}, hidden {config.hidden_size}, "
        f"{config.h_layers}+{config.l_layers} layers, {config.h_cycles}x{config.l_cycles} cycles, "
        f"{config.num_heads} heads, {config.pos_encoding} positions, {config.attention}, "
        f"{count:,} parameters"
    )


def read_newest(directory: Path, names: Sequence[str]) -> tuple[dict[str, Tensor], Path]:
    """Return the tensors of the first of the weights files `names` that exists, and its path.

    A save is written to `<name>.safetensors.tmp` and then renamed. A save that was finished and not
    renamed is the newer state, and is read in place of the file. Training on several GPUs leaves
    `parallel_checkpoints/gpu<i>_final.safetensors`, whose mean is the final model. No file is
    changed, and each of these choices is logged. Raise ModelFormatError when no weights are there,
    or when they are damaged.
    """
    for name in names:
        file = _newest_save(directory / name)
        if file is not None:
            return read_tensors(file), file

    parts = sorted((directory / "parallel_checkpoints").glob("gpu*_final.safetensors"))
    if not parts:
        raise ModelFormatError(
            f"{directory} has no weights file, looked for {', '.join(names)}; copy one there."
        )
    logger.info(
        "no final weights, parallel checkpoints averaged",
        extra=fields(path=str(directory), num_parts=len(parts)),
    )
    return _mean(parts), parts[0].parent


def _newest_save(file: Path) -> Path | None:
    """Return `file`, or a newer finished save beside it. Return None if there is neither."""
    renamed = file if file.is_file() else None
    unrenamed = file.with_name(file.name + ".tmp")
    if file.suffix != ".safetensors" or not unrenamed.is_file():
        return renamed
    if renamed is not None and unrenamed.stat().st_mtime_ns <= renamed.stat().st_mtime_ns:
        return renamed
    if not _is_whole(unrenamed):
        logger.warning("unfinished save left aside", extra=fields(path=str(unrenamed)))
        return renamed
    logger.info(
        "finished save never renamed, taken",
        extra=fields(path=str(unrenamed), taken_for=file.name),
    )
    return unrenamed


def _is_whole(file: Path) -> bool:
    """Return whether the header is valid, and its tensors fill the file exactly."""
    # Opening a file checks both.
    try:
        with safe_open(file, framework="pt"):
            return True
    except SafetensorError:
        return False


def _mean(parts: Sequence[Path]) -> dict[str, Tensor]:
    """Return the mean of the tensors of all parts, in float32.

    Raise ModelFormatError unless all parts hold tensors of the same names and shapes.
    """
    first = read_tensors(parts[0])
    check_names(first, first, parts[0])
    total = {name: tensor.float() for name, tensor in first.items()}
    for part in parts[1:]:
        tensors = read_tensors(part)
        check_names(first, tensors, part)
        for name, tensor in tensors.items():
            total[name] = total[name] + tensor.float()
    return {name: tensor / len(parts) for name, tensor in total.items()}
