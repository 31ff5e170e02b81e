"""Faster linear layers for inference on a CPU: packed, in fp32 or bf16, or in int8.

They replace the linear layers of a loaded network. Packed weights exist once, in the kernel's
layout, so no state dict can be read back. This file knows layers, not networks.

Where there are our own kernels (`worker.native`), weights lie in their panels, which is faster for
any number of rows and makes each row independent of the others, bit by bit.

Elsewhere oneDNN's packed weights are faster if they are streamed from memory. With one thread and
without AVX-512 this holds only where the output is at least twice as wide as the input. For others
MKL, which `F.linear` calls, is as fast or faster, and the layer stays. bf16 is packed where the
processor multiplies it.

Int8 has symmetric weights with a scale for each output channel, and symmetric activations with a
scale for each row, so that a row's result does not depend on other rows. Sums are exact integers,
so it does not depend on the number of rows either. Our own kernels compute it where they are, with
weights of 8 bits where the processor has VNNI, and fbgemm elsewhere.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from worker.engine.runner import RunnerOptions
from worker.native.layers import NativeWeight
from worker.native.operators import (
    ELEMENT_TYPES,
    byte_linear,
    can_pack,
    can_round,
    linear,
    packed,
    rounded,
)

Better = Callable[[nn.Module, bool], "ReplacedLinear | None"]
"""A function that returns a layer's replacement, or None.

Its arguments are the layer, and whether another layer shares its weight.
"""

MIN_PANEL_WEIGHTS = 1 << 17
"""The number of weights from which our panels are faster than `F.linear`.

With far fewer, calling our kernel takes longer than a product with one row.
"""
MIN_PACKED_WEIGHTS = 1 << 18
"""The number of weights from which oneDNN's layout is faster than `F.linear`.

It is a megabyte of fp32, which no core's cache keeps between two steps.
"""
MIN_INT8_WEIGHTS = 1 << 17
"""The number of weights from which int8 is no slower than fp32 at 16 rows.

Routers and q heads, which take decisions, are smaller and stay exact.
"""

_PEAK = 127
"""The largest absolute value of a rounded activation."""
# Without VNNI two products of a signed and an unsigned byte are added in 16 saturating bits, so
# weights keep to 7 bits: 255 * 63 * 2 < 2**15. fbgemm's do so on every machine.
_WEIGHT_PEAK = 63
"""The largest absolute value of a rounded weight."""
_ZERO = 128

_packed_linear = torch.ops.mkldnn._linear_pointwise
_int8_linear = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32


class ReplacedLinear(nn.Module):
    """A linear layer without parameters: its weight and bias are kept in another form.

    They were `num_weights` numbers, without those that another layer still has, and take
    `num_bytes` now.
    """

    num_weights: int
    num_bytes: int


class PanelLinear(ReplacedLinear):
    """Linear layer in fp32 or bf16, [..., in] to [..., out].

    Its weight [out, in] is in the layout of our kernels.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._outputs = len(weight)
        self._weight = packed(weight)
        self._bias = _panel_bias(bias, self._weight)
        self.num_bytes = _num_bytes(self._weight, self._bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = linear(rows, self._weight, self._bias, self._outputs)
        return out.view(*x.shape[:-1], self._outputs)

    def described(self) -> NativeWeight:
        """Return the kernels' description of the layer, which points to its tensors."""
        inputs = self._weight.shape[1]
        is_bf16 = self._weight.dtype == torch.bfloat16
        return NativeWeight(
            weight=self._weight.data_ptr(),
            bias=None if self._bias is None else self._bias.data_ptr(),
            inputs=2 * inputs if is_bf16 else inputs,
            outputs=self._outputs,
            kind=ELEMENT_TYPES[self._weight.dtype],
        )


class Int8PanelLinear(ReplacedLinear):
    """Linear layer, [..., in] to [..., out] in the dtype of its input, fp32 or bf16.

    Its weight [out, in] is int8, in the layout of our kernels.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight = rounded(weight)
        self._bias = _panel_bias(bias, self._weight.steps)
        kept = (self._weight.steps, self._weight.scales, self._weight.offsets)
        self.num_bytes = _num_bytes(*kept, self._bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = byte_linear(rows, self._weight, self._bias)
        return out.view(*x.shape[:-1], self._weight.outputs)

    def described(self) -> NativeWeight:
        """Return the kernels' description of the layer, which points to its tensors."""
        return NativeWeight(
            weight=self._weight.steps.data_ptr(),
            scales=self._weight.scales.data_ptr(),
            offsets=self._weight.offsets.data_ptr(),
            bias=None if self._bias is None else self._bias.data_ptr(),
            inputs=self._weight.inputs,
            outputs=self._weight.outputs,
            kind=ELEMENT_TYPES[torch.int8],
        )


class PackedLinear(ReplacedLinear):
    """Linear layer in fp32 or bf16, [..., in] to [..., out].

    Its weight [out, in] is in oneDNN's blocked layout.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias = bias
        # oneDNN does not tell the size of its layout, which may pad a few rows.
        self.num_bytes = _num_bytes(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _packed_linear(x, self._weight, self._bias, "none", [], "")
        return out


class Int8Linear(ReplacedLinear):
    """Linear layer, [..., in] to [..., out] in the dtype of its input.

    Its weight [out, in] is int8, with fp32 scales [out].
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._packed = _pack_int8(weight.float())
        self._bias = None if bias is None else bias.float()
        # For each output fbgemm keeps a scale, a zero point and a sum, of 4 bytes each.
        self.num_bytes = weight.numel() + 12 * len(weight) + _num_bytes(self._bias)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        peak = torch.linalg.vector_norm(wide, torch.inf, -1, keepdim=True)
        # A row of zeros becomes NaN here and finite integers in the kernel. Its peak of 0 then
        # makes them zeros again.
        out: Tensor = _int8_linear(wide / peak, 1 / _PEAK, _ZERO, self._packed)
        if self._bias is None:
            out = out.mul_(peak)
        else:
            out = torch.addcmul(self._bias, out, peak)
        return out.to(x.dtype)


def pack_linears(model: nn.Module, options: RunnerOptions | None = None) -> int:
    """Replace the linear layers that are faster packed, in place. Return their number.

    Results differ only by the order of summation. Only fp32 and bf16 layers on a CPU are replaced.
    Where keys and values are rounded, small layers are put into panels, too.
    """
    least_weights = 0 if _needs_panels(options) else MIN_PANEL_WEIGHTS

    def packed_layer(layer: nn.Module, is_tied: bool) -> ReplacedLinear | None:
        return _in_panels(layer, is_tied, least_weights) or _packed(layer, is_tied)

    return _replace(model, packed_layer)


def pack_all_linears(model: nn.Module) -> None:
    """Replace all linear layers for which there is a kernel by `PanelLinear`, in place.

    Small ones are slower so with one row, but no row of them depends on others.
    """
    _replace(model, lambda layer, is_tied: _in_panels(layer, is_tied, least_weights=0))


def keeps_rows_apart(model: nn.Module) -> bool:
    """Return whether no bit of a linear layer's result depends on other rows."""
    others = (nn.Linear, Conv1D, PackedLinear, Int8Linear)
    return not any(isinstance(layer, others) for layer in model.modules())


def round_linears(model: nn.Module, options: RunnerOptions | None = None) -> int:
    """Replace the linear layers that are faster in int8, in place. Return their number.

    The model must be on the CPU. Where keys and values are rounded, too, smaller layers are put
    into panels.
    """
    if not _needs_panels(options):
        return _replace(model, _rounded)

    def rounded_layer(layer: nn.Module, is_tied: bool) -> ReplacedLinear | None:
        return _rounded(layer, is_tied) or _in_panels(layer, is_tied, 0)

    return _replace(model, rounded_layer)


def _needs_panels(options: RunnerOptions | None) -> bool:
    """Return whether no product may depend on the other rows, which holds in panels only.

    Keys and values are rounded from products, and another last bit could round them another way.
    """
    return options is not None and options.rounds_kv


def has_int8_kernels() -> bool:
    """Return whether this torch has fbgemm, the int8 kernels of x86 processors."""
    return "fbgemm" in torch.backends.quantized.supported_engines


@torch.no_grad()
def _replace(model: nn.Module, better: Better) -> int:
    """Replace linear layers by those that `better` returns. Return the number of such layers."""
    users: Counter[nn.Parameter] = Counter()
    for module in model.modules():
        users.update(module.parameters(recurse=False))

    # A layer may have several parents, which then share its replacement, too.
    replaced: dict[nn.Module, ReplacedLinear] = {}
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if layer not in replaced and type(layer) in (nn.Linear, Conv1D):
                is_tied = users[layer.get_parameter("weight")] > 1
                replacement = better(layer, is_tied)
                if replacement is not None:
                    weight, bias = _parameters(layer)
                    replacement.num_weights = 0 if is_tied else weight.numel()
                    replacement.num_weights += 0 if bias is None else bias.numel()
                    replaced[layer] = replacement
            if layer in replaced:
                setattr(parent, name, replaced[layer])
    return len(replaced)


def _rounded(layer: nn.Module, is_tied: bool) -> ReplacedLinear | None:
    weight, bias = _parameters(layer)
    if weight.numel() < MIN_INT8_WEIGHTS:
        return None
    if can_round(weight):
        return Int8PanelLinear(weight, bias)
    return Int8Linear(weight, bias)


def _in_panels(layer: nn.Module, is_tied: bool, least_weights: int) -> ReplacedLinear | None:
    weight, bias = _parameters(layer)
    # A weight that an embedding shares would have to be kept twice.
    if is_tied or weight.numel() < least_weights or not can_pack(weight):
        return None
    return PanelLinear(weight, bias)


def _packed(layer: nn.Module, is_tied: bool) -> ReplacedLinear | None:
    weight, bias = _parameters(layer)
    if is_tied or weight.numel() < MIN_PACKED_WEIGHTS or not _has_packed_kernel(weight):
        return None
    is_wide = weight.shape[0] >= 2 * weight.shape[1]
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    if not is_wide and not has_avx512 and torch.get_num_threads() == 1:
        return None
    return PackedLinear(weight.contiguous(), bias)


def _parameters(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return the weight [out, in] and the bias of a layer."""
    weight = layer.get_parameter("weight").detach()
    if isinstance(layer, Conv1D):
        weight = weight.t()
    bias: Tensor | None = dict(layer.named_parameters()).get("bias")
    if bias is not None:
        bias = bias.detach()
    return weight, bias


def _num_bytes(*tensors: Tensor | None) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _panel_bias(bias: Tensor | None, panels: Tensor) -> Tensor | None:
    """Return a bias [out] in fp32, with zeros behind it up to the end of the last panel."""
    if bias is None:
        return None
    num_panels, _, panel = panels.shape[:3]
    return F.pad(bias.float(), (0, num_panels * panel - len(bias)))


def _has_packed_kernel(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def _pack_int8(weight: Tensor) -> torch.ScriptObject:
    """Return fbgemm's packed form of a weight [out, in].

    Each row is rounded to integers from -`_WEIGHT_PEAK` to `_WEIGHT_PEAK`, by its own scale.
    """
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
    """Set fbgemm as torch's engine, for which weights are packed, during the block."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
