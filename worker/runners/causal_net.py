"""A transformers causal LM as a `Net`: the network's own code, its attention looking into our
pages.

Attention is handed in by a context variable, because transformers calls it deep inside a forward
that is not ours. No mask is made for our attention: an interface name that has no mask function of
its own gets none.
"""

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from worker.kv.attention import AttentionPlan, attend
from worker.kv.store import KVShape, KVStore
from worker.models.q_head import QHead

_INTERFACE = "aios_paged"
_step: ContextVar[tuple[AttentionPlan, KVStore | None]] = ContextVar("aios_step")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Our attention in the shape transformers asks for: [1, heads, T, head_dim] in, [1, T, heads,
    head_dim] out."""
    plan, store = _step.get()
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    slot: Any = module.layer_idx
    query, key, value = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
    return attend(plan, store, slot, query, key, value, scale, sliding_window)[None], None


ALL_ATTENTION_FUNCTIONS.register(_INTERFACE, _attention)


class CausalNet:
    """`q_head` reads the same last states that the logits are made of, where an implant has one."""

    is_prefix = False

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

    def hidden(self, ids: Tensor, plan: AttentionPlan, store: KVStore | None) -> Tensor:
        token = _step.set((plan, store))
        try:
            out = self.model.base_model(
                input_ids=ids[None], position_ids=plan.positions[None], use_cache=False
            )
        finally:
            _step.reset(token)
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        logits: Tensor = _head(self.model)(inputs_embeds=rows, use_cache=False).logits
        return logits.float().view(*hidden.shape[:-1], -1)


class _States(nn.Module):
    """Stands where the layers were: what goes in as embeddings comes out as last hidden states."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> "_Output":
        return _Output(inputs_embeds)

    @property
    def decoder(self) -> "_States":
        """OPT's layers lie one deeper."""
        return self


class _Output:
    """A model output that holds nothing but last hidden states; all its other fields are None."""

    def __init__(self, last_hidden_state: Tensor) -> None:
        self.last_hidden_state = last_hidden_state

    def __getitem__(self, place: int) -> Tensor | None:
        return self.last_hidden_state if place == 0 else None

    def __getattr__(self, _: str) -> None:
        return None


def _head(model: PreTrainedModel) -> PreTrainedModel:
    """The network without its layers, on the same weights: its own rules from states to logits,
    capped or scaled.

    It shares the modules of this moment: once loaded, a network may still get a faster layer for
    its last one.
    """
    head: PreTrainedModel = model.__new__(type(model))
    head.__dict__ = model.__dict__ | {"_modules": dict(model._modules)}
    head._modules[model.base_model_prefix] = _States()
    return head
