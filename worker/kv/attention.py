"""Attention of a step's tokens, laid out flat, as spans that are planned once and used by every
layer slot.

A span is a run of rows of equal width. Its keys come from pages of the store, from its own fresh
tokens, or from both. Masks are boolean, True where a query may look. Where `worker.kv.flash` can be
used, rows that look at stored tokens only are `PagedSpan`s instead, which gather nothing. Where
last bits matter, runs of tokens are `TiledSpan`s.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.heartbeat import heartbeat
from worker.kv.spans import PagedSpan
from worker.kv.store import KVStore
from worker.kv.tiles import TiledSpan


@dataclass(frozen=True)
class Span:
    """Flat tokens `start` to `stop`: the shape of `positions` [B, N] says how many rows.

    Keys are the first `num_stored` places of `pages` [B, P] (position is place), then, with
    `has_fresh`, the span's own tokens. `mask` [B or 1, 1, N, keys]; without one everything is seen,
    or, with `is_causal`, what came before.
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
        """What is added to the scores, 0 or -inf, made once: what a query does not see, or is
        `window` or more back.

        None where SDPA needs no mask for it.
        """
        if window is None and self.mask is None and (self.pages is None or not self.is_causal):
            return None
        if window not in self._biases:
            mask = self._visible(window)
            zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
            self._biases[window] = zeros.masked_fill_(~mask, -torch.inf)
        return self._biases[window]

    def _visible(self, window: int | None) -> Tensor:
        if window is None and self.mask is not None:
            return self.mask
        stored = torch.arange(self.num_stored, device=self.positions.device).expand(
            len(self.positions), -1
        )
        places = torch.cat((stored, self.positions), dim=1) if self.has_fresh else stored
        behind = (self.positions[:, :, None] - places[:, None, :])[:, None]
        mask = behind >= 0 if self.is_causal else torch.ones_like(behind, dtype=torch.bool)
        if window is not None:
            mask = mask & (behind < window)
        return mask if self.mask is None else mask & self.mask


@dataclass(frozen=True)
class AttentionPlan:
    """One step: `positions` [T] of all tokens, the store's `rows` [K] for those that are `kept` [K]
    (None: all T).

    `first_ids` [T]: the id with which each token's row begins.
    """

    positions: Tensor
    first_ids: Tensor
    spans: tuple[Span | PagedSpan | TiledSpan, ...]
    rows: Tensor | None = None
    kept: Tensor | None = None


def attend(
    plan: AttentionPlan,
    store: KVStore | None,
    slot: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Attention output [T, heads, head_dim] for query, key and value of that layout; new keys and
    values are stored.

    `key` and `value` may have fewer heads (grouped queries). `window` is the number of positions a
    query looks back on, itself included.
    """
    heartbeat()
    if plan.rows is not None:
        assert store is not None
        kept = plan.kept
        store.write(
            slot,
            plan.rows,
            key if kept is None else key[kept],
            value if kept is None else value[kept],
        )
    parts = [
        _attend_span(span, store, slot, query, key, value, scale, window)
        if isinstance(span, Span)
        else _attend_stored(span, store, slot, query[span.start : span.stop], scale, window)
        for span in plan.spans
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend_stored(
    span: PagedSpan | TiledSpan,
    store: KVStore | None,
    slot: int,
    query: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    assert store is not None
    if isinstance(span, PagedSpan):
        return span.kernel(span, *store.pool(slot), query, scale, window)
    return span.attend(query, *store.read(slot, span.pages), scale, window)


def _attend_span(
    span: Span,
    store: KVStore | None,
    slot: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    rows = span.positions.shape
    keys, values = _keys_and_values(span, store, slot, key, value)
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
    span: Span, store: KVStore | None, slot: int, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """Keys and values [B, keys, heads, head_dim] that the span looks at."""
    fresh = tuple(
        item[span.start : span.stop].unflatten(0, span.positions.shape) for item in (key, value)
    )
    if span.pages is None:
        return fresh[0], fresh[1]
    assert store is not None
    stored = tuple(item[:, : span.num_stored] for item in store.read(slot, span.pages))
    if not span.has_fresh:
        return stored[0], stored[1]
    return torch.cat((stored[0], fresh[0]), dim=1), torch.cat((stored[1], fresh[1]), dim=1)


def length_groups(lengths: Sequence[int], *, waste: int = 2) -> list[list[int]]:
    """Indices of rows, shortest first, in groups whose longest row is at most `waste` times the
    shortest.

    Rows of a group are padded to the longest: so at most half of what is read is padding.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if groups and lengths[index] <= waste * lengths[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
