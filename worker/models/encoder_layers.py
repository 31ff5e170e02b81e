"""The layers of encoders like BERT, of which one call of the kernels computes several.

A layer is joined if it computes what its parts make together for random rows: each part is added to
what came in, and a norm follows. The texts of a batch lie one behind the other meanwhile, so that
nothing is computed for padding.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from ctypes import byref, pointer
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from worker.engine.heartbeat import heartbeat
from worker.kv.paged_native import new_rows
from worker.models.fused_layers import TRIAL_ROWS
from worker.models.joined_layers import FEW_ROWS, can_join, panels
from worker.models.linear import pack_all_linears
from worker.native.layers import NativeAttention, NativeEncoderLayer, NativeStep
from worker.native.operators import ELEMENT_TYPES, kernels_for

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2**-5}
"""The largest error of layers' parts together, as a share of their result."""

_lengths: ContextVar[Sequence[int]] = ContextVar("aios_lengths")


@contextmanager
def lengths_of_rows(lengths: Sequence[int]) -> Iterator[None]:
    """Tell joined encoders how long the rows are that a network reads during the block.

    Behind its length a row is padding.
    """
    token = _lengths.set(lengths)
    try:
        yield
    finally:
        _lengths.reset(token)


class _EncoderLayer(nn.Module):
    """The modules of a layer, with one product for queries, keys and values."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        given: Any = layer
        attention = given.attention.self
        self.num_heads: int = attention.num_attention_heads
        parts = (attention.query, attention.key, attention.value)
        self.heads = nn.Linear(
            attention.query.in_features,
            3 * attention.query.out_features,
            bias=attention.query.bias is not None,
            device="meta",
        )
        self.heads.weight = _joined([part.weight for part in parts])
        if attention.query.bias is not None:
            self.heads.bias = _joined([part.bias for part in parts])
        self.attended = given.attention.output.dense
        self.attention_norm = given.attention.output.LayerNorm
        self.up = given.intermediate.dense
        self.down = given.output.dense
        self.mlp_norm = given.output.LayerNorm

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the states [T, hidden] of one text behind the layer, by torch alone."""
        heads = self.heads(hidden).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(1, 2, 0, 3)
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = self.attended(attended.transpose(0, 1).flatten(1))
        hidden = self.attention_norm(hidden + attended)
        down = self.down(F.gelu(self.up(hidden)))
        normed: Tensor = self.mlp_norm(hidden + down)
        return normed

    def described(self) -> NativeEncoderLayer:
        """Return the kernels' description of the layer, which points to its tensors."""
        return NativeEncoderLayer(
            heads=panels(self.heads).described(),
            attended=panels(self.attended).described(),
            up=panels(self.up).described(),
            down=panels(self.down).described(),
            attention_scale=self.attention_norm.weight.data_ptr(),
            attention_shift=self.attention_norm.bias.data_ptr(),
            mlp_scale=self.mlp_norm.weight.data_ptr(),
            mlp_shift=self.mlp_norm.bias.data_ptr(),
        )


class JoinedEncoder(nn.Module):
    """The layers of an encoder in the place of its own, for rows within `lengths_of_rows`."""

    def __init__(self, layers: Sequence[_EncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._num_heads = layers[0].num_heads
        self._eps = float(layers[0].mlp_norm.eps)
        self._described = (NativeEncoderLayer * len(layers))()

    def pack(self) -> None:
        """Describe the layers to the kernels. Call this when the linear layers have been replaced.

        Those that are left are packed.
        """
        pack_all_linears(self)
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, _EncoderLayer)
            self._described[number] = layer.described()

    def forward(
        self, hidden_states: Tensor, *_: Any, **__: Any
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Return the states [B, T, hidden] behind the layers, with zeros in place of padding."""
        lengths = _lengths.get()
        parts = [row[:length] for row, length in zip(hidden_states, lengths, strict=True)]
        flat = torch.cat(parts)
        self._run(flat, lengths)
        out = torch.zeros_like(hidden_states)
        for row, states in zip(out, flat.split(list(lengths)), strict=True):
            row[: len(states)] = states
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=out)

    def _run(self, flat: Tensor, lengths: Sequence[int]) -> None:
        """Run the layers over the states [T, hidden] of texts, in place."""
        kernels = kernels_for(flat)
        assert kernels is not None
        rows = new_rows()
        first = 0
        for length in lengths:
            rows.add([], range(length), [length] * length, num_stored=0, fresh_start=first)
            first += length
        span = rows.span()
        head_dim = flat.shape[1] // self._num_heads
        attention = NativeAttention(
            num_stored=span.num_stored.data_ptr(),
            fresh_starts=span.fresh_starts.data_ptr(),
            blocks=span.blocks.data_ptr(),
            positions=span.positions.data_ptr(),
            ends=span.ends.data_ptr(),
            kv_heads=self._num_heads,
            group=1,
            head_dim=head_dim,
            page_size=1,
            scale=head_dim**-0.5,
            type=ELEMENT_TYPES[flat.dtype],
            kv_type=ELEMENT_TYPES[flat.dtype],
        )
        step = NativeStep(
            attention=pointer(attention),
            rows=len(flat),
            hidden=flat.shape[1],
            num_blocks=len(span.blocks),
            eps=self._eps,
            threads=torch.get_num_threads(),
        )
        at_once = len(self.layers) if len(flat) <= FEW_ROWS else 1
        for layer in range(0, len(self.layers), at_once):
            heartbeat()
            described = byref(self._described, layer * ctypes.sizeof(NativeEncoderLayer))
            kernels.run_encoder_layers(byref(step), described, at_once, flat.data_ptr())


@torch.no_grad()
def join_encoder(model: PreTrainedModel) -> JoinedEncoder | None:
    """Let the kernels compute the layers of an encoder, in place, where they compute all of them.

    Return what has taken their place, which is to be packed when the linear layers have been
    replaced.
    """
    base: Any = model.base_model
    own: Any = getattr(base, "encoder", None)
    modules = getattr(own, "layer", None)
    if not isinstance(modules, nn.ModuleList) or getattr(model.config, "is_decoder", False):
        return None
    # A network is foreign code, which may have other modules, or raise any error.
    try:
        layers = [_EncoderLayer(module) for module in modules]
        if not _are_post_norm(own, modules, layers):
            return None
    except Exception:
        return None
    base.encoder = JoinedEncoder(layers)
    joined: JoinedEncoder = base.encoder
    return joined


def _are_post_norm(
    encoder: nn.Module, modules: nn.ModuleList, layers: Sequence[_EncoderLayer]
) -> bool:
    """Return whether the kernels compute what an encoder computes by its layers `modules`."""
    norms = [norm for layer in layers for norm in (layer.attention_norm, layer.mlp_norm)]
    if any(type(norm) is not nn.LayerNorm or norm.bias is None for norm in norms):
        return False
    if len({norm.eps for norm in norms}) != 1 or len({layer.num_heads for layer in layers}) != 1:
        return False
    weight = layers[0].mlp_norm.weight
    head_dim = len(weight) // layers[0].num_heads
    widths = [len(weight)]
    for layer in layers:
        widths += [layer.heads.out_features // 3, layer.up.out_features]
        if layer.attended.in_features != len(weight):
            return False
    # `can_join` looks at a half of a head, because heads of decoders are rotated.
    if not can_join(weight, head_dim=2 * head_dim, widths=widths):
        return False

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TRIAL_ROWS, len(weight), generator=generator).to(weight.dtype)
    hidden = x
    for module, layer in zip(modules, layers, strict=True):
        returned = module(x[None], None)
        if isinstance(returned, tuple):
            returned = returned[0]
        if not _are_near(layer(x), returned[0]):
            return False
        hidden = layer(hidden)
    return _are_near(hidden, encoder(x[None])[0][0])


def _are_near(found: Tensor, expected: Tensor) -> bool:
    error = (found.float() - expected.float()).norm() / expected.float().norm()
    # Not `>`: this way a NaN is an error, too.
    return bool(error <= _TOLERANCE[expected.dtype])


def _joined(weights: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.cat(list(weights)), requires_grad=False)
