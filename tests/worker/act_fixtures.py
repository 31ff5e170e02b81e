"""Tiny random AI-OS brain bundles for tests, in each dialect of brain.json and each weights format.

The tensor names and shapes are written out here by hand from the format notes; nothing is taken
from `worker.models`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

Dialect = Literal["arch", "top", "session", "arch_over_wrong_top"]
Format = Literal["safetensors", "pt"]


@dataclass(frozen=True)
class Net:
    """What a test brain is; every number differs from its neighbours and from the loader's defaults
    where it can."""

    vocab: int = 40
    hidden: int = 16
    intermediate: int = 24
    heads: int = 2
    h_layers: int = 2
    l_layers: int = 1
    h_cycles: int = 3
    l_cycles: int = 2
    experts: int = 0
    experts_per_token: int = 2
    learned: bool = False
    max_seq_len: int = 16
    halt_max_steps: int = 2
    window: int | None = None
    causal: bool = False


def shapes(net: Net) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state dict of `net`, in no particular order."""
    hidden, inner = net.hidden, net.intermediate
    found: dict[str, tuple[int, ...]] = {
        "inner.H_init": (hidden,),
        "inner.L_init": (hidden,),
        "inner.embed_tokens.embedding_weight": (net.vocab, hidden),
        "inner.lm_head.weight": (net.vocab, hidden),
        "inner.q_head.weight": (2, hidden),
        "inner.q_head.bias": (2,),
    }
    if net.learned:
        found["inner.embed_pos.embedding_weight"] = (net.max_seq_len, hidden)
    for level, layers in (("H", net.h_layers), ("L", net.l_layers)):
        for layer in range(layers):
            at = f"inner.{level}_level.layers.{layer}"
            found[f"{at}.self_attn.qkv_proj.weight"] = (3 * hidden, hidden)
            found[f"{at}.self_attn.o_proj.weight"] = (hidden, hidden)
            if not net.experts:
                found[f"{at}.mlp.gate_up_proj.weight"] = (2 * inner, hidden)
                found[f"{at}.mlp.down_proj.weight"] = (hidden, inner)
                continue
            found[f"{at}.mlp.moe.router.gate.weight"] = (net.experts, hidden)
            for expert in range(net.experts):
                found[f"{at}.mlp.moe.experts.{expert}.w1.weight"] = (inner, hidden)
                found[f"{at}.mlp.moe.experts.{expert}.w2.weight"] = (hidden, inner)
    return found


def random_weights(net: Net, seed: int = 0) -> dict[str, Tensor]:
    """Weights that keep every part of the network of order one, so that a wrong part shows in the
    output."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes(net).items():
        scale = 1.0 if len(shape) == 1 or "embed" in name else shape[-1] ** -0.5
        weights[name] = torch.randn(shape, generator=generator) * scale
    return weights


def brain_json(net: Net, dialect: Dialect = "arch") -> dict[str, Any]:
    """brain.json as the CLI trainer (`arch`), the GUI creator (`top`) or finalize_training
    (`session`) writes it.

    `arch_over_wrong_top` is the CLI trainer's with the upstream loader's own misleading defaults at
    the top level.
    """
    positions = "learned" if net.learned else "rope"
    lower = {
        "num_heads": net.heads,
        "h_cycles": net.h_cycles,
        "l_cycles": net.l_cycles,
        "max_seq_len": net.max_seq_len,
        "halt_max_steps": net.halt_max_steps,
        "num_experts_per_tok": net.experts_per_token,
        "window_size": net.window,
        "attention": "causal" if net.causal else "bidirectional",
    }
    brain: dict[str, Any] = {"name": "demo", "type": "actv1"}
    if dialect == "top":
        return brain | lower | {"pos_encoding": positions, "use_moe": bool(net.experts)}
    if dialect == "session":
        return brain | {"last_session": {"config": lower | {"pos_encodings": positions}}}
    upper = {"H_cycles": net.h_cycles, "L_cycles": net.l_cycles, "pos_encodings": positions}
    arch = {
        key: value for key, value in lower.items() if key not in ("h_cycles", "l_cycles")
    } | upper
    if dialect == "arch_over_wrong_top":
        brain |= {
            "hidden_size": 512,
            "num_heads": 8,
            "expansion": 4.0,
            "h_cycles": 7,
            "l_cycles": 7,
            "use_moe": False,
        }
    return brain | {"arch": arch}


def write_bundle(
    directory: Path,
    net: Net | None = None,
    *,
    dialect: Dialect = "arch",
    weights: dict[str, Tensor] | None = None,
    weights_format: Format = "safetensors",
    filename: str = "actv1_student.safetensors",
    prefix: str = "",
    tokenizer: Path | str | None = None,
    brain: dict[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Write a bundle and return the weights in it, without `prefix`. `brain` overrides top-level
    brain.json keys."""
    net = net or Net()
    weights = weights if weights is not None else random_weights(net)
    directory.mkdir(parents=True, exist_ok=True)
    declared = brain_json(net, dialect) | (brain or {})
    if tokenizer is not None:
        declared["tokenizer_model"] = str(tokenizer)
    (directory / "brain.json").write_text(json.dumps(declared))
    named = {prefix + name: tensor for name, tensor in weights.items()}
    if weights_format == "pt":
        torch.save(named, directory / filename)
    else:
        save_file(named, directory / filename)
    return weights
