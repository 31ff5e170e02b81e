"""A transformers causal LM as a `Net`: the network's own code, with attention over our pages.

The plan of a step reaches our attention in a context variable, because transformers calls it deep
inside a forward that is not ours. transformers makes no mask for our attention, because no mask
function is registered under its interface's name.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from shared.messages import HaltState
from worker.engine.sequence import TokenSequence
from worker.kv.attention import AttentionPlan, attend
from worker.kv.store import KVShape, KVStore
from worker.models.decoder_layers import (
    DecoderLayers,
    JoinedDecoder,
    decoder_layer,
    joined_decoder,
)
from worker.models.fused_layers import TRIAL_ROWS
from worker.models.joined_layers import LayersStep
from worker.models.q_head import QHead
from worker.runners.net import Depths, Draft, Layers

_INTERFACE = "aios_paged"


@dataclass
class _Step:
    """A step of the network.

    `for_kernels` is the step as joined layers that attend like `layers`, with `rope`, run it.
    """

    plan: AttentionPlan
    store: KVStore | None
    rope: tuple[Tensor, Tensor] | None = None
    layers: DecoderLayers | None = None
    for_kernels: LayersStep | None = None

    def for_layers(self, layers: DecoderLayers, rope: tuple[Tensor, Tensor]) -> LayersStep | None:
        """Return the step as joined layers run it, None for a step that they cannot compute.

        In most networks that is the same for all layers, and made once.
        """
        is_same = self.layers is not None and self.layers.attends_like(layers)
        if not is_same or self.rope is not rope:
            self.rope = rope
            self.layers = layers
            self.for_kernels = layers.step(self.plan, self.store, rope)
        return self.for_kernels


_step: ContextVar[_Step] = ContextVar("aios_step")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return the attention output [1, T, heads, head_dim], in the form of transformers' interface.

    `query`, `key` and `value` are [1, heads, T, head_dim].
    """
    step = _step.get()
    slot: Any = module.layer_idx
    scale = scaling
    if scale is None:
        scale = query.shape[-1] ** -0.5
    out = attend(
        step.plan,
        step.store,
        slot,
        query=query[0].transpose(0, 1),
        key=key[0].transpose(0, 1),
        value=value[0].transpose(0, 1),
        scale=scale,
        window=sliding_window,
    )
    return out[None], None


ALL_ATTENTION_FUNCTIONS.register(_INTERFACE, _attention)


class CausalNet:
    """A transformers causal LM that attends to our pages.

    `q_head`, which only implants have, reads the last states, from which the logits come, too.
    """

    is_prefix = False
    draft: Draft | None = None
    layers: Layers | None = None
    depths: Depths | None = None

    def __init__(
        self,
        model: PreTrainedModel,
        kv_shape: KVShape,
        device: torch.device,
        q_head: QHead | None = None,
    ) -> None:
        model.set_attn_implementation(_INTERFACE)
        self.model = model
        self.device = device
        self.dtype = model.dtype
        self.kv_shape = kv_shape
        self.q_head = q_head
        self.halts = None if q_head is None else partial(_halts, q_head)
        self._decoder: JoinedDecoder | None = None
        self._is_last_layer_all = False

    def hidden(self, ids: Tensor, plan: AttentionPlan, store: KVStore | None) -> Tensor:
        if self._decoder is not None:
            states = self._decoder.hidden(ids, plan, store)
            if states is not None:
                return states
        inputs = self.inputs(ids)
        token = _step.set(_Step(plan, store))
        try:
            out = self.model.base_model(
                **inputs, position_ids=plan.positions[None], use_cache=False
            )
        finally:
            _step.reset(token)
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def join_layers(self) -> int:
        """Let calls of the kernels compute layers, where they compute all of them.

        Call this when the linear layers have been replaced. Those that are left in such a layer are
        packed. Return the number of these layers.
        """
        self._is_last_layer_all = _is_last_layer_all(self.model)
        num_joined = 0
        for layers in list(self.model.modules()):
            if not isinstance(layers, nn.ModuleList):
                continue
            joined = {}
            for number, module in enumerate(layers):
                layer = decoder_layer(module)
                if layer is not None:
                    joined[number] = layer
            num_joined += len(joined)
            if joined and len(joined) == len(layers):
                self._decoder = joined_decoder(self.model, list(joined.values()))
            if self._decoder is None:
                for number, layer in joined.items():
                    layers[number] = _JoinedLayer(layers[number], DecoderLayers([layer]))
        return num_joined

    def inputs(self, ids: Tensor) -> dict[str, Tensor]:
        """Return what the network is given of the tokens [T] of a step."""
        return {"input_ids": ids[None]}

    def logits(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1])
        if self._is_last_layer_all:
            # It may have been replaced after loading.
            last_layer: Any = self.model.get_output_embeddings()
            logits: Tensor = last_layer(rows)
        else:
            logits = _logits_of_head(self.model, rows)
        return logits.float().view(*hidden.shape[:-1], -1)


class _JoinedLayer(nn.Module):
    """A layer of a transformers network that is computed by the kernels where a step allows it.

    To the network it is the layer itself.
    """

    def __init__(self, layer: nn.Module, joined: DecoderLayers) -> None:
        super().__init__()
        self.layer = layer
        self._joined = joined

    def forward(
        self,
        hidden_states: Tensor,
        *args: Any,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **options: Any,
    ) -> Any:
        step = None
        if position_embeddings is not None:
            step = _step.get().for_layers(self._joined, position_embeddings)
        if step is None:
            return self.layer(
                hidden_states, *args, position_embeddings=position_embeddings, **options
            )
        return self._joined.run(hidden_states[0], step)[None]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


def _halts(q_head: QHead, states: Tensor, _sequences: Sequence[TokenSequence]) -> list[HaltState]:
    """Return the values of a q head for states [B, hidden]. The network has no segments."""
    return [HaltState(q_halt, q_continue) for q_halt, q_continue in q_head(states).tolist()]


class _States(nn.Module):
    """Stand-in for the layers: it returns its input embeddings as last hidden states."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> "_Output":
        return _Output(inputs_embeds)

    @property
    def decoder(self) -> "_States":
        """Return the stand-in itself, for OPT, whose layers are one level deeper."""
        return self


class _Output:
    """A model output with last hidden states alone. All its other fields are None."""

    def __init__(self, last_hidden_state: Tensor) -> None:
        self.last_hidden_state = last_hidden_state

    def __getitem__(self, index: int) -> Tensor | None:
        return self.last_hidden_state if index == 0 else None

    def __getattr__(self, _: str) -> None:
        return None


def _is_last_layer_all(model: PreTrainedModel) -> bool:
    """Return whether the last layer alone turns states into logits.

    Calling it takes a fraction of the time of the whole head.
    """
    layer: Any = model.get_output_embeddings()
    generator = torch.Generator().manual_seed(0)
    size = (TRIAL_ROWS, model.config.get_text_config().hidden_size)
    rows = torch.randn(size, generator=generator).to(model.device, model.dtype)
    # A network is foreign code, which may have no such layer, or raise any error.
    try:
        return torch.equal(layer(rows), _logits_of_head(model, rows))
    except Exception:
        return False


def _logits_of_head(model: PreTrainedModel, rows: Tensor) -> Tensor:
    """Return the logits [T, vocab] of states [T, hidden], by the network's own rules.

    These may cap and scale them.
    """
    head: PreTrainedModel = model.__new__(type(model))
    head.__dict__ = model.__dict__ | {"_modules": dict(model._modules)}
    # Without its layers, on the same weights.
    head._modules[model.base_model_prefix] = _States()
    logits: Tensor = head(inputs_embeds=rows[None], use_cache=False).logits[0]
    return logits
