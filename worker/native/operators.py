"""The operators between two matrix products, by the kernels where they fit, else by torch.

A decoding step computes few rows, so an operator costs what calling it costs. Each of these is one
call where torch alone needs several. The kernels take fp32 and bf16 on a CPU. They compute in fp32
and round once, at the end.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.native.library import Library, library
from worker.native.quantized import SCALE_BYTES, quantized

ELEMENT_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
"""The numbers that `kernels.c` has for types of elements."""

_DTYPES = (torch.float32, torch.bfloat16)


def rms_norm(x: Tensor, eps: float, weight: Tensor | None = None) -> Tensor:
    """Return `x` [T, width] over its root mean square, row by row, times `weight` [width]."""
    rows, width = x.shape
    kernels = kernels_for(x, width)
    if kernels is None or x.stride(1) != 1:
        if not x.is_cpu or x.dtype != torch.float32:
            return F.rms_norm(x, (width,), weight, eps=eps)
        # On a CPU `F.rms_norm` takes longer than these operators.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale: Tensor = length.square().mul_(1 / width).add_(eps).rsqrt_()
        return x * scale if weight is None else x * scale * weight
    if weight is not None:
        _check_dtypes(x, weight)
    out = x.new_empty(rows, width)
    kernels.rms_norm(
        out.data_ptr(),
        x.data_ptr(),
        x.stride(0),
        None if weight is None else weight.data_ptr(),
        eps,
        rows,
        width,
        x.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, is_signed: bool = True) -> Tensor:
    """Return `x` [T, parts, heads, head_dim] rotated by its positions. `x` may be overwritten.

    `cos` and `sin` [T, 1, 1, head_dim] have the dtype of `x`. They are for the half-rotated layout.
    With `is_signed` the sines of the first half are negative, else they are as they are.
    """
    rows, num_parts, num_heads, head_dim = x.shape
    kernels = kernels_for(x, head_dim // 2)
    strides = x.stride()[1:] if num_parts > 1 else (num_heads * head_dim, *x.stride()[2:])
    if kernels is None or strides != (num_heads * head_dim, head_dim, 1):
        first, second = x.chunk(2, dim=-1)
        if not is_signed:
            second = -second
        return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), sin)
    _check_dtypes(x, cos, sin)
    kernels.rotate(
        x.data_ptr(),
        x.stride(0),
        cos.data_ptr(),
        sin.data_ptr(),
        rows,
        num_parts * num_heads,
        head_dim,
        is_signed,
        x.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return x


def can_pack(weight: Tensor) -> bool:
    """Return whether there is a kernel for products with `weight` [out, in]."""
    is_even = weight.shape[1] % 2 == 0
    return kernels_for(weight) is not None and (is_even or weight.dtype == torch.float32)


def packed(weight: Tensor) -> Tensor:
    """Return a weight [out, in] in the layout of `linear`.

    That is [panels, in, panel] in fp32, and [panels, in / 2, panel, 2] in bf16, with zeros behind
    the last output.
    """
    outputs, inputs = weight.shape
    kernels = kernels_for(weight)
    assert kernels is not None
    num_panels = -(-outputs // kernels.panel)
    whole = F.pad(weight, (0, 0, 0, num_panels * kernels.panel - outputs))
    if weight.dtype == torch.float32:
        return whole.view(num_panels, kernels.panel, inputs).transpose(1, 2).contiguous()
    pairs = whole.view(num_panels, kernels.panel, inputs // 2, 2)
    return pairs.transpose(1, 2).contiguous()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """Return `x` [T, in] times a `packed` weight, plus `bias` [panels * panel] in fp32: [T, out].

    A row's result depends neither on the other rows nor on their number. Raise RuntimeError for an
    `x` of another dtype or width than the weight.
    """
    kernels = kernels_for(x)
    assert kernels is not None
    rows, inputs = x.shape
    _check_dtypes(x, weight)
    if weight[0].numel() != inputs * kernels.panel:
        raise RuntimeError(f"rows of {inputs} elements do not fit the weight")
    if x.stride(1) != 1:
        x = x.contiguous()
    out = x.new_empty(rows, outputs)
    kernels.linear(
        out.data_ptr(),
        x.data_ptr(),
        x.stride(0),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        rows,
        inputs,
        outputs,
        x.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return out


@dataclass(frozen=True)
class RoundedWeight:
    """A weight [outputs, inputs] in int8, in the layout of `byte_linear`.

    `steps` are [panels, width / 4, panel, 4], with zeros behind the last input and output.
    `scales` (fp32) and `offsets` (int32), both [panels * panel], belong to the outputs. An offset
    is 128 times the sum of an output's steps.
    """

    steps: Tensor
    scales: Tensor
    offsets: Tensor
    inputs: int
    outputs: int


def can_round(weight: Tensor) -> bool:
    """Return whether there is a kernel for products with `weight` [out, in] in int8."""
    # With more inputs, a sum of products of bytes might not fit 32 bits.
    return weight.shape[1] <= 1 << 16 and kernels_for(weight) is not None


def rounded(weight: Tensor) -> RoundedWeight:
    """Return a weight [out, in] rounded to int8, each output by a scale of its own."""
    outputs, inputs = weight.shape
    kernels = kernels_for(weight)
    assert kernels is not None
    num_panels = -(-outputs // kernels.panel)
    padding = (0, -inputs % kernels.lanes, 0, -outputs % kernels.panel)
    whole = F.pad(weight.float(), padding)
    peaks = whole.abs().amax(1)
    scales = (peaks / kernels.weight_peak).clamp_min(torch.finfo(torch.float32).tiny)
    steps = (whole / scales[:, None]).round().to(torch.int8)
    offsets = steps.sum(1, dtype=torch.int32) * 128
    fours = steps.view(num_panels, kernels.panel, -1, 4).transpose(1, 2).contiguous()
    return RoundedWeight(fours, scales, offsets, inputs=inputs, outputs=outputs)


def byte_linear(x: Tensor, weight: RoundedWeight, bias: Tensor | None) -> Tensor:
    """Return `x` [T, in], rounded to 8 bits, times a weight: [T, out] in the dtype of `x`.

    `bias` is [panels * panel] in fp32. Each row of `x` is rounded by a scale of its own. Sums are
    exact, so a row's result depends neither on the other rows nor on their number. Raise
    RuntimeError for an `x` of another width than the weight.
    """
    kernels = kernels_for(x)
    assert kernels is not None
    rows, inputs = x.shape
    if inputs != weight.inputs:
        raise RuntimeError(f"rows of {inputs} elements do not fit the weight")
    if x.stride(1) != 1:
        x = x.contiguous()
    out = x.new_empty(rows, weight.outputs)
    kernels.byte_linear(
        out.data_ptr(),
        x.data_ptr(),
        x.stride(0),
        weight.steps.data_ptr(),
        weight.scales.data_ptr(),
        weight.offsets.data_ptr(),
        None if bias is None else bias.data_ptr(),
        rows,
        inputs,
        weight.outputs,
        x.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return out


def silu_gated(gate: Tensor, x: Tensor) -> Tensor:
    """Return silu(gate) * x of tensors [T, width]."""
    return _gated(gate, x, is_silu=True)


def sigmoid_gated(gate: Tensor, x: Tensor) -> Tensor:
    """Return sigmoid(gate) * x of tensors [T, width]."""
    return _gated(gate, x, is_silu=False)


def _gated(gate: Tensor, x: Tensor, *, is_silu: bool) -> Tensor:
    rows, width = x.shape
    kernels = kernels_for(x, width)
    if kernels is None or gate.stride(1) != 1 or x.stride(1) != 1:
        opened = F.silu(gate) if is_silu else torch.sigmoid(gate)
        return opened * x
    _check_dtypes(x, gate)
    out = x.new_empty(rows, width)
    kernels.gate(
        out.data_ptr(),
        gate.data_ptr(),
        gate.stride(0),
        x.data_ptr(),
        x.stride(0),
        rows,
        width,
        is_silu,
        x.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return out


def write_rows(pools: Tensor, number: int, rows: Tensor, x: Tensor) -> None:
    """Write `x` [N, heads, head_dim] to the rows `rows` [N] of one of the pools, in their dtype.

    `pools` [pools, pages, page_size, heads, head_dim] are contiguous; heads in int8 have the layout
    of `quantized`. A row counts tokens page by page. Raise RuntimeError for an `x` of another shape
    than the pools, and for one of another dtype that is not larger.
    """
    num_heads, head_dim = x.shape[1:]
    width = head_dim
    if pools.dtype == torch.int8:
        width += SCALE_BYTES
    is_rounded = x.dtype.itemsize > pools.dtype.itemsize
    if pools.shape[3:] != (num_heads, width) or not (is_rounded or x.dtype == pools.dtype):
        raise RuntimeError(f"{x.dtype} heads {num_heads} x {head_dim} do not fit into the pools")

    # Rows that are only copied may have any width.
    kernels = kernels_for(x, head_dim if is_rounded else 0)
    if kernels is None or x.stride()[1:] != (head_dim, 1):
        stored = quantized(x) if pools.dtype == torch.int8 else x.to(pools.dtype)
        pools[number].flatten(0, 1).index_copy_(0, rows, stored)
        return
    kernels.write_rows(
        pools.data_ptr() + number * pools.stride(0) * pools.element_size(),
        rows.data_ptr(),
        x.data_ptr(),
        x.stride(0),
        len(rows),
        num_heads,
        head_dim,
        ELEMENT_TYPES[x.dtype],
        ELEMENT_TYPES[pools.dtype],
    )


def can_choose(logits: Tensor) -> bool:
    """Return whether there is a kernel for the choice of tokens by `logits` [B, V]."""
    if logits.dtype != torch.float32 or not logits.is_contiguous():
        return False
    return kernels_for(logits) is not None


def choose_tokens(
    logits: Tensor,
    *,
    temperatures: Tensor,
    top_ks: Tensor,
    top_ps: Tensor,
    min_ps: Tensor,
    keys: Tensor,
) -> Tensor:
    """Return one token id per row of `logits` [B, V]: [B] in int64.

    All other tensors are [B], of fp64 or int64. `worker.engine.sampler` defines the choice. A
    top-k of 0, a top-p of 1 and a min-p of 0 forbid nothing. Probabilities are summed in fp32 and
    compared in fp64.
    """
    kernels = kernels_for(logits)
    assert kernels is not None
    chosen = keys.new_empty(len(logits))
    kernels.choose_tokens(
        chosen.data_ptr(),
        logits.data_ptr(),
        *logits.shape,
        temperatures.data_ptr(),
        top_ks.data_ptr(),
        top_ps.data_ptr(),
        min_ps.data_ptr(),
        keys.data_ptr(),
        torch.get_num_threads(),
    )
    return chosen


def all_finite(x: Tensor) -> Tensor:
    """Return for each row of `x` [B, V] whether all its elements are finite: [B] in bool."""
    if not can_choose(x):
        return torch.isfinite(x).all(dim=-1)
    kernels = kernels_for(x)
    assert kernels is not None
    is_finite = torch.empty(len(x), dtype=torch.bool)
    kernels.all_finite(is_finite.data_ptr(), x.data_ptr(), *x.shape)
    return is_finite


def _check_dtypes(x: Tensor, *others: Tensor) -> None:
    """Raise RuntimeError unless all tensors have one dtype, as torch would.

    A kernel would read whatever lies behind the smaller ones.
    """
    for other in others:
        if other.dtype != x.dtype:
            raise RuntimeError(f"expected tensors of one dtype, not {x.dtype} and {other.dtype}")


def queries_at_once() -> int:
    """Return the most queries that the kernel for attention computes together."""
    kernels = library()
    assert kernels is not None
    return kernels.queries_at_once


def kernels_for(x: Tensor, width: int = 0) -> Library | None:
    """Return the kernels if they compute tensors like `x` whose last dimension is `width`.

    Return None where torch must do so, which a compiler of layers sees as torch alone, too.
    """
    if torch.compiler.is_compiling() or not x.is_cpu or x.dtype not in _DTYPES:
        return None
    kernels = library()
    if kernels is None or width % kernels.lanes:
        return None
    return kernels
