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
from worker.models.decoder_layers import DecoderLayer, decoder_layer
from worker.models.joined_layers import LayersStep, layers_step
from worker.models.q_head import QHead
from worker.runners.net import Depths, Draft, Layers

_INTERFACE = "aios_paged"


@dataclass
class _Step:
    """A step of the network.

    `for_kernels` is the step as joined layers that attend like `layer`, with `rope`, run it.
    """

    plan: AttentionPlan
    store: KVStore | None
    rope: tuple[Tensor, Tensor] | None = None
    layer: DecoderLayer | None = None
    for_kernels: LayersStep | None = None

    def for_layer(self, layer: DecoderLayer, rope: tuple[Tensor, Tensor]) -> LayersStep | None:
        """Return the step as a joined layer runs it, None for a step that it cannot compute.

        In most networks that is the same for all layers, and made once.
        """
        is_same = self.layer is not None and self.layer.attends_like(layer)
        if not is_same or self.rope is not rope:
            self.rope = rope
            self.layer = layer
            self.for_kernels = layers_step(
                self.plan,
                self.store,
                rope,
                num_heads=layer.num_heads,
                scale=layer.scale,
                window=layer.window,
            )
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

    def hidden(self, ids: Tensor, plan: AttentionPlan, store: KVStore | None) -> Tensor:
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
        """Let one call of the kernels compute a layer, where they compute all of it.

        Call this when the linear layers have been replaced. Those that are left in such a layer are
        packed. Return the number of these layers.
        """
        num_joined = 0
        for layers in list(self.model.modules()):
            if isinstance(layers, nn.ModuleList):
                for number, module in enumerate(layers):
                    joined = decoder_layer(module)
                    if joined is not None:
                        layers[number] = _JoinedLayer(module, joined)
                        num_joined += 1
        return num_joined

    def inputs(self, ids: Tensor) -> dict[str, Tensor]:
        """Return what the network is given of the tokens [T] of a step."""
        return {"input_ids": ids[None]}

    def logits(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        logits: Tensor = _head(self.model)(inputs_embeds=rows, use_cache=False).logits
        return logits.float().view(*hidden.shape[:-1], -1)


class _JoinedLayer(nn.Module):
    """A layer of a transformers network that is computed by the kernels where a step allows it.

    To the network it is the layer itself.
    """

    def __init__(self, layer: nn.Module, joined: DecoderLayer) -> None:
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
            step = _step.get().for_layer(self._joined, position_embeddings)
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


def _head(model: PreTrainedModel) -> PreTrainedModel:
    """Return the network without its layers, on the same weights.

    It turns states into logits by the network's own rules, such as capping and scaling.
    """
    # Built anew for every call, because `prepare` may replace the last layer after loading.
    head: PreTrainedModel = model.__new__(type(model))
    head.__dict__ = model.__dict__ | {"_modules": dict(model._modules)}
    head._modules[model.base_model_prefix] = _States()
    return head
