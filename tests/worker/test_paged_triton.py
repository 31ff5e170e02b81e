"""Our kernel over pages, compared with the naive one.

Without a CUDA device it is interpreted (conftest.py).
"""

import math

import pytest
import torch

from tests.fixtures.worker.paged_kernel import naive_varlen_attn_out
from worker.kv import flash
from worker.kv.spans import Kernel, paged_span
from worker.kv.store import KVShape, KVStore

pytest.importorskip("triton", reason="Triton is not installed; its wheels are for Linux")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
    """Our kernel attends as the naive one does, with shuffled pages and strided queries.

    The rows have one token, a few, and more than one program takes.
    """
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn_out", naive_varlen_attn_out)
    torch.manual_seed(0)
    lengths = [130, 1, 67, 90, 33]
    counts = [1, 1, 5, 80, 33]
    pages_per_row = math.ceil(max(lengths) / page_size)
    # Two pages belong to no row.
    num_pages = 5 * pages_per_row + 2
    store = KVStore(
        KVShape(1, num_heads=kv_heads, head_dim=head_dim),
        num_pages=num_pages,
        page_size=page_size,
        dtype=torch.float16,
        device=DEVICE,
    )
    for pool in store.pool(0):
        pool.normal_()
    table = torch.randperm(num_pages)[: 5 * pages_per_row].view(5, pages_per_row).tolist()
    # The middle one of three: its rows are not contiguous.
    query = torch.randn(sum(counts), 3, heads, head_dim, dtype=torch.float16, device=DEVICE)[:, 1]

    def attended(kernel: Kernel) -> torch.Tensor:
        keys, values = store.pool(0)
        span = paged_span(
            0, counts, lengths, table, page_size=page_size, kernel=kernel, device=DEVICE
        )
        return kernel(span, keys, values, query, scale=0.2, window=window)

    torch.testing.assert_close(
        attended(flash.in_triton), attended(flash.varlen), atol=4e-3, rtol=4e-3
    )


def test_its_rows_do_not_depend_on_each_other() -> None:
    """A row is bit by bit the same alone and with others (P3)."""
    torch.manual_seed(0)
    store = KVStore(
        KVShape(1, num_heads=2, head_dim=64),
        num_pages=12,
        page_size=16,
        dtype=torch.float16,
        device=DEVICE,
    )
    keys, values = store.pool(0)
    keys.normal_()
    values.normal_()
    query = torch.randn(3, 2, 64, dtype=torch.float16, device=DEVICE)
    table = [[3, 11, 0], [5, 0, 0], [1, 2, 4]]
    kernel = flash.in_triton
    all_rows = paged_span(
        0, [1, 1, 1], [40, 3, 48], table, page_size=16, kernel=kernel, device=DEVICE
    )
    first_row = paged_span(0, [1], [40], table[:1], page_size=16, kernel=kernel, device=DEVICE)

    together = kernel(all_rows, keys, values, query, scale=0.2, window=None)
    alone = kernel(first_row, keys, values, query[:1], scale=0.2, window=None)

    assert torch.equal(together[:1], alone)


def test_it_passes_its_trial() -> None:
    """The trial at load finds no fault in our kernel."""
    shape = KVShape(4, num_heads=2, head_dim=64)
    assert flash.trial(flash.in_triton, DEVICE, torch.float16, shape, page_size=16) is None
