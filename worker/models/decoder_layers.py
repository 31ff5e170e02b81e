"""Decoder layers of transformers networks, of which one call of the kernels computes several.

A layer is joined if its parts are those of `worker.models.fused_layers`, and it computes for random
rows what they make together: each part behind its norm, and added to what came in. A network whose
layers are all joined, and that does nothing else than to run them, is run by `JoinedDecoder`: its
own code takes a tenth of a step of one token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from worker.kv.attention import AttentionPlan
from worker.kv.store import KVStore
from worker.models.fused_layers import (
    TRIAL_ROWS,
    FusedAttention,
    FusedMlp,
    FusedRmsNorm,
    first_value,
    trial_attention,
)
from worker.models.joined_layers import (
    JoinedLayers,
    LayerModules,
    LayersStep,
    can_join,
    layers_step,
)
from worker.models.linear import pack_all_linears

_KNOWN_OPTIONS = {"dropout", "scaling", "sliding_window"}
"""Options that an attention may tell its interface. Others may ask for what our kernel does not do."""


@dataclass(frozen=True)
class DecoderLayer:
    """A layer of these modules, with the slot `slot`.

    Its queries have `num_heads` heads, `scale` and `window`, its norms have `eps`.
    """

    modules: LayerModules
    slot: int
    num_heads: int
    eps: float
    scale: float
    window: int | None

    def is_followed_by(self, other: "DecoderLayer") -> bool:
        """Return whether another layer differs in its weights alone, and has the next slot."""
        ours = (self.slot + 1, self.num_heads, self.eps, self.scale, self.window)
        theirs = (other.slot, other.num_heads, other.eps, other.scale, other.window)
        return ours == theirs


class DecoderLayers:
    """Layers of which each is followed by the next one."""

    def __init__(self, layers: Sequence[DecoderLayer]) -> None:
        modules = [layer.modules for layer in layers]
        self._first = layers[0]
        self._count = len(layers)
        self._joined = JoinedLayers(modules, eps=self._first.eps, is_gated=False, is_signed=False)

    def attends_like(self, other: "DecoderLayers") -> bool:
        """Return whether a step is the same for both, but for the slots."""
        ours = (self._first.num_heads, self._first.scale, self._first.window)
        return ours == (other._first.num_heads, other._first.scale, other._first.window)

    def step(
        self, plan: AttentionPlan, store: KVStore | None, rope: tuple[Tensor, Tensor]
    ) -> LayersStep | None:
        """Return a step as `run` takes it, None for one that must be computed otherwise."""
        first = self._first
        return layers_step(
            plan, store, rope, num_heads=first.num_heads, scale=first.scale, window=first.window
        )

    def run(self, hidden: Tensor, step: LayersStep) -> Tensor:
        """Return the states [T, hidden] behind the layers, of `hidden` [T, hidden] before them."""
        return self._joined.run(hidden, 0, self._count, self._first.slot, step)


@dataclass(frozen=True)
class JoinedDecoder:
    """A network that embeds tokens, runs layers one after the other, and norms what they return.

    `rope` makes the cosines and sines of positions.
    """

    embed: nn.Module
    rope: nn.Module
    runs: tuple[DecoderLayers, ...]
    norm: nn.Module

    def hidden(self, ids: Tensor, plan: AttentionPlan, store: KVStore | None) -> Tensor | None:
        """Return the states [T, hidden] of tokens [T].

        None stands for a step that must be computed otherwise.
        """
        hidden: Tensor = self.embed(ids)
        rope = self.rope(hidden[None], plan.positions[None])
        for run in self.runs:
            step = run.step(plan, store, rope)
            # That of one run can be computed if those of the others can.
            if step is None:
                return None
            hidden = run.run(hidden, step)
        normed: Tensor = self.norm(hidden)
        return normed


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
    modules = LayerModules(
        attention.qkv_proj,
        attention.o_proj,
        mlp.gate_up_proj,
        mlp.down_proj,
        norms=(weight, second_norm.weight.detach()),
    )
    scale = options.get("scaling")
    return DecoderLayer(
        modules,
        slot=attention.layer_idx,
        num_heads=attention.num_queries,
        eps=first_norm.eps,
        scale=attention.head_dim**-0.5 if scale is None else scale,
        window=options.get("sliding_window"),
    )


@torch.no_grad()
def joined_decoder(model: PreTrainedModel, layers: Sequence[DecoderLayer]) -> JoinedDecoder | None:
    """Return what computes the states of a network, None for one that does more than that.

    `layers` are all layers of the network, which is watched while it reads a few tokens: each of
    its modules must be given what the one before it has returned.
    """
    decoder: Any = model.base_model
    names = {name for name, _ in decoder.named_children()}
    if names != {"embed_tokens", "rotary_emb", "layers", "norm"}:
        return None

    calls: list[_Call] = []
    hooks = []
    for part in (decoder.embed_tokens, decoder.rotary_emb, *decoder.layers, decoder.norm):
        hooks.append(part.register_forward_hook(_noting(calls), with_kwargs=True))
    positions = torch.arange(TRIAL_ROWS)
    ids = positions % model.config.vocab_size
    # A network is foreign code, which may raise any error.
    try:
        with trial_attention(model.config, first_value):
            out = decoder(input_ids=ids[None], position_ids=positions[None], use_cache=False)
    except Exception:
        return None
    finally:
        for hook in hooks:
            hook.remove()
    if not _is_plain(calls, decoder, out.last_hidden_state):
        return None

    runs = [[layers[0]]]
    for layer in layers[1:]:
        if runs[-1][-1].is_followed_by(layer):
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return JoinedDecoder(
        decoder.embed_tokens,
        decoder.rotary_emb,
        tuple(DecoderLayers(run) for run in runs),
        decoder.norm,
    )


@dataclass(frozen=True)
class _Call:
    """A call of a module: its first argument, the tables of positions if it has any, its result."""

    module: nn.Module
    given: Any
    rope: Any
    returned: Any


def _noting(calls: list[_Call]) -> Any:
    """Return a hook that notes calls of modules."""

    def note(
        module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], returned: Any
    ) -> None:
        given = args[0] if args else options.get("hidden_states")
        calls.append(_Call(module, given, options.get("position_embeddings"), returned))

    return note


def _is_plain(calls: list[_Call], decoder: Any, out: Tensor) -> bool:
    """Return whether a decoder embeds, runs its layers and norms, and does nothing in between."""
    modules = [call.module for call in calls]
    expected = [decoder.embed_tokens, decoder.rotary_emb, *decoder.layers, decoder.norm]
    if modules != expected:
        return False
    embed, rope, *chain = calls
    state = embed.returned
    for call in chain:
        is_layer = call.module is not decoder.norm
        if call.given is not state or (is_layer and call.rope is not rope.returned):
            return False
        state = call.returned
    return state is out


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
