"""HRM-Text: two stacks, run in cycles, over one embedding.

The forward is our own and fused, and attention is an argument. The maths are those of HRM-Text and
of `transformers` >= 5.9 (`HrmTextForCausalLM`), with which tests compare it:

    z_H = scale * E[ids];  z_L = z_L_init
    repeat H_cycles: { repeat L_cycles: z_L = L(z_L + z_H);  z_H = H(z_H + z_L) };  logits = W z_H

Every pass through a layer has its own slot of keys and values: (h * (L_cycles + 1) + l) * layers +
layer, with the H pass at l = L_cycles. Parameter names are those of Hugging Face exports.
"""

import functools
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worker.models.joined_layers import (
    MAX_ROWS_OF_PASSES,
    JoinedLayers,
    JoinedPass,
    JoinedPasses,
    LayerModules,
    LayersStep,
    can_join,
)
from worker.models.linear import pack_all_linears
from worker.models.weights import check_names
from worker.native.operators import rms_norm, rotate, sigmoid_gated, silu_gated

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""A function that attends: its arguments are slot, query, key and value.

All tensors, the output too, are [T, heads, head_dim].
"""


@dataclass(frozen=True)
class HrmTextShape:
    """Sizes of one network. `num_layers` is the number of blocks in each of the two stacks."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    head_dim: int
    num_layers: int
    h_cycles: int
    l_cycles: int
    embedding_scale: float
    max_positions: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6

    @property
    def num_kv_slots(self) -> int:
        """Return the number of passes through layers, each with its own keys and values."""
        return self.num_layers * self.h_cycles * (self.l_cycles + 1)


class _RmsNorm(nn.Module):
    """RMS norm without weights."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self._eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        return rms_norm(hidden, self._eps)


class _Attention(nn.Module):
    """The projections around attention, whose output is gated: o(sigmoid(gate) * out)."""

    def __init__(self, shape: HrmTextShape) -> None:
        super().__init__()
        width = shape.num_heads * shape.head_dim
        self.heads = (shape.num_heads, shape.head_dim)
        self.gqkv_proj = nn.Linear(shape.hidden_size, 4 * width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=False)

    def project(
        self, hidden: Tensor, rope: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return gate, query, key and value [T, heads, head_dim] of `hidden` [T, hidden].

        Query and key are rotated by their positions.
        """
        parts = self.gqkv_proj(hidden).unflatten(-1, (4, *self.heads))
        query, key = rotate(parts[:, 1:3], *rope).unbind(1)
        return parts[:, 0], query, key, parts[:, 3]

    def gated(self, gate: Tensor, out: Tensor) -> Tensor:
        """Return the layer's output [T, hidden] of attention's `out` [T, heads, head_dim]."""
        gated: Tensor = self.o_proj(sigmoid_gated(gate.flatten(-2), out.flatten(-2)))
        return gated


class _Mlp(nn.Module):
    """Gated MLP: down(silu(gate(x)) * up(x))."""

    def __init__(self, shape: HrmTextShape) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(shape.hidden_size, 2 * shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
        down: Tensor = self.down_proj(silu_gated(gate, up))
        return down


class _Block(nn.Module):
    """Pre-norm block. Its norms have no weights."""

    def __init__(self, shape: HrmTextShape) -> None:
        super().__init__()
        self.norm = _RmsNorm(shape.norm_eps)
        self.attn = _Attention(shape)
        self.mlp = _Mlp(shape)

    def before(
        self, hidden: Tensor, rope: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute the part of the layer before attention: gate, query, key and value."""
        return self.attn.project(self.norm(hidden), rope)

    def after(self, hidden: Tensor, gate: Tensor, attended: Tensor) -> Tensor:
        """Compute the part of the layer after attention, whose output is `attended`."""
        hidden = hidden + self.attn.gated(gate, attended)
        out: Tensor = hidden + self.mlp(self.norm(hidden))
        return out

    def modules_of_layer(self) -> LayerModules:
        """Return the products of the layer, which `JoinedLayers` computes together."""
        attn = self.attn
        mlp = self.mlp
        return LayerModules(attn.gqkv_proj, attn.o_proj, mlp.gate_up_proj, mlp.down_proj)


Halves = tuple[Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]], Callable[..., Tensor]]
"""Two functions that compute a layer before and after its attention.

They are methods of `_Block`, plain or compiled.
"""

PLAIN_HALVES: Halves = (_Block.before, _Block.after)


class _Stack(nn.Module):
    """A stack of blocks and a final norm: L or H."""

    def __init__(self, shape: HrmTextShape) -> None:
        super().__init__()
        self.norm = _RmsNorm(shape.norm_eps)
        self.layers = nn.ModuleList(_Block(shape) for _ in range(shape.num_layers))
        self.joined: JoinedLayers | None = None


@dataclass(frozen=True)
class Pass:
    """A pass through the H stack or the L stack. Its layers have the slots from `first_slot` on."""

    is_high: bool
    first_slot: int


Passes = tuple[Pass, ...]
"""Passes in their order. The last one is through the H stack."""


@dataclass(frozen=True)
class HrmTextState:
    """A forward that has computed the first `num_layers` layers of its passes.

    `hidden` are the states [T, hidden] that the last of them has returned. `z_h` and `z_l`
    [T, hidden] are those of the last passes.
    """

    hidden: Tensor
    z_h: Tensor
    z_l: Tensor
    rope: tuple[Tensor, Tensor]
    num_layers: int = 0


class _Core(nn.Module):
    def __init__(self, shape: HrmTextShape) -> None:
        super().__init__()
        # Not drawn: on the meta device that would import torch's compiler, which takes seconds.
        table = torch.empty(shape.vocab_size, shape.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.z_L_init = nn.Parameter(torch.zeros(shape.hidden_size))
        self.L_module = _Stack(shape)
        self.H_module = _Stack(shape)


class HrmTextModel(nn.Module):
    """The network. A call returns states, and `logits` turns states into logits."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: HrmTextShape) -> None:
        super().__init__()
        self.shape = shape
        self.model = _Core(shape)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        cos, sin = rope_table(shape.max_positions, shape.head_dim, shape.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.halves = PLAIN_HALVES
        self._passes: dict[Passes, JoinedPasses] = {}

    def with_cycles(self, h_cycles: int, l_cycles: int) -> "HrmTextModel":
        """Return a network of the same weights that runs so many cycles.

        Each cycle has slots of its own, so their number changes. Replaced layers are replaced in
        both networks.
        """
        model = copy(self)
        model.shape = replace(self.shape, h_cycles=h_cycles, l_cycles=l_cycles)
        return model

    def compile_layers(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the layers, which fuses the operators between matrix products and attention."""
        # All layers are alike, so two compilations are enough.
        before, after = self.halves
        before = torch.compile(before, dynamic=True, fullgraph=True, backend=backend)
        after = torch.compile(after, dynamic=True, fullgraph=True, backend=backend)
        self.halves = (before, after)

    def join_layers(self) -> None:
        """Let one call of the kernels run several layers of a stack, where they compute them all.

        Call this when the linear layers have been replaced. Those that are left are packed.
        """
        shape = self.shape
        widths = (shape.hidden_size, shape.num_heads * shape.head_dim, shape.intermediate_size)
        if not can_join(self.model.z_L_init, head_dim=shape.head_dim, widths=widths):
            return
        for stack in (self.model.L_module, self.model.H_module):
            pack_all_linears(stack)
            layers: list[LayerModules] = []
            for block in stack.layers:
                assert isinstance(block, _Block)
                layers.append(block.modules_of_layer())
            stack.joined = JoinedLayers(layers, eps=shape.norm_eps, is_gated=True, is_signed=True)

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        attend: Attend,
        passes: Passes | None = None,
    ) -> Tensor:
        """Return the last z_H [T, hidden] of token ids [T] at `positions` [T].

        `passes` are those that are computed. None stands for all.
        """
        return self.advance(self.begin(ids, positions), attend, passes=passes).z_h

    def begin(self, ids: Tensor, positions: Tensor) -> HrmTextState:
        """Return the state of a forward of token ids [T] at `positions` [T] before any layer."""
        core = self.model
        z_h = core.embed_tokens(ids) * self.shape.embedding_scale
        z_l = core.z_L_init.to(z_h.dtype).expand_as(z_h)
        rope = (self.cos[positions].to(z_h.dtype), self.sin[positions].to(z_h.dtype))
        return HrmTextState(z_h, z_h, z_l, rope)

    def advance(
        self,
        state: HrmTextState,
        attend: Attend,
        num_layers: int | None = None,
        *,
        passes: Passes | None = None,
        step: LayersStep | None = None,
    ) -> HrmTextState:
        """Return the state after the next `num_layers` layers. None stands for all that are left.

        The given state stays as it is. Layers that are joined need a `step`, and attend by it. Other
        layers call `attend`.
        """
        if passes is None:
            passes = all_passes(self.shape)
        is_whole = num_layers is None and state.num_layers == 0
        if step is not None and is_whole and len(state.hidden) <= MAX_ROWS_OF_PASSES:
            joined = self._joined_passes(passes)
            if joined is not None:
                z_h, z_l = joined.run(state.z_h, state.z_l, step)
                end = len(passes) * self.shape.num_layers
                return HrmTextState(z_h, z_h, z_l, state.rope, num_layers=end)

        num_of_pass = self.shape.num_layers
        end = len(passes) * num_of_pass
        if num_layers is not None:
            end = min(end, state.num_layers + num_layers)

        before, after = self.halves
        z_h = state.z_h
        z_l = state.z_l
        hidden = state.hidden
        number = state.num_layers
        while number < end:
            pass_number, first = divmod(number, num_of_pass)
            last = min(num_of_pass, first + end - number)
            number += last - first
            current = passes[pass_number]
            stack = self.model.H_module if current.is_high else self.model.L_module
            if first == 0:
                hidden = z_l + z_h
            if step is not None and stack.joined is not None:
                hidden = stack.joined.run(hidden, first, last, current.first_slot + first, step)
            else:
                for layer in range(first, last):
                    block = stack.layers[layer]
                    gate, query, key, value = before(block, hidden, state.rope)
                    attended = attend(current.first_slot + layer, query, key, value)
                    hidden = after(block, hidden, gate, attended)
            if last == num_of_pass:
                hidden = stack.norm(hidden)
                if current.is_high:
                    z_h = hidden
                else:
                    z_l = hidden
        return HrmTextState(hidden, z_h, z_l, state.rope, num_layers=end)

    def _joined_passes(self, passes: Passes) -> JoinedPasses | None:
        """Return the passes as one call of the kernels, None for layers that are not joined."""
        core = self.model
        if core.H_module.joined is None or core.L_module.joined is None:
            return None
        if passes not in self._passes:
            joined: list[JoinedPass] = []
            for one in passes:
                layers = core.H_module.joined if one.is_high else core.L_module.joined
                joined.append(JoinedPass(layers, one.first_slot, is_high=one.is_high))
            self._passes[passes] = JoinedPasses(joined)
        return self._passes[passes]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [..., vocab] in float32 of states [..., hidden]."""
        out: Tensor = self.lm_head(hidden)
        return out.float()


def all_passes(shape: HrmTextShape) -> Passes:
    """Return the passes of the whole network."""
    return passes_of(shape, shape.h_cycles * shape.l_cycles)


@functools.cache
def passes_of(shape: HrmTextShape, num_l_passes: int) -> Passes:
    """Return all H passes, and `num_l_passes` L passes, which are dealt to the H cycles in turn.

    An H cycle has its last L passes, because their slots hold what the whole network comes to,
    which lets a draft name its tokens.
    """
    assert 0 <= num_l_passes <= shape.h_cycles * shape.l_cycles
    passes: list[Pass] = []
    for h_cycle in range(shape.h_cycles):
        first_slot = h_cycle * (shape.l_cycles + 1) * shape.num_layers
        count = (num_l_passes + shape.h_cycles - 1 - h_cycle) // shape.h_cycles
        for l_cycle in range(shape.l_cycles - count, shape.l_cycles):
            passes.append(Pass(is_high=False, first_slot=first_slot + l_cycle * shape.num_layers))
        last_slot = first_slot + shape.l_cycles * shape.num_layers
        passes.append(Pass(is_high=True, first_slot=last_slot))
    return tuple(passes)


def build_model(
    shape: HrmTextShape, weights: Mapping[str, Tensor], source: Path, dtype: torch.dtype
) -> HrmTextModel:
    """Return the network with `weights`, in eval mode on the CPU, in `dtype`.

    Raise ModelFormatError unless names and shapes match. The error names `source`.
    """
    # Compare with a network on the meta device first, so that wrong sizes allocate nothing.
    with torch.device("meta"):
        skeleton = HrmTextModel(shape)
    check_names(dict(skeleton.named_parameters()), weights, source)
    model = HrmTextModel(shape).to(dtype)
    model.load_state_dict(weights)
    return model.requires_grad_(False).eval()


def rope_table(num_positions: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosines and signed sines [positions, 1, 1, head_dim], in the half-rotated layout.

    They are on the CPU, also where a network is built on the meta device.
    """
    dims = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu")
    frequencies = 1.0 / theta ** (dims / head_dim)
    positions = torch.arange(num_positions, dtype=torch.float32, device="cpu")
    angles = torch.outer(positions, frequencies)
    cos = angles.cos()
    sin = angles.sin()
    cosines = torch.cat((cos, cos), dim=-1)
    signed_sines = torch.cat((-sin, sin), dim=-1)
    return cosines[:, None, None], signed_sines[:, None, None]
