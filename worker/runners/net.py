"""The interface between `PagedRunner` and a loaded network.

A network returns the states of a flat batch of tokens, and the logits of states.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shared.messages import Depth, HaltState
from worker.engine.depth import DepthsByEffort
from worker.engine.sequence import TokenSequence
from worker.kv.attention import AttentionPlan
from worker.kv.store import KVShape, KVStore


@dataclass(frozen=True)
class Draft:
    """A part of a network that names its next token most of the time.

    `hidden` has the arguments and the result of `Net.hidden`. It computes few tokens behind stored
    ones, reads the keys and values that the whole network has stored, and writes some of a token's.
    `cost` is the share of the whole network that it computes. At most `max_tokens` are drafted
    before the whole network verifies them.
    """

    hidden: Callable[[Tensor, AttentionPlan, KVStore | None], Tensor]
    cost: float
    max_tokens: int


@dataclass(frozen=True)
class Forward:
    """A forward of a batch of T tokens that has computed the first `num_layers` layers.

    `states` [T, ...] are all that the next layers need. The first are those [T, hidden] that the
    last layer has returned.
    """

    states: tuple[Tensor, ...]
    num_layers: int

    @property
    def hidden(self) -> Tensor:
        return self.states[0]

    def split(self, sizes: Sequence[int]) -> "list[Forward]":
        """Return a forward for each of the runs of tokens of these sizes."""
        parts = zip(*(state.split(list(sizes)) for state in self.states), strict=True)
        return [Forward(states, self.num_layers) for states in parts]


def joined(forwards: Sequence[Forward]) -> Forward:
    """Return the forward of the tokens of all, which have computed the same layers."""
    [num_layers] = {forward.num_layers for forward in forwards}
    states = zip(*(forward.states for forward in forwards), strict=True)
    return Forward(tuple(torch.cat(parts) for parts in states), num_layers)


@dataclass(frozen=True)
class Layers:
    """The layers of a network in the order in which they run, each once for each pass.

    There are `count`. `begin` returns a forward of token ids [T] before the first one. `advance`
    returns a forward after as many of the next layers as its last argument says. After the last one
    its states are those that `Net.hidden` returns.
    """

    count: int
    begin: Callable[[Tensor, AttentionPlan], Forward]
    advance: Callable[[Forward, AttentionPlan, KVStore | None, int], Forward]


@dataclass(frozen=True)
class Depths:
    """The depths at which a recurrent network can run.

    `own` is the one at which it runs without being asked. `net_at` returns the same network at
    another depth, which is no effort. It needs no more slots of keys and values than the network
    itself. `net_at` raises InvalidRequest for a depth at which the network cannot run.
    """

    own: Depth
    efforts: DepthsByEffort
    net_at: "Callable[[Depth], Net]"


Halts = Callable[[Tensor, Sequence[TokenSequence]], list[HaltState]]
"""Returns where a network stopped for tokens: their states [B, hidden], and the sequence of each."""


class Net(Protocol):
    """A loaded network with keys and values.

    With `is_prefix` the tokens of a prompt attend to each other in both directions. Such a network
    has `layers`, between which the forward of a prompt can be interrupted; others need none.
    `halts` is None for a network without a q head, `draft` for one that cannot draft, and `depths` for
    one that has one depth.
    """

    kv_shape: KVShape
    is_prefix: bool
    dtype: torch.dtype
    device: torch.device

    @property
    def halts(self) -> Halts | None: ...

    @property
    def draft(self) -> Draft | None: ...

    @property
    def layers(self) -> Layers | None: ...

    @property
    def depths(self) -> Depths | None: ...

    def hidden(self, ids: Tensor, plan: AttentionPlan, store: KVStore | None) -> Tensor:
        """Return the last hidden states [T, hidden] of token ids [T].

        Keys and values go to `store` and come from it as `plan` says. `store` may be None for a
        plan that needs none.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [..., vocab] in float32 of states [..., hidden]."""
