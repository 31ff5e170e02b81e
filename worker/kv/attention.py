"""Attention over a step's flat tokens, in spans that are planned once and used by every layer slot.

A span is a run of rows of equal width. Its keys come from pages of the store, from its own fresh
tokens, or from both. Fresh keys and values are rounded as stored ones are, so that a token sees the
same ones in whatever steps it is computed. Masks are boolean, True where a query sees a key.

On a CPU with compiled kernels all tokens of a step are one `NativeSpan` instead, whose keys are
read where they lie and never gathered. Where `worker.kv.flash` can be used, rows that see stored
tokens only are `PagedSpan`s. Where no bit of a result may depend on how a prompt was cut into
steps, runs of tokens are `TiledSpan`s.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.heartbeat import heartbeat
from worker.kv.paged_native import NativeSpan
from worker.kv.spans import PagedSpan
from worker.kv.store import KVStore
from worker.kv.tiles import TiledSpan


@dataclass(frozen=True)
class Span:
    """Flat tokens `start` to `stop`, as B rows of N tokens: the shape of `positions` [B, N].

    Keys are the first `num_stored` tokens in `pages` [B, P], which lie in the order of their
    positions, then, with `has_fresh`, the span's own tokens. `mask` is [B or 1, 1, N, keys].
    Without a mask a query sees every key or, with `is_causal`, the keys up to its own position.
    """

    start: int
    stop: int
    positions: Tensor
    pages: Tensor | None = None
    num_stored: int = 0
    has_fresh: bool = False
    mask: Tensor | None = None
    is_causal: bool = False
    _biases: dict[int | None, Tensor] = field(default_factory=dict)

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Return the bias [B or 1, 1, N, keys] that is added to the attention scores.

        It is 0 where a query sees a key, else -inf. A key that is `window` or more positions back
        is not seen. Return None where SDPA needs no mask.
        """
        if window is None and self.mask is None and (self.pages is None or not self.is_causal):
            return None

        # All layers with one window use the same bias, so it is computed once in a step.
        if window not in self._biases:
            mask = self._visible(window)
            zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
            self._biases[window] = zeros.masked_fill_(~mask, -torch.inf)
        return self._biases[window]

    def _visible(self, window: int | None) -> Tensor:
        """Return the mask [B or 1, 1, N, keys], with the window in it."""
        if window is None and self.mask is not None:
            return self.mask

        stored = torch.arange(self.num_stored, device=self.positions.device)
        key_positions = stored.expand(len(self.positions), -1)
        if self.has_fresh:
            key_positions = torch.cat((key_positions, self.positions), dim=1)
        distance = (self.positions[:, :, None] - key_positions[:, None, :])[:, None]

        mask = torch.ones_like(distance, dtype=torch.bool)
        if self.is_causal:
            mask = distance >= 0
        if window is not None:
            mask = mask & (distance < window)
        if self.mask is not None:
            mask = mask & self.mask
        return mask


@dataclass(frozen=True)
class AttentionPlan:
    """The plan of a step's attention: T tokens, at `positions` [T].

    The keys and values of the K tokens `kept` [K] go to `rows` [K] of the store. `kept` is None
    where all T tokens are stored, and `rows` is None where no token is. `first_ids` [T] are the
    first ids of the sequences to which the tokens belong.
    """

    positions: Tensor
    first_ids: Tensor
    spans: tuple[Span | PagedSpan | TiledSpan | NativeSpan, ...]
    rows: Tensor | None = None
    kept: Tensor | None = None


def attend(
    plan: AttentionPlan,
    store: KVStore | None,
    slot: int,
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Store the step's new keys and values and return its attention output [T, heads, head_dim].

    `query`, `key` and `value` have the layout of the output; `key` and `value` may have fewer heads
    (grouped queries). `window` is the number of positions that a query sees, its own included; None
    sets no limit.
    """
    heartbeat()

    # Write first: spans read the keys and values of the step's own tokens from the store.
    if plan.rows is not None:
        assert store is not None
        if plan.kept is None:
            store.write(slot, plan.rows, key, value)
        else:
            store.write(slot, plan.rows, key[plan.kept], value[plan.kept])

    parts = []
    for span in plan.spans:
        if isinstance(span, NativeSpan):
            assert store is not None
            out = span.attend(
                store, slot, query=query, key=key, value=value, scale=scale, window=window
            )
        elif isinstance(span, Span):
            out = _attend_span(
                span,
                store,
                slot,
                query=query,
                key=key,
                value=value,
                scale=scale,
                window=window,
            )
        else:
            rows = query[span.start : span.stop]
            out = _attend_stored(span, store, slot, query=rows, scale=scale, window=window)
        parts.append(out)
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts)


def _attend_stored(
    span: PagedSpan | TiledSpan,
    store: KVStore | None,
    slot: int,
    *,
    query: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    assert store is not None
    if isinstance(span, PagedSpan):
        keys, values = store.pool(slot)
        return span.kernel(span, keys, values, query, scale=scale, window=window)
    keys, values = store.read(slot, span.pages, query.dtype)
    return span.attend(query, keys, values, scale=scale, window=window)


def _attend_span(
    span: Span,
    store: KVStore | None,
    slot: int,
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    rows = span.positions.shape
    keys, values = _keys_and_values(span, store, slot, key=key, value=value)
    bias = span.bias(window, query.dtype)
    out = F.scaled_dot_product_attention(
        query[span.start : span.stop].unflatten(0, rows).transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=bias,
        is_causal=span.is_causal and bias is None,
        scale=scale,
        enable_gqa=keys.shape[2] != query.shape[1],
    )
    return out.transpose(1, 2).flatten(0, 1)


def _keys_and_values(
    span: Span, store: KVStore | None, slot: int, *, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the keys and values [B, keys, heads, head_dim] of a span."""
    rows = span.positions.shape
    fresh_keys = key[span.start : span.stop].unflatten(0, rows)
    fresh_values = value[span.start : span.stop].unflatten(0, rows)
    if span.has_fresh and store is not None:
        fresh_keys = store.rounded(fresh_keys)
        fresh_values = store.rounded(fresh_values)
    if span.pages is None:
        return fresh_keys, fresh_values

    assert store is not None
    keys, values = store.read(slot, span.pages, key.dtype)
    stored_keys = keys[:, : span.num_stored]
    stored_values = values[:, : span.num_stored]
    if not span.has_fresh:
        return stored_keys, stored_values
    return (
        torch.cat((stored_keys, fresh_keys), dim=1),
        torch.cat((stored_values, fresh_values), dim=1),
    )


def length_groups(lengths: Sequence[int], *, waste: int = 2) -> list[list[int]]:
    """Group rows of similar length. Return the groups' indices, the shortest row first.

    A group's longest row is at most `waste` times as long as its shortest. Rows of a group are
    padded to the longest, so with a `waste` of 2 at most half of the keys that are read are
    padding.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if groups and lengths[index] <= waste * lengths[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
