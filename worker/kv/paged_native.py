"""Attention over pages on a CPU, by the kernel in C: all tokens of a step at once.

Decoding, drafts, prompts, their parts and continuations are rows of queries. Each query names the
position behind its last key, so prompts whose tokens see each other in both directions are rows
like all others. Keys are read where they lie: in pages or, for tokens that are not stored, among
the step's own. No bit of a result depends on what else a step computes, or on how a sequence was
cut into steps.
"""

from collections.abc import Sequence
from ctypes import byref
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worker.kv.store import KVShape, KVStore
from worker.native.layers import NativeAttention
from worker.native.operators import ELEMENT_TYPES, kernels_for, queries_at_once

_LARGEST_HEAD = 256
_TRIAL_KEYS = 75
_TRIAL_QUERIES = 13
_TRIAL_TOLERANCE = 0.03


@dataclass(frozen=True)
class NativeSpan:
    """All n tokens of a step, as rows of queries. Tensors are int32.

    `blocks` [blocks, 3] are the queries that read keys together: a row, its first query and their
    number. `positions` [n] are those of the queries, and a query sees the tokens of its row below
    its entry in `ends` [n]. The keys of a row's first `num_stored` [rows] tokens lie in the pages
    `block_table` [rows, P]; entries behind its last page may be any page. Those of further tokens
    are the step's own, from the flat token `fresh_starts` [rows] on. `has_fresh` tells whether
    there are any.
    """

    blocks: Tensor
    positions: Tensor
    ends: Tensor
    block_table: Tensor
    num_stored: Tensor
    fresh_starts: Tensor
    has_fresh: bool

    def attend(
        self,
        store: KVStore,
        slot: int,
        *,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Return the output [n, heads, head_dim] of `query`, which has the same shape.

        `key` and `value` [n, kv_heads, head_dim] are the tokens' own. With a `window` a query sees
        that many positions, its own included.
        """
        kernels = kernels_for(query, query.shape[2])
        assert kernels is not None
        num_queries, num_heads, head_dim = query.shape
        if query.stride()[1:] != (head_dim, 1):
            query = query.contiguous()
        out = query.new_empty(num_queries, num_heads, head_dim)
        attention = self.described(
            store,
            num_heads=num_heads,
            head_dim=head_dim,
            dtype=query.dtype,
            scale=scale,
            window=window,
        )
        attention.out = out.data_ptr()
        attention.query = query.data_ptr()
        attention.query_stride = query.stride(0)
        keys, values = store.pool(slot)
        attention.keys = keys.data_ptr()
        attention.values = values.data_ptr()
        if self.has_fresh:
            fresh_keys = store.stored(key)
            fresh_values = store.stored(value)
            attention.fresh_keys = fresh_keys.data_ptr()
            attention.fresh_values = fresh_values.data_ptr()
        kernels.paged_attention(byref(attention), len(self.blocks), torch.get_num_threads())
        return out

    def described(
        self,
        store: KVStore,
        *,
        num_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        scale: float,
        window: int | None,
    ) -> NativeAttention:
        """Return the kernel's arguments for this span and queries of these sizes and this dtype.

        Those that differ from slot to slot are missing: queries, keys, values and the result.
        """
        _, _, page_size, kv_heads, _ = store.keys.shape
        return NativeAttention(
            block_table=self.block_table.data_ptr(),
            num_stored=self.num_stored.data_ptr(),
            fresh_starts=self.fresh_starts.data_ptr(),
            blocks=self.blocks.data_ptr(),
            positions=self.positions.data_ptr(),
            ends=self.ends.data_ptr(),
            table_width=self.block_table.shape[1],
            kv_heads=kv_heads,
            group=num_heads // kv_heads,
            head_dim=head_dim,
            page_size=page_size,
            window=window or 0,
            scale=scale,
            type=ELEMENT_TYPES[dtype],
            kv_type=ELEMENT_TYPES[store.keys.dtype],
        )


@dataclass
class NativeRows:
    """Rows that are collected one by one for a span.

    `at_once` is the most queries of a block (`Library.queries_at_once`).
    """

    at_once: int
    blocks: list[tuple[int, int, int]] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    pages: list[Sequence[int]] = field(default_factory=list)
    num_stored: list[int] = field(default_factory=list)
    fresh_starts: list[int] = field(default_factory=list)
    has_fresh: bool = False

    def add(
        self,
        pages: Sequence[int],
        positions: Sequence[int],
        ends: Sequence[int],
        num_stored: int | None = None,
        fresh_start: int = 0,
    ) -> None:
        """Add the tokens at `positions`, which see the tokens of their row below their `ends`.

        Of these the first `num_stored` lie in `pages`, or all if it is None. The others are flat
        tokens from `fresh_start` on.
        """
        row = len(self.pages)
        first = len(self.positions)
        for start in range(0, len(positions), self.at_once):
            self.blocks.append((row, first + start, min(self.at_once, len(positions) - start)))
        self.positions += positions
        self.ends += ends
        self.pages.append(pages)
        if num_stored is None:
            num_stored = max(ends)
        else:
            self.has_fresh = True
        self.num_stored.append(num_stored)
        self.fresh_starts.append(fresh_start)

    def span(self) -> NativeSpan:
        width = max(len(pages) for pages in self.pages)
        table = [[*pages, *[0] * (width - len(pages))] for pages in self.pages]
        return NativeSpan(
            blocks=_ints(self.blocks),
            positions=_ints(self.positions),
            ends=_ints(self.ends),
            block_table=_ints(table),
            num_stored=_ints(self.num_stored),
            fresh_starts=_ints(self.fresh_starts),
            has_fresh=self.has_fresh,
        )


def new_rows() -> NativeRows:
    """Return the rows of a step that the kernel computes, which must exist."""
    return NativeRows(queries_at_once())


def obstacle(dtype: torch.dtype, shape: KVShape, page_size: int, kv_dtype: torch.dtype) -> str:
    """Return why the kernel cannot be used, "" if it can.

    `dtype` is that of queries; `shape`, `page_size` (in tokens) and `kv_dtype` are the store's. A
    small attention over shuffled pages is compared with SDPA over the same keys.
    """
    cpu = torch.device("cpu")
    kernels = kernels_for(torch.empty(0, dtype=dtype), shape.head_dim)
    if kernels is None:
        return f"no kernel for {dtype} heads of {shape.head_dim} elements on this processor"
    if shape.head_dim > _LARGEST_HEAD:
        return f"the kernel has room for {_LARGEST_HEAD} elements, not {shape.head_dim}"

    num_pages = -(-_TRIAL_KEYS // page_size)
    one_slot = KVShape(1, num_heads=shape.num_heads, head_dim=shape.head_dim)
    store = KVStore(one_slot, num_pages, page_size=page_size, dtype=kv_dtype, device=cpu)
    pages = torch.randperm(num_pages)
    size = (2, _TRIAL_KEYS, shape.num_heads, shape.head_dim)
    key, value = torch.randn(size, dtype=dtype)
    places = torch.arange(_TRIAL_KEYS)
    places = pages[places // page_size] * page_size + places % page_size
    store.write(0, places, key, value)

    # All but the last few tokens are stored, and the queries are the last ones.
    rows = new_rows()
    first = _TRIAL_KEYS - _TRIAL_QUERIES
    num_stored = _TRIAL_KEYS - 3
    positions = range(first, _TRIAL_KEYS)
    ends = range(first + 1, _TRIAL_KEYS + 1)
    rows.add(pages.tolist(), positions, ends, num_stored, _TRIAL_QUERIES - 3)
    query = torch.randn(_TRIAL_QUERIES, shape.num_heads, shape.head_dim, dtype=dtype)
    scale = shape.head_dim**-0.5
    out = rows.span().attend(
        store, 0, query=query, key=key[first:], value=value[first:], scale=scale, window=None
    )
    mask = torch.arange(_TRIAL_KEYS) < torch.tensor(ends)[:, None]
    expected = F.scaled_dot_product_attention(
        query.transpose(0, 1),
        store.rounded(key).transpose(0, 1),
        store.rounded(value).transpose(0, 1),
        attn_mask=mask,
        scale=scale,
    )
    largest_error = (out - expected.transpose(0, 1)).abs().max().item()
    # Not `>`: this way a NaN, for which no comparison is true, is a fault, too.
    if not largest_error <= _TRIAL_TOLERANCE:
        return f"the kernel is off by {largest_error:.3g} in its trial"
    return ""


def _ints(values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
    # Of so few numbers `torch.tensor` makes a tensor three times as slowly.
    return torch.from_numpy(np.array(values, dtype=np.int32))
