"""Our kernel over pages against the naive one. Without a CUDA device it is interpreted
(conftest.py)."""

import pytest
import torch

from tests.fixtures.worker.paged_kernel import naive_varlen_attn_out
from worker.kv import flash
from worker.kv.spans import paged_span
from worker.kv.store import KVShape, KVStore

pytest.importorskip("triton", reason="Triton is not installed; its wheels are for Linux")
PLACE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("window", [None, 1, 70])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 2, 64), (4, 2, 24), (3, 1, 128)])
@pytest.mark.parametrize("page_size", [16, 256])
def test_it_computes_what_the_naive_kernel_does(
    monkeypatch: pytest.MonkeyPatch,
    window: int | None,
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_size: int,
) -> None:
    """Rows of one token, of a few, and of more than one program takes; pages shuffled; strided
    queries."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn_out", naive_varlen_attn_out)
    torch.manual_seed(0)
    lengths = [130, 1, 67, 90, 33]
    counts = [1, 1, 5, 80, 33]
    per_row = -(-max(lengths) // page_size)
    store = KVStore(
        KVShape(1, kv_heads, head_dim), 5 * per_row + 2, page_size, torch.float16, PLACE
    )
    for pool in store.pool(0):
        pool.normal_()
    table = torch.randperm(5 * per_row + 2)[: 5 * per_row].view(5, per_row).tolist()
    query = torch.randn(sum(counts), 3, heads, head_dim, dtype=torch.float16, device=PLACE)[:, 1]
    ours, theirs = (
        kernel(
            paged_span(0, counts, lengths, table, page_size=page_size, kernel=kernel, device=PLACE),
            *store.pool(0),
            query,
            scale=0.2,
            window=window,
        )
        for kernel in (flash.in_triton, flash.varlen)
    )
    torch.testing.assert_close(ours, theirs, atol=4e-3, rtol=4e-3)


def test_its_rows_do_not_depend_on_each_other() -> None:
    """P3: bit by bit the same, alone or with others."""
    torch.manual_seed(0)
    store = KVStore(KVShape(1, 2, 64), 12, 16, torch.float16, PLACE)
    for pool in store.pool(0):
        pool.normal_()
    query = torch.randn(3, 2, 64, dtype=torch.float16, device=PLACE)
    table = [[3, 11, 0], [5, 0, 0], [1, 2, 4]]
    together = paged_span(
        0, [1, 1, 1], [40, 3, 48], table, page_size=16, kernel=flash.in_triton, device=PLACE
    )
    alone = paged_span(0, [1], [40], table[:1], page_size=16, kernel=flash.in_triton, device=PLACE)
    pools = store.pool(0)
    both = (
        flash.in_triton(together, *pools, query, scale=0.2, window=None)[:1],
        flash.in_triton(alone, *pools, query[:1], scale=0.2, window=None),
    )
    assert torch.equal(*both)


def test_it_passes_its_trial() -> None:
    assert flash.trial(flash.in_triton, PLACE, torch.float16, KVShape(4, 2, 64), 16) is None
