"""Writes raw HRM-Text checkpoints as the trainer does: torch.distributed.checkpoint of model and
optimizer state.

Names and YAML keys are written out from the format notes; nothing is taken from `worker.models`.
"""

import math
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from transformers import HrmTextConfig, HrmTextForCausalLM

HIDDEN, HEADS, LAYERS = 48, 3, 2
VOCABULARY = 512
TOKENIZER_INFO = {
    "tokenizer_path": "tokenizer",
    "boq": "<|im_start|>",
    "eoq": "<|im_end|>",
    "eoa": "<|box_end|>",
    "condition_mapping": {"direct": "<|object_ref_start|>", "cot": "<|object_ref_end|>"},
}


class Averaging(torch.optim.Optimizer):
    """Only the state of the trainer's optimizer, `param_ema` among it, as given by parameter
    name."""

    def __init__(self, module: nn.Module, averages: Mapping[str, Tensor]) -> None:
        names = {parameter: name for name, parameter in module.named_parameters()}
        super().__init__(names, {"lr": torch.tensor(0.0), "betas": (0.9, 0.95), "ema": 0.9999})
        for parameter, name in names.items():
            self.state[parameter] = {
                "step": torch.tensor(3.0),
                "exp_avg": torch.zeros_like(parameter),
            }
            if name in averages:
                self.state[parameter]["param_ema"] = averages[name]

    def step(self, closure: Any = None) -> None:
        raise AssertionError("no step of this optimizer is ever taken")


def tiny(seed: int, *, embedding_scale: float = math.sqrt(HIDDEN)) -> HrmTextForCausalLM:
    """A random net whose z_L_init is not zero and whose cycle counts differ."""
    torch.manual_seed(seed)
    config = HrmTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=80,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        head_dim=HIDDEN // HEADS,
        H_cycles=2,
        L_cycles=3,
        max_position_embeddings=96,
        initializer_range=0.15,
        embedding_scale=embedding_scale,
        bos_token_id=1,
        eos_token_id=3,
        pad_token_id=0,
    )
    model = HrmTextForCausalLM(config).eval()
    with torch.no_grad():
        model.model.z_L_init.copy_(torch.randn(HIDDEN).bfloat16())
    return model


def raw_weights(model: HrmTextForCausalLM) -> dict[str, Tensor]:
    """The tensors of the model's export under the trainer's names."""
    with tempfile.TemporaryDirectory() as export:
        model.save_pretrained(export)
        exported = dict(load_file(Path(export) / "model.safetensors"))
    weights = {
        name.replace("_module.layers.", "_level.core.layers."): item
        for name, item in exported.items()
    }
    weights["embed_tokens.embedding_weight"] = weights.pop("model.embed_tokens.weight")
    weights["model.zL_init"] = weights.pop("model.z_L_init").bfloat16()
    return weights


def _module(weights: Mapping[str, Tensor]) -> nn.Module:
    """A module whose state dict is `weights`: parameters all, but for the buffer zL_init."""
    root = nn.Module()
    for name, tensor in weights.items():
        *path, leaf = name.split(".")
        place = root
        for part in path:
            if part not in dict(place.named_children()):
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        if leaf == "zL_init":
            place.register_buffer(leaf, tensor)
        else:
            place.register_parameter(leaf, nn.Parameter(tensor))
    return root


def save_epoch(
    directory: Path, weights: Mapping[str, Tensor], averages: Mapping[str, Tensor]
) -> None:
    module = _module(weights)
    optimizer = Averaging(module, averages)
    save_state(
        directory,
        {"model": module.state_dict(), "optim": get_optimizer_state_dict(module, optimizer)},
    )


def save_state(directory: Path, state: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(state, checkpoint_id=directory, no_dist=True)


def write_config(
    directory: Path,
    *,
    metadata: dict[str, Any] | None = None,
    ema: float | None = 0.9999,
    **arch: Any,
) -> None:
    """The two YAML files; keyword arguments override keys of `arch`, None leaves them out."""
    declared = {
        "name": "baselines.hrm_nocarry_bp_warmup@HierarchicalReasoningModel",
        "head": "lm_head@LMHead",
        "half_layers": True,
        "H_cycles": 2,
        "L_cycles": 3,
        "H_override": {},
        "bp_warmup_ratio": 0.2,
        "bp_max_steps": 5,
        "n_layers": 2 * LAYERS,
        "hidden_size": HIDDEN,
        "num_heads": HEADS,
        "expansion": 4,
        "norm_type": "pre",
        "norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "pos_emb_type": "rope",
        "init_type": "lecun_normal",
    } | arch
    declared = {key: value for key, value in declared.items() if value is not None}
    config = {"arch": declared, "data": {"path": "/dev/shm/sampled"}, "ema": ema, "epochs": 4}
    (directory / "all_config.yaml").write_text(yaml.dump(config))
    seen = {
        "max_seq_len": 96,
        "total_length": 1000,
        "vocab_size": VOCABULARY,
        "tokenizer_info": TOKENIZER_INFO,
    }
    (directory / "train_metadata.yaml").write_text(yaml.dump(seen | (metadata or {})))
