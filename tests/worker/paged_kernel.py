"""Stands in for what only a GPU has: torch's paged attention, written out row by row, and graphs
that run again.

The kernel refuses what the real one refuses, so that a test on CPU also proves the shapes and types
it is called with.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from worker.kv import flash
from worker.runners import decode_graphs


def naive_varlen_attn_out(
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,
    block_table: Tensor,
    num_splits: int,
) -> Tensor:
    rows, page_size, groups = len(seqused_k), key.shape[1], query.shape[1] // key.shape[2]
    for item, shape in ((cu_seq_q, (rows + 1,)), (cu_seq_k, (rows + 1,)), (seqused_k, (rows,))):
        assert item.dtype == torch.int32 and item.shape == shape and item.is_contiguous()
    assert (
        block_table.dtype == torch.int32
        and block_table.shape[0] == rows
        and block_table.stride(-1) == 1
    )
    assert num_splits == 1 and window_size[1] == 0 and enable_gqa == (groups > 1)
    assert cu_seq_k.diff().tolist() == [block_table.shape[1] * page_size] * rows
    assert (
        int(cu_seq_q[-1]) == len(query)
        and int(cu_seq_q.diff().max()) <= max_q
        and int(seqused_k.max()) <= max_k
    )
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == out.stride(-1) == 1
    for row in range(rows):
        first, end, length = int(cu_seq_q[row]), int(cu_seq_q[row + 1]), int(seqused_k[row])
        places = [(int(block_table[row, at // page_size]), at % page_size) for at in range(length)]
        keys, values = (
            torch.stack([pool[page, at] for page, at in places]).float() for pool in (key, value)
        )
        for index in range(first, end):
            last = length - (end - index)
            start = 0 if window_size[0] < 0 else max(0, last - window_size[0])
            for head in range(query.shape[1]):
                seen = slice(start, last + 1)
                weights = (keys[seen, head // groups] @ query[index, head].float() * scale).softmax(
                    -1
                )
                out[index, head] = (weights @ values[seen, head // groups]).to(out.dtype)
    return out


Forward = Callable[[], tuple[Tensor, ...]]


def running_again(
    _: torch.device,
) -> Callable[[Forward], tuple[Callable[[], None], tuple[Tensor, ...]]]:
    """A capture whose replay runs the forward once more, into the tensors of the first time."""

    def capture(forward: Forward) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        results = forward()

        def replay() -> None:
            for held, new in zip(results, forward(), strict=True):
                held.copy_(new)

        return replay, results

    return capture


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make runners loaded from now on believe that attention in place and graphs are there."""
    monkeypatch.setattr(flash, "choose_kernel", lambda *_: (flash.varlen, ""))
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn_out", naive_varlen_attn_out)
    monkeypatch.setattr(decode_graphs, "CudaCapture", running_again)
