"""Decoder layers of transformers networks, each computed by one call of the kernels.

A layer is joined if its parts are those of `worker.models.fused_layers`, and it computes for random
rows what they make together: each part behind its norm, and added to what came in.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worker.models.fused_layers import (
    TRIAL_ROWS,
    FusedAttention,
    FusedMlp,
    FusedRmsNorm,
    first_value,
    trial_attention,
)
from worker.models.joined_layers import JoinedLayers, LayerModules, LayersStep, can_join
from worker.models.linear import pack_all_linears

_KNOWN_OPTIONS = {"dropout", "scaling", "sliding_window"}
"""What an attention may tell its interface. Others might ask for what our kernel does not do."""


@dataclass(frozen=True)
class DecoderLayer:
    """A layer with the slot `slot`, whose queries have `num_heads` heads, `scale` and `window`."""

    layers: JoinedLayers
    slot: int
    num_heads: int
    scale: float
    window: int | None

    def attends_like(self, other: "DecoderLayer") -> bool:
        """Return whether a step is the same for both layers, but for the slot."""
        return (self.num_heads, self.scale, self.window) == (
            other.num_heads,
            other.scale,
            other.window,
        )

    def run(self, hidden: Tensor, step: LayersStep) -> Tensor:
        """Return the states [T, hidden] behind the layer, of `hidden` [T, hidden] before it."""
        return self.layers.run(hidden, 0, 1, self.slot, step)


def decoder_layer(module: nn.Module) -> DecoderLayer | None:
    """Return what computes the same as a layer of a transformers network, None where nothing does.

    The layer's products are packed, if there is such a thing.
    """
    names = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
    if {name for name, _ in module.named_children()} != set(names):
        return None
    first_norm, attention, second_norm, mlp = (module.get_submodule(name) for name in names)
    if not isinstance(first_norm, FusedRmsNorm) or not isinstance(second_norm, FusedRmsNorm):
        return None
    if not isinstance(attention, FusedAttention) or not isinstance(mlp, FusedMlp):
        return None
    options = attention.options
    if first_norm.eps != second_norm.eps or set(options) - _KNOWN_OPTIONS:
        return None
    weight = first_norm.weight.detach()
    widths = (len(weight), attention.num_queries * attention.head_dim, mlp.width)
    if not can_join(weight, head_dim=attention.head_dim, widths=widths):
        return None
    if not _is_pre_norm(module, weight, attention):
        return None
    pack_all_linears(module)
    parts = LayerModules(
        attention.qkv_proj,
        attention.o_proj,
        mlp.gate_up_proj,
        mlp.down_proj,
        norms=(weight, second_norm.weight.detach()),
    )
    layers = JoinedLayers([parts], eps=first_norm.eps, is_gated=False, is_signed=False)
    scale = options.get("scaling")
    return DecoderLayer(
        layers,
        slot=attention.layer_idx,
        num_heads=attention.num_queries,
        scale=attention.head_dim**-0.5 if scale is None else scale,
        window=options.get("sliding_window"),
    )


def _is_pre_norm(module: nn.Module, like: Tensor, attention: FusedAttention) -> bool:
    """Return whether a layer adds each part, behind its norm, to what came in, and nothing else.

    `like` has its hidden size and its dtype.
    """
    layer: Any = module
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, TRIAL_ROWS, len(like), generator=generator).to(like.dtype)
    angles = torch.randn(1, TRIAL_ROWS, attention.head_dim, generator=generator)
    rope = (angles.cos().to(x.dtype), angles.sin().to(x.dtype))
    # A layer is foreign code, which may want other arguments, or raise any error.
    try:
        with trial_attention(attention.config, first_value):
            found = layer(x, position_embeddings=rope, attention_mask=None)
            attended, _ = attention(
                layer.input_layernorm(x), position_embeddings=rope, attention_mask=None
            )
            hidden = x + attended
            expected = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    except Exception:
        return False
    return isinstance(found, Tensor) and torch.equal(found, expected)
