"""Reads an AI-OS brain bundle, a directory of `brain.json` and one weights file, into an
`ActModel`.

Sizes come from the tensors; brain.json is asked only for what shapes cannot tell, because upstream
writes it in three dialects and a network built from the wrong one loads with random layers.
Whatever does not match in full is refused. It does not open the tokenizer; which file counts after
an interrupted training is `act_recovery`'s business.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from worker.models.act_config import ActConfig
from worker.models.act_recovery import read_newest
from worker.models.errors import ModelFormatError
from worker.models.hf_directory import is_there
from worker.models.hrm_act import ActModel
from worker.models.reading import read_json_object
from worker.models.weights import check_finite, check_names, read_tensors, without_prefixes

_WEIGHTS_FILES = ("actv1_student.safetensors", "final_model.safetensors", "actv1_student.pt")
_WRAPPERS = re.compile(
    r"^(?:module\.|_orig_mod\.|base_model\.model\.)+"
)  # of DDP, torch.compile and PEFT
_LAYER = re.compile(r"^inner\.([HL])_level\.layers\.(\d+)\.")
_MLP = "inner.H_level.layers.0.mlp."
_Q_HEAD = "inner.q_head."
_POSITIONS = "inner.embed_pos.embedding_weight"

Weights = Mapping[str, Tensor]
Attention = Literal["bidirectional", "causal"]


@dataclass(frozen=True)
class ActBundle:
    """A loaded brain: `model` in eval mode without gradients, and `tokenizer_path` where the named
    one exists."""

    model: ActModel
    config: ActConfig
    tokenizer_path: Path | None
    name: str
    description: str


def load_act_bundle(
    path: Path, dtype: torch.dtype = torch.float32, attention: Attention | None = None
) -> ActBundle:
    """Load the bundle at `path`, its directory or its weights file, with weights on the CPU in
    `dtype`.

    `attention` (bidirectional | causal) overrides what brain.json says.

    Raises ModelFormatError for whatever is missing, unreadable, or not exactly the network that the
    tensors describe.
    """
    if not path.exists():
        raise ModelFormatError(f"{path} does not exist; give the path of a brain.")
    brain = _read_brain(_directory(path))
    tensors, weights_file = (
        (read_tensors(path), path) if path.is_file() else read_newest(path, _weights_names(brain))
    )
    weights = without_prefixes(tensors, _WRAPPERS, weights_file)
    config = _config(brain, weights, weights_file)
    if attention is not None:
        config = replace(config, attention=attention)
    with torch.device("meta"):
        model = ActModel(config)
    check_names(model.state_dict(), weights, weights_file)
    check_finite(
        {name: weights[name] for name in weights if name.startswith(_Q_HEAD)}, weights_file
    )
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
    model.eval().requires_grad_(False)
    name = str(brain.get("name") or brain.get("brain_id") or _directory(path).resolve().name)
    return ActBundle(
        model, config, _find_tokenizer(_directory(path), brain), name, _describe(name, model)
    )


def _directory(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _read_brain(directory: Path) -> dict[str, object]:
    file = directory / "brain.json"
    if not is_there(file):
        raise ModelFormatError(f"{directory} has no brain.json; copy it there.")
    return read_json_object(file)


def _weights_names(brain: Mapping[str, object]) -> tuple[str, ...]:
    named = brain.get("checkpoint_file")
    return (named, *_WEIGHTS_FILES) if isinstance(named, str) else _WEIGHTS_FILES


def _find_tokenizer(directory: Path, brain: Mapping[str, object]) -> Path | None:
    named = brain.get("tokenizer_model")
    if not isinstance(named, str) or not named:
        return None
    return next((place for place in (directory / named, Path(named)) if place.exists()), None)


def _config(brain: Mapping[str, object], weights: Weights, file: Path) -> ActConfig:
    moe = f"{_MLP}moe.router.gate.weight" in weights
    down = f"{_MLP}moe.experts.0.w2.weight" if moe else f"{_MLP}down_proj.weight"
    learned = (
        _picks(brain, ("pos_encodings", "pos_encoding"), "learned", over="rope")
        or _POSITIONS in weights
    )
    causal = _picks(brain, ("attention",), "causal", over="bidirectional")
    declared_len = _whole(brain, ("max_seq_len", "seq_len"), 2048)
    return ActConfig(
        vocab_size=_size(weights, "inner.embed_tokens.embedding_weight", 0, file),
        hidden_size=_size(weights, "inner.H_init", 0, file),
        intermediate_size=_size(weights, down, 1, file),
        num_heads=_whole(brain, ("num_heads",), 8),
        h_layers=_count_layers(weights, "H"),
        l_layers=_count_layers(weights, "L"),
        h_cycles=_whole(brain, ("H_cycles", "h_cycles"), 2),
        l_cycles=_whole(brain, ("L_cycles", "l_cycles"), 2),
        num_experts=_size(weights, f"{_MLP}moe.router.gate.weight", 0, file) if moe else 0,
        experts_per_token=_whole(brain, ("num_experts_per_tok",), 2),
        pos_encoding="learned" if learned else "rope",
        max_seq_len=_size(weights, _POSITIONS, 0, file) if learned else declared_len,
        halt_max_steps=_whole(brain, ("halt_max_steps",), 1),
        window_size=_whole(brain, ("window_size",), 0, least=0) or None,
        attention="causal" if causal else "bidirectional",
    )


def _size(weights: Weights, name: str, dim: int, file: Path) -> int:
    if name not in weights:
        raise ModelFormatError(f"{file} is not an ACTv1 network: missing {name}; copy it again.")
    if weights[name].dim() <= dim:
        shape = list(weights[name].shape)
        raise ModelFormatError(
            f"{file} is not an ACTv1 network: {name} has shape {shape}; copy it again."
        )
    return weights[name].shape[dim]


def _count_layers(weights: Weights, level: str) -> int:
    """At least one, so that a level without any layer is reported by the names it lacks."""
    found = (_LAYER.match(name) for name in weights)
    return max(1, len({match[2] for match in found if match and match[1] == level}))


def _declared(brain: Mapping[str, object], spellings: tuple[str, ...]) -> object:
    """The first value that is not null in `arch`, then at the top level, then in
    `last_session.config`."""
    session = brain.get("last_session")
    places = (
        brain.get("arch"),
        brain,
        session.get("config") if isinstance(session, dict) else None,
    )
    values = (place.get(key) for place in places if isinstance(place, Mapping) for key in spellings)
    return next((value for value in values if value is not None), None)


def _whole(
    brain: Mapping[str, object], spellings: tuple[str, ...], default: int, least: int = 1
) -> int:
    value = _declared(brain, spellings)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        problem = f"brain.json says {spellings[0]} is {value!r}, not a whole number from {least} up"
        raise ModelFormatError(f"{problem}; correct it.")
    return value


def _picks(brain: Mapping[str, object], spellings: tuple[str, ...], choice: str, over: str) -> bool:
    """Whether brain.json says `choice`; it may also say `over`, the default, and nothing else."""
    value = _declared(brain, spellings)
    if value not in (None, choice, over):
        problem = f"brain.json says {spellings[0]} is {value!r}, neither {over!r} nor {choice!r}"
        raise ModelFormatError(f"{problem}; correct it.")
    return value == choice


def _describe(name: str, model: ActModel) -> str:
    config = model.config
    mlp = (
        f"{config.num_experts} experts, {config.experts_per_token} a token"
        if config.num_experts
        else "dense"
    )
    parts = (
        mlp,
        f"hidden {config.hidden_size}",
        f"{config.h_layers}+{config.l_layers} layers",
        f"{config.h_cycles}x{config.l_cycles} cycles",
        f"{config.num_heads} heads",
        f"{config.pos_encoding} positions",
        config.attention,
        f"{sum(weight.numel() for weight in model.parameters()):,} parameters",
    )
    return f"AI-OS ACTv1 brain '{name}': {', '.join(parts)}"
