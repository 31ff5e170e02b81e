"""Faster linear layers for inference on a CPU, put in place of a loaded network's own: packed fp32,
or int8.

What is packed exists once, in the kernel's layout: no state dict can be read back. It knows layers,
not networks.

Packed fp32 (oneDNN) pays where weights are streamed from memory, and with one thread only where the
output is at least twice as wide as the input; elsewhere MKL, behind `F.linear`, is as fast or
faster, and the layer is left alone.

Int8 (fbgemm): weights symmetric per output channel, activations symmetric per row, so that a row's
result is the row's own; sums are exact integers, so it does not depend on the number of rows
either. Without VNNI two products of a signed and an unsigned byte are added in 16 saturating bits:
weights keep to 7 bits (255 * 63 * 2 < 2**15), on every machine, so that all workers agree.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Better = Callable[[nn.Module, bool], nn.Module | None]
"""What takes the place of a layer, if anything; told whether the weight is shared with another
one."""

MIN_PACKED_WEIGHTS = 1 << 18
"""Weights from which oneDNN's layout beats `F.linear`: a megabyte of fp32, which no core keeps
between two steps."""
MIN_INT8_WEIGHTS = 1 << 17
"""Weights from which int8 is no slower than fp32 at 16 rows; routers and q heads, which decide,
stay below it."""

_PEAK = 127
"""Steps on either side of zero of an activation; of a weight there are `_WEIGHT_PEAK`."""
_WEIGHT_PEAK = 63
_ZERO = 128

_packed_linear = torch.ops.mkldnn._linear_pointwise
_int8_linear = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32


class PackedLinear(nn.Module):
    """fp32 [..., in] -> [..., out] over a weight [out, in] in oneDNN's blocked layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias = bias

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _packed_linear(x, self._weight, self._bias, "none", [], "")
        return out


class Int8Linear(nn.Module):
    """[..., in] -> [..., out] in the dtype that comes in, over an int8 weight [out, in] and fp32
    scales."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._packed = _pack_int8(weight.float())
        self._bias = None if bias is None else bias.float()

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        peak = torch.linalg.vector_norm(wide, torch.inf, -1, keepdim=True)
        # A row of zeros becomes NaN here and some finite integers in the kernel, which its peak
        # makes zeros again.
        out: Tensor = _int8_linear(wide / peak, 1 / _PEAK, _ZERO, self._packed)
        out = out.mul_(peak) if self._bias is None else torch.addcmul(self._bias, out, peak)
        return out.to(x.dtype)


def pack_linears(model: nn.Module, _options: object = None) -> int:
    """Replace the linear layers that are faster packed, in place; return how many.

    Results are fp32 as before, up to the order of summation. Only fp32 layers on a CPU are touched.
    """
    return _replace(model, _packed)


def round_linears(model: nn.Module, _options: object = None) -> int:
    """Replace the linear layers that are faster in int8, in place; return how many. The model is on
    the CPU."""
    return _replace(model, _rounded)


def has_int8_kernels() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


@torch.no_grad()
def _replace(model: nn.Module, better: Better) -> int:
    users = Counter(
        parameter for module in model.modules() for parameter in module.parameters(recurse=False)
    )
    replaced: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if layer not in replaced and type(layer) in (nn.Linear, Conv1D):
                found = better(layer, users[layer.get_parameter("weight")] > 1)
                replaced |= {} if found is None else {layer: found}
            if layer in replaced:
                setattr(parent, name, replaced[layer])
    return len(replaced)


def _rounded(layer: nn.Module, is_tied: bool) -> nn.Module | None:
    weight, bias = _parameters(layer)
    return Int8Linear(weight, bias) if weight.numel() >= MIN_INT8_WEIGHTS else None


def _packed(layer: nn.Module, is_tied: bool) -> nn.Module | None:
    """A weight that an embedding shares would have to be kept twice."""
    weight, bias = _parameters(layer)
    is_wide = weight.shape[0] >= 2 * weight.shape[1]
    gains = weight.numel() >= MIN_PACKED_WEIGHTS and (is_wide or torch.get_num_threads() > 1)
    if is_tied or not gains or not _has_packed_kernel(weight):
        return None
    return PackedLinear(weight.contiguous(), bias)


def _parameters(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight [out, in] and the bias of a layer."""
    own = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    weight = own["weight"].t() if isinstance(layer, Conv1D) else own["weight"]
    return weight, own.get("bias")


def _has_packed_kernel(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
    )


def _pack_int8(weight: Tensor) -> torch.ScriptObject:
    """fbgemm's packed form of a weight [out, in], rounded to `_WEIGHT_PEAK` steps a side of each
    row's own scale."""
    scales = (weight.abs().amax(1) / _WEIGHT_PEAK).clamp_min(torch.finfo(torch.float32).tiny)
    steps = (weight / scales[:, None]).round().to(torch.int8)
    with _fbgemm(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*quantized tensor creation functions.*deprecated"
        )
        zeros = torch.zeros_like(scales, dtype=torch.int64)
        rounded = torch._make_per_channel_quantized_tensor(steps, scales.double(), zeros, 0)
        packed: torch.ScriptObject = torch.ops.quantized.linear_prepack(rounded, None)
    return packed


@contextmanager
def _fbgemm() -> Iterator[None]:
    """Weights are packed for the engine that is set while they are."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
