"""The layers of a decoder, of which one call of the kernels runs several, or all passes of an HRM.

They compute what the network's own modules compute, bit by bit, so a step may go either way.
"""

import ctypes
from collections.abc import Iterable, Sequence
from ctypes import byref, pointer
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.engine.heartbeat import heartbeat
from worker.kv.attention import AttentionPlan
from worker.kv.paged_native import NativeSpan
from worker.kv.store import KVStore
from worker.models.linear import Int8PanelLinear, PanelLinear
from worker.native.layers import NativeLayer, NativePass, NativeStep
from worker.native.operators import kernels_for

FEW_ROWS = 64
"""The most rows for which a call runs several layers.

With more, a call from Python costs nothing beside a layer, and a thread must give signs of life.
"""
MAX_ROWS_OF_PASSES = 16
"""The most rows for which a call runs several passes, for the same reasons."""


@dataclass(frozen=True)
class LayerModules:
    """The modules of a layer: its products before and behind attention, and those of its MLP.

    `heads` makes queries, keys and values, behind gates if the layer has any. `norms` are the
    weights [hidden] of the norms before attention and before the MLP, if they have weights.
    """

    heads: nn.Module
    attended: nn.Module
    gate_up: nn.Module
    down: nn.Module
    norms: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class LayersStep:
    """A step of T rows, all of which are stored, and which attend to stored tokens alone.

    `described` is the kernels' description of it, which points to the tables `rope`.
    """

    described: NativeStep
    rope: tuple[Tensor, Tensor]


class JoinedLayers:
    """Pre-norm layers of a decoder with rotary positions and gated MLPs.

    With `is_gated` attention is gated, too. `is_signed` is that of `rotate`, `eps` that of all
    norms. All products are in panels.
    """

    def __init__(
        self, layers: Sequence[LayerModules], *, eps: float, is_gated: bool, is_signed: bool
    ) -> None:
        self._modules = list(layers)
        self._layers = (NativeLayer * len(layers))()
        self._eps = eps
        self._is_gated = is_gated
        self._is_signed = is_signed
        for number, layer in enumerate(layers):
            norms: tuple[int | None, int | None] = (None, None)
            if layer.norms is not None:
                norms = (layer.norms[0].data_ptr(), layer.norms[1].data_ptr())
            self._layers[number] = NativeLayer(
                heads=panels(layer.heads).described(),
                attended=panels(layer.attended).described(),
                gate_up=panels(layer.gate_up).described(),
                down=panels(layer.down).described(),
                attention_norm=norms[0],
                mlp_norm=norms[1],
            )

    def run(self, hidden: Tensor, first: int, last: int, slot: int, step: LayersStep) -> Tensor:
        """Return the states [T, hidden] behind the layers `first` to `last`, `last` not included.

        `hidden` [T, hidden] are the states before them. The first of them has the slot `slot`.
        """
        kernels = kernels_for(hidden)
        assert kernels is not None
        out = hidden.clone(memory_format=torch.contiguous_format)
        described = self.complete(step, out)
        at_once = last - first if len(out) <= FEW_ROWS else 1
        for layer in range(first, last, at_once):
            heartbeat()
            kernels.run_layers(
                byref(described),
                byref(self._layers[layer]),
                at_once,
                out.data_ptr(),
                slot + layer - first,
            )
        return out

    def complete(self, step: LayersStep, hidden: Tensor) -> NativeStep:
        """Return the description of a step with what it lacks, of states `hidden` [T, hidden]."""
        assert step.rope[0].dtype == hidden.dtype
        described = step.described
        described.rows, described.hidden = hidden.shape
        described.is_gated = self._is_gated
        described.is_signed = self._is_signed
        described.eps = self._eps
        return described

    def described_pass(self, first_slot: int, *, is_high: bool) -> NativePass:
        """Return the kernels' description of a pass through these layers, which points to them."""
        return NativePass(
            layers=ctypes.addressof(self._layers),
            count=len(self._layers),
            first_slot=first_slot,
            is_high=is_high,
        )


@dataclass(frozen=True)
class JoinedPass:
    """A pass through `layers`, the first of which has the slot `first_slot`.

    It runs them on the sum of z_H and z_L, and a norm, and makes the new z_H, or else the new z_L.
    """

    layers: JoinedLayers
    first_slot: int
    is_high: bool


class JoinedPasses:
    """The passes of an HRM. All of their layers are alike, but for the weights."""

    def __init__(self, passes: Sequence[JoinedPass]) -> None:
        self._joined = list(passes)
        self._passes = (NativePass * len(passes))()
        for number, one in enumerate(passes):
            self._passes[number] = one.layers.described_pass(one.first_slot, is_high=one.is_high)

    def run(self, z_h: Tensor, z_l: Tensor, step: LayersStep) -> tuple[Tensor, Tensor]:
        """Return z_H and z_L [T, hidden] behind the passes, of those before them.

        T is at most `MAX_ROWS_OF_PASSES`.
        """
        assert len(z_h) <= MAX_ROWS_OF_PASSES
        kernels = kernels_for(z_h)
        assert kernels is not None
        heartbeat()
        new_h = z_h.clone(memory_format=torch.contiguous_format)
        new_l = z_l.clone(memory_format=torch.contiguous_format)
        described = self._joined[0].layers.complete(step, new_h)
        kernels.run_passes(
            byref(described),
            byref(self._passes),
            len(self._passes),
            new_h.data_ptr(),
            new_l.data_ptr(),
        )
        return new_h, new_l


def can_join(like: Tensor, *, head_dim: int, widths: Iterable[int]) -> bool:
    """Return whether the kernels compute layers of these sizes, on the device of `like`.

    `widths` are those of states, of all heads together, and inside the MLP.
    """
    return all(kernels_for(like, width) is not None for width in (head_dim // 2, *widths))


def layers_step(
    plan: AttentionPlan,
    store: KVStore | None,
    rope: tuple[Tensor, Tensor],
    *,
    num_heads: int,
    scale: float,
    window: int | None = None,
) -> LayersStep | None:
    """Return the step of a plan, or None for one that joined layers cannot compute.

    `rope` are cosines and sines of T * head_dim elements. Queries have `num_heads` heads. With a
    `window` a query sees that many positions, its own included.
    """
    if store is None or plan.rows is None or plan.kept is not None or len(plan.spans) != 1:
        return None
    [span] = plan.spans
    if not isinstance(span, NativeSpan) or span.has_fresh:
        return None
    cosines, sines = (table.contiguous() for table in rope)
    head_dim = cosines.shape[-1]
    if cosines.numel() != len(plan.positions) * head_dim:
        return None
    attention = span.described(
        store,
        num_heads=num_heads,
        head_dim=head_dim,
        dtype=cosines.dtype,
        scale=scale,
        window=window,
    )
    described = NativeStep(
        attention=pointer(attention),
        cosines=cosines.data_ptr(),
        sines=sines.data_ptr(),
        places=plan.rows.data_ptr(),
        keys=store.keys.data_ptr(),
        values=store.values.data_ptr(),
        slot_bytes=store.keys.stride(0) * store.keys.element_size(),
        num_blocks=len(span.blocks),
        threads=torch.get_num_threads(),
    )
    return LayersStep(described, (cosines, sines))


def panels(module: nn.Module) -> PanelLinear | Int8PanelLinear:
    """Return a layer that has been packed."""
    assert isinstance(module, PanelLinear | Int8PanelLinear)
    return module
