"""RMS norms and gated MLPs of transformers networks, computed by fewer operators.

On a CPU a decoding step takes as long as calling its operators, and a norm of transformers calls
six. A module is replaced if its replacement computes the same for random rows, whatever its class
is called.
"""

import inspect
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.native.operators import kernels_for, rms_norm, silu_gated

_TRIAL_ROWS = 3
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

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        gate, up = self.gate_up_proj(rows).chunk(2, dim=-1)
        down: Tensor = self.down_proj(silu_gated(gate, up))
        return down.view(x.shape)


@torch.no_grad()
def fuse_layers(model: nn.Module) -> int:
    """Replace the norms and MLPs that our kernels compute, in place. Return their number."""
    if kernels_for(next(model.parameters())) is None:
        return 0
    num_replaced = 0
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            fused = _fused(module)
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
    x = 1 + torch.randn(1, _TRIAL_ROWS, weight.shape[-1], generator=generator)
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


def _joined(first: Tensor, second: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.cat((first, second)), requires_grad=False)


def _names(named: Iterable[tuple[str, object]]) -> set[str]:
    return {name for name, _ in named}
