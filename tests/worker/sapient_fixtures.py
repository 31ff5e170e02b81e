"""Tiny random Sapient HRM checkpoints for tests, and a plain reference of the network.

Names, shapes and formulas are written out here by hand from the format notes; nothing is taken from
`worker.models`. The reference takes one puzzle at a time, in float64.
"""

from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

Weights = dict[str, Tensor]
PREFIX = "_orig_mod.model.inner."


@dataclass(frozen=True)
class Net:
    """What a test network is; every number differs from its neighbours where it can. A Sudoku
    unless said."""

    vocab: int = 11
    cells: int = 81
    hidden: int = 16
    intermediate: int = 24
    heads: int = 2
    h_layers: int = 2
    l_layers: int = 1
    h_cycles: int = 2
    l_cycles: int = 3
    halt_max_steps: int = 4
    learned: bool = False
    puzzle_ndim: int = 16
    identifiers: int = 3

    @property
    def slots(self) -> int:
        """Positions of the puzzle embedding."""
        return -(-self.puzzle_ndim // self.hidden)


def shapes(net: Net) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state dict of `net`, without the prefix, in no particular order."""
    hidden = net.hidden
    found: dict[str, tuple[int, ...]] = {
        "H_init": (hidden,),
        "L_init": (hidden,),
        "embed_tokens.embedding_weight": (net.vocab, hidden),
        "lm_head.weight": (net.vocab, hidden),
        "q_head.weight": (2, hidden),
        "q_head.bias": (2,),
    }
    if net.puzzle_ndim:
        found["puzzle_emb.weights"] = (net.identifiers, net.puzzle_ndim)
    if net.learned:
        found["embed_pos.embedding_weight"] = (net.slots + net.cells, hidden)
    for level, layers in (("H", net.h_layers), ("L", net.l_layers)):
        for at in (f"{level}_level.layers.{layer}" for layer in range(layers)):
            found[f"{at}.self_attn.qkv_proj.weight"] = (3 * hidden, hidden)
            found[f"{at}.self_attn.o_proj.weight"] = (hidden, hidden)
            found[f"{at}.mlp.gate_up_proj.weight"] = (2 * net.intermediate, hidden)
            found[f"{at}.mlp.down_proj.weight"] = (hidden, net.intermediate)
    return found


def random_weights(net: Net, seed: int = 0) -> Weights:
    """Weights that keep every part of the network of order one, so that a wrong part shows in the
    output."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator)
        * (1.0 if len(shape) == 1 else shape[-1] ** -0.5)
        for name, shape in shapes(net).items()
    }


def arch(net: Net) -> dict[str, Any]:
    """The `arch` section as training writes it, with what serving has no use for."""
    return {
        "name": "hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1",
        "loss": {"name": "losses@ACTLossHead", "loss_type": "stablemax_cross_entropy"},
        "H_cycles": net.h_cycles,
        "L_cycles": net.l_cycles,
        "H_layers": net.h_layers,
        "L_layers": net.l_layers,
        "hidden_size": net.hidden,
        "num_heads": net.heads,
        "expansion": 4,
        "pos_encodings": "learned" if net.learned else "rope",
        "puzzle_emb_ndim": net.puzzle_ndim,
        "halt_max_steps": net.halt_max_steps,
        "halt_exploration_prob": 0.1,
    }


def write_checkpoint(
    directory: Path,
    net: Net | None = None,
    *,
    weights: Weights | None = None,
    filename: str = "checkpoint",
    prefix: str = PREFIX,
    data_path: str = "data/mine",
    declared: dict[str, Any] | None = None,
) -> Weights:
    """Write a checkpoint and return its weights, without `prefix`. `declared` overrides keys of
    `arch`; None drops."""
    net = net or Net()
    weights = weights if weights is not None else random_weights(net)
    directory.mkdir(parents=True, exist_ok=True)
    section = {
        key: value for key, value in (arch(net) | (declared or {})).items() if value is not None
    }
    config = {"arch": section, "data_path": data_path, "global_batch_size": 768}
    (directory / "all_config.yaml").write_text(yaml.dump(config))
    torch.save({prefix + name: tensor for name, tensor in weights.items()}, directory / filename)
    return weights


def reference(
    weights: Weights,
    net: Net,
    cells: list[int],
    identifier: int = 0,
    segments: int = 1,
    *,
    reset_l: bool = False,
) -> list[tuple[Tensor, float, float]]:
    """Logits [cells, vocab], q_halt and q_continue after each segment; `reset_l` true is the wrong
    net, AI-OS's."""
    weights = {name: tensor.double() for name, tensor in weights.items()}
    x = _embedded(weights, net, cells, identifier)
    z_h, z_l = weights["H_init"].expand_as(x), weights["L_init"].expand_as(x)
    outputs = []
    for _ in range(segments):
        for _ in range(net.h_cycles):
            z_l = weights["L_init"].expand_as(x) if reset_l else z_l
            for _ in range(net.l_cycles):
                z_l = _level(weights, net, "L", net.l_layers, z_l + z_h + x)
            z_h = _level(weights, net, "H", net.h_layers, z_h + z_l)
        q = (weights["q_head.weight"] @ z_h[0] + weights["q_head.bias"]).tolist()
        outputs.append((z_h[net.slots :] @ weights["lm_head.weight"].T, q[0], q[1]))
    return outputs


def _embedded(weights: Weights, net: Net, cells: list[int], identifier: int) -> Tensor:
    rows = [weights["embed_tokens.embedding_weight"][cell] for cell in cells]
    if net.puzzle_ndim:
        flat = weights["puzzle_emb.weights"][identifier].tolist() + [0.0] * (
            net.slots * net.hidden - net.puzzle_ndim
        )
        prefix = [flat[start : start + net.hidden] for start in range(0, len(flat), net.hidden)]
        rows = [*torch.tensor(prefix, dtype=torch.float64), *rows]
    x = torch.stack(rows)
    if net.learned:
        x = 0.707106781 * (x + weights["embed_pos.embedding_weight"])
    return sqrt(net.hidden) * x


def _level(weights: Weights, net: Net, level: str, layers: int, x: Tensor) -> Tensor:
    for at in (f"{level}_level.layers.{layer}" for layer in range(layers)):
        x = _rms(x + _attended(weights, net, f"{at}.self_attn", x))
        gate, up = (x @ weights[f"{at}.mlp.gate_up_proj.weight"].T).split(net.intermediate, dim=1)
        x = _rms(x + (gate / (1 + (-gate).exp()) * up) @ weights[f"{at}.mlp.down_proj.weight"].T)
    return x


def _rms(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def _attended(weights: Weights, net: Net, at: str, x: Tensor) -> Tensor:
    size, out = net.hidden // net.heads, []
    query, key, value = (x @ weights[f"{at}.qkv_proj.weight"].T).split(net.hidden, dim=1)
    for start in range(0, net.hidden, size):
        q, k, v = (part[:, start : start + size] for part in (query, key, value))
        if not net.learned:
            q, k = _turned(q), _turned(k)
        out.append((q @ k.T / sqrt(size)).softmax(-1) @ v)
    return torch.cat(out, dim=1) @ weights[f"{at}.o_proj.weight"].T


def _turned(x: Tensor) -> Tensor:
    """Rotary positions as products of complex numbers: dimension i is the real, i + D/2 the
    imaginary part."""
    half = x.shape[1] // 2
    place = torch.arange(len(x), dtype=torch.float64)[:, None]
    angle = place / 10000 ** (torch.arange(half, dtype=torch.float64) * 2 / x.shape[1])
    turned = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), dim=1)
