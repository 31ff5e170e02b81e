"""The interface between `PagedRunner` and a loaded network.

A network returns the states of a flat batch of tokens, and the logits of states.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from worker.kv.attention import AttentionPlan
from worker.kv.store import KVShape, KVStore


class Net(Protocol):
    """A loaded network with keys and values.

    With `is_prefix` the tokens of a prompt attend to each other in both directions. `q_head`, if
    not None, returns (q_halt, q_continue) [..., 2] of states [..., hidden].
    """

    kv_shape: KVShape
    is_prefix: bool
    dtype: torch.dtype
    device: torch.device

    @property
    def q_head(self) -> Callable[[Tensor], Tensor] | None: ...

    def hidden(self, ids: Tensor, plan: AttentionPlan, store: KVStore | None) -> Tensor:
        """Return the last hidden states [T, hidden] of token ids [T].

        Keys and values go to `store` and come from it as `plan` says. `store` may be None for a
        plan that needs none.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [..., vocab] in float32 of states [..., hidden]."""
