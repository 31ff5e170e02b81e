"""Norms, gated MLPs and self-attention of transformers networks, computed by fewer operators.

On a CPU a decoding step takes as long as calling its operators. A norm of transformers calls six,
and a rotation of queries and keys a dozen. A module is replaced if its replacement computes the
same for random rows, whatever its class is called.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from worker.native.operators import kernels_for, rms_norm, rotate, silu_gated

TRIAL_ROWS = 3
_STAND_IN = "aios_stand_in"
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
"""The largest error of a replacement, as a share of the result."""


class FusedRmsNorm(nn.Module):
    """RMS norm of [..., width] with a weight [width]."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        return rms_norm(rows, self.eps, self.weight).view(x.shape)


class FusedMlp(nn.Module):
    """Gated MLP over [..., hidden]: down(silu(gate(x)) * up(x)), with one product for both."""

    def __init__(self, gate: nn.Linear, up: nn.Linear, down: nn.Linear) -> None:
        super().__init__()
        has_bias = gate.bias is not None
        self.gate_up_proj = nn.Linear(
            gate.in_features, 2 * gate.out_features, bias=has_bias, device="meta"
        )
        self.gate_up_proj.weight = _joined(gate.weight, up.weight)
        if has_bias:
            self.gate_up_proj.bias = _joined(gate.bias, up.bias)
        self.down_proj = down
        self.width = gate.out_features

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        gate, up = self.gate_up_proj(rows).chunk(2, dim=-1)
        down: Tensor = self.down_proj(silu_gated(gate, up))
        return down.view(x.shape)


class FusedAttention(nn.Module):
    """Self-attention over [B, T, hidden] with rotary positions, by one product and one rotation.

    Who attends to whom is up to the interface that `config` names, as in the module that this
    replaces. `options` are what that module tells the interface.
    """

    def __init__(self, module: nn.Module, options: dict[str, Any]) -> None:
        super().__init__()
        given: Any = module
        self.config = given.config
        self.layer_idx = given.layer_idx
        self.head_dim = given.head_dim
        self.is_causal = given.is_causal
        self.num_key_value_groups = given.num_key_value_groups
        self.options = options
        layers = (given.q_proj, given.k_proj, given.v_proj)
        self._num_keys = given.k_proj.out_features // self.head_dim
        self.num_queries = given.q_proj.out_features // self.head_dim
        has_bias = given.q_proj.bias is not None
        self.qkv_proj = nn.Linear(
            given.q_proj.in_features,
            sum(layer.out_features for layer in layers),
            bias=has_bias,
            device="meta",
        )
        self.qkv_proj.weight = _joined(*(layer.weight for layer in layers))
        if has_bias:
            self.qkv_proj.bias = _joined(*(layer.bias for layer in layers))
        self.o_proj = given.o_proj

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        shape = hidden_states.shape[:-1]
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        heads = self.qkv_proj(rows).view(len(rows), -1, self.head_dim)
        num_rotated = self.num_queries + self._num_keys
        cos, sin = (
            table.expand(*shape, -1).reshape(-1, 1, 1, self.head_dim)
            for table in position_embeddings
        )
        rotated = rotate(heads[:, None, :num_rotated], cos, sin, is_signed=False)[:, 0]
        parts = (
            rotated[:, : self.num_queries],
            rotated[:, self.num_queries :],
            heads[:, num_rotated:],
        )
        query, key, value = (part.unflatten(0, shape).transpose(1, 2) for part in parts)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        out, _ = attend(self, query, key, value, attention_mask, **(self.options | options))
        attended: Tensor = self.o_proj(out.reshape(*shape, -1))
        return attended, None


@torch.no_grad()
def fuse_layers(model: nn.Module) -> int:
    """Replace the modules that our kernels compute, in place. Return their number."""
    if kernels_for(next(model.parameters())) is None:
        return 0
    num_replaced = 0
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            fused = _fused(module) or _fused_attention(module)
            if fused is not None:
                setattr(parent, name, fused)
                num_replaced += 1
    return num_replaced


def _fused(module: nn.Module) -> nn.Module | None:
    """Return the module's replacement, None for one that is of another kind."""
    fused = _fused_norm(module) or _fused_mlp(module)
    if fused is None or len(inspect.signature(module.forward).parameters) != 1:
        return None
    weight = next(fused.parameters())
    generator = torch.Generator().manual_seed(0)
    # Their mean is 1, so that a norm that subtracts it is found out.
    x = 1 + torch.randn(1, TRIAL_ROWS, weight.shape[-1], generator=generator)
    x = x.to(weight.dtype)
    expected = module(x).float()
    error = (fused(x).float() - expected).norm() / expected.norm()
    # Not `>`: this way a NaN is an error, too.
    return fused if error <= _TOLERANCE[weight.dtype] else None


def _fused_norm(module: nn.Module) -> nn.Module | None:
    """Return what may be the module's replacement, if it may be an RMS norm."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(eps, float) or _names(module.named_parameters()) != {"weight"}:
        return None
    weight = module.get_parameter("weight")
    if weight.dim() != 1 or kernels_for(weight, len(weight)) is None:
        return None
    return FusedRmsNorm(weight.detach(), eps)


def _fused_mlp(module: nn.Module) -> nn.Module | None:
    """Return what may be the module's replacement, if it may be a gated MLP."""
    layers = []
    for name in ("gate_proj", "up_proj", "down_proj"):
        layer = getattr(module, name, None)
        if type(layer) is not nn.Linear:
            return None
        layers.append(layer)
    gate, up, down = layers
    is_gated = gate.weight.shape == up.weight.shape == down.weight.shape[::-1]
    if not is_gated or (gate.bias is None) != (up.bias is None):
        return None
    if _names(module.named_children()) - {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return None
    # With small weights all activations would compute nearly the same.
    activation = getattr(module, "act_fn", None)
    x = torch.linspace(-8, 8, 64)
    if not callable(activation) or not torch.allclose(activation(x), F.silu(x), atol=1e-6):
        return None
    return FusedMlp(gate, up, down)


def _fused_attention(module: nn.Module) -> nn.Module | None:
    """Return the module's replacement, None for one that is of another kind.

    Both are asked for what they give to the attention interface, and for what they make of its
    answer.
    """
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    layers = [getattr(module, name, None) for name in names]
    if _names(module.named_children()) != set(names):
        return None
    if any(type(layer) is not nn.Linear for layer in layers):
        return None
    attributes = ("config", "layer_idx", "head_dim", "is_causal", "num_key_value_groups")
    if not all(hasattr(module, name) for name in attributes):
        return None
    biases = {layer.bias is None for layer in layers[:3] if isinstance(layer, nn.Linear)}
    if len(biases) != 1:
        return None

    weight = module.get_parameter("q_proj.weight")
    head_dim: Any = module.head_dim
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, TRIAL_ROWS, weight.shape[1], generator=generator).to(weight.dtype)
    angles = torch.randn(1, TRIAL_ROWS, head_dim // 2, generator=generator).repeat(1, 1, 2)
    rope = (angles.cos().to(x.dtype), angles.sin().to(x.dtype))
    # An attention is foreign code, which may want other arguments, or raise any error.
    try:
        expected, options = _attended(module, x, rope)
        fused = FusedAttention(module, options)
        found, _ = _attended(fused, x, rope)
    except Exception:
        return None
    for one, other in zip(found, expected, strict=True):
        error = (one.float() - other.float()).norm() / other.float().norm()
        if one.shape != other.shape or not error <= _TOLERANCE[weight.dtype]:
            return None
    return fused


def _attended(
    module: nn.Module, x: Tensor, rope: tuple[Tensor, Tensor]
) -> tuple[list[Tensor], dict[str, Any]]:
    """Return what an attention gives to its interface, and its output, for `x` [1, T, hidden].

    Queries, keys and values are [1, heads, T, head_dim]. Return as well the options that the
    interface gets.
    """
    seen: list[Tensor] = []
    told: dict[str, Any] = {}

    def stand_in(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **options: Any
    ) -> tuple[Tensor, None]:
        seen.extend(part.clone() for part in (query, key, value))
        told.update(options)
        return first_value(module, query, key, value, mask)

    with trial_attention(module.config, stand_in):
        out, _ = module(x, position_embeddings=rope, attention_mask=None)
    return [*seen, out], told


def first_value(
    _: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **__: Any
) -> tuple[Tensor, None]:
    """Stand in for attention: the queries times the first value."""
    return (query * value[:, :1, :1]).transpose(1, 2), None


@contextmanager
def trial_attention(config: Any, stand_in: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
    """Let the attentions of a network with this config call `stand_in` during the block."""
    before = config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(_STAND_IN, stand_in)
    config._attn_implementation = _STAND_IN
    try:
        yield
    finally:
        config._attn_implementation = before


def _joined(*weights: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.cat(weights), requires_grad=False)


def _names(named: Iterable[tuple[str, object]]) -> set[str]:
    return {name for name, _ in named}
