"""The kernels in C compute what torch computes, each row alone, with every set of instructions."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.messages import Generate, Sampling
from tests.fixtures.logged import fields_of
from tests.fixtures.tiny_hrm_text import PROMPTS, write_tiny
from tests.fixtures.worker.kernels import computing_with
from tests.fixtures.worker.options import options_for
from tests.fixtures.worker.stepping import generate_all
from worker.engine.runner import RunnerOptions
from worker.engine.sampler import choose
from worker.host.fingerprint import fingerprint
from worker.kv.paged_native import new_rows, obstacle
from worker.kv.store import KVShape, KVStore
from worker.models.hrm_text import rope_table
from worker.native import library as native
from worker.native import operators
from worker.native.quantized import quantized
from worker.runners.paged import PagedRunner
from worker.runners.registry import load_runner

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]
# Of what is computed, and of stored keys and values.
STORED = [
    *[(dtype, dtype) for dtype in DTYPES],
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.int8),
    (torch.bfloat16, torch.int8),
]


@pytest.fixture(autouse=True, params=native.INSTRUCTIONS)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute with the kernels for one set of instructions."""
    with computing_with(request.param, monkeypatch):
        yield


def check(computed: Tensor, expected: Tensor) -> None:
    """Compare with a result in fp64, to the precision of the computed one."""
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 2**-8}[computed.dtype]
    torch.testing.assert_close(
        computed.double(), expected, atol=tolerance / 4, rtol=tolerance, check_dtype=False
    )


def wide(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return rows that are far apart in memory, of numbers of many sizes."""
    x = torch.randn(rows, 2 * width) * torch.logspace(-3, 1, 2 * width)
    return x.to(dtype)[:, :width]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 300])
def test_norms_and_gates_equal_torch(dtype: torch.dtype, rows: int) -> None:
    x = wide(rows, 192, dtype)
    gate = wide(rows, 192, dtype) * 4

    exact = x.double()
    check(operators.rms_norm(x, 1e-5), exact * (exact.square().mean(1, True) + 1e-5).rsqrt())
    check(operators.silu_gated(gate, x), F.silu(gate.double()) * exact)
    check(operators.sigmoid_gated(gate, x), torch.sigmoid(gate.double()) * exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gates_are_right_at_their_ends(dtype: torch.dtype) -> None:
    """Gates of any size open or close, and what is not a number stays so."""
    gate = torch.tensor([-1e30, -200.0, -88.0, -20.0, 0.0, 20.0, 88.0, 200.0, 1e30], dtype=dtype)
    gate = gate.repeat_interleave(16)[None]
    ones = torch.ones_like(gate)
    check(operators.sigmoid_gated(gate, ones), torch.sigmoid(gate.double()))
    check(operators.silu_gated(gate, ones), F.silu(gate.double()))

    broken = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0], dtype=dtype)
    broken = broken.repeat_interleave(16)[None]
    for computed in (
        operators.silu_gated(broken, torch.ones_like(broken)),
        operators.sigmoid_gated(torch.ones_like(broken), broken),
    ):
        assert computed[0, :16].isnan().all()
        assert computed[0, 48:].isfinite().all()
    assert operators.rms_norm(broken, 1e-6)[0, :16].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 9, 40])
def test_heads_are_rotated_as_torch_does(dtype: torch.dtype, rows: int) -> None:
    parts = torch.randn(rows, 4, 3, 64).to(dtype)
    cos, sin = (table[5 : 5 + rows].to(dtype) for table in rope_table(64, 64, 10000.0))
    query_and_key = parts[:, 1:3]
    first, second = query_and_key.double().chunk(2, dim=-1)
    turned = torch.cat((second, first), dim=-1)
    expected = query_and_key.double() * cos.double() + turned * sin.double()
    before = parts.clone()

    unsigned = torch.cat((-sin[..., :32], sin[..., 32:]), dim=-1)
    one_part = parts[:, 1:2].clone()
    check(operators.rotate(one_part, cos, unsigned, is_signed=False), expected[:, :1])
    check(operators.rotate(query_and_key, cos, sin), expected)
    assert parts[:, 0].equal(before[:, 0])
    assert parts[:, 3].equal(before[:, 3])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_written_where_they_belong(dtype: torch.dtype) -> None:
    shape = KVShape(3, num_heads=2, head_dim=16)
    store = KVStore(shape, num_pages=4, page_size=8, dtype=dtype, device=CPU)
    key, value = torch.randn(2, 5, 4, 2, 16).to(dtype)[:, :, 1]
    rows = torch.tensor([31, 0, 8, 7, 16])

    store.write(1, rows, key, value)

    for pool, written in ((store.keys, key), (store.values, value)):
        expected = torch.zeros(3, 32, 2, 16, dtype=dtype)
        expected[1, rows] = written
        assert pool.flatten(1, 2).equal(expected)


def heads_of_every_kind(dtype: torch.dtype) -> Tensor:
    """Return heads [40, 1, 64] of any size, of zeros, between two numbers, and not finite."""
    heads = torch.randn(40, 1, 64) * torch.logspace(-44, 38, 40)[:, None, None]
    heads[0] = 0.0
    heads[1, 0, :4] = torch.tensor([127.0, 0.5, 1.5, -2.5])
    heads[1, 0, 4:] = torch.arange(60) - 30.5
    heads[2, 0, 5] = torch.nan
    heads[3, 0, 6] = torch.inf
    heads[4, 0, 63] = -torch.inf
    heads[5] = 1e-45  # so small that a 127th of it is none
    heads[6] = 3e38
    return heads.to(dtype)


@pytest.mark.parametrize(("dtype", "kv_dtype"), STORED[2:])
def test_rows_are_rounded_as_they_are_by_torch(
    dtype: torch.dtype, kv_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every bit is the same, so that fresh keys, which torch rounds, are those that are stored."""
    heads = heads_of_every_kind(dtype)
    rows = torch.randperm(40)
    stores = []
    for _ in range(2):
        store = KVStore(KVShape(2, num_heads=1, head_dim=64), 5, 8, dtype=kv_dtype, device=CPU)
        store.write(1, rows, heads, -heads)
        stores.append(store)
        monkeypatch.setattr(operators, "library", lambda: None)

    for store in stores:
        pages = torch.arange(5)[None]
        for read, given in zip(store.read(1, pages, dtype), (heads, -heads), strict=True):
            torch.testing.assert_close(
                read[0, rows], store.rounded(given), rtol=0.0, atol=0.0, equal_nan=True
            )

    by_kernel, by_torch = stores
    # There are many kinds of NaN, so their bits are left out.
    sound = rows[heads.isfinite().all(-1)[:, 0]]
    for one, other in ((by_kernel.keys, by_torch.keys), (by_kernel.values, by_torch.values)):
        assert one[1].flatten(0, 1)[sound].equal(other[1].flatten(0, 1)[sound])
        assert one[0].count_nonzero() == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_is_the_nearest_of_255_numbers(dtype: torch.dtype) -> None:
    """A head's largest magnitude becomes 127. What is not finite is never read as a number."""
    heads = heads_of_every_kind(dtype)
    store = KVStore(KVShape(1, num_heads=1, head_dim=64), 5, 8, dtype=torch.int8, device=CPU)
    store.write(0, torch.arange(40), heads, heads)
    read = store.read(0, torch.arange(5)[None], torch.float32)[0][0]

    exact = heads.double()
    scale = exact.abs().amax(-1, keepdim=True) / 127
    is_sound = heads.isfinite().all(-1, keepdim=True).expand_as(heads)
    # Half a number, what fp32 rounds of it, and what is below its smallest normal number.
    allowed = 0.5 * scale * (1 + 1e-5) + torch.finfo(torch.float32).tiny
    assert ((read - exact).abs() <= allowed)[is_sound].all()
    assert is_sound.sum() == 37 * 64
    assert read[~is_sound].isnan().all()
    assert read[0].count_nonzero() == 0
    if dtype == torch.float32:
        assert read[1, 0, :4].tolist() == [127.0, 0.0, 2.0, -2.0]

    store.clear(torch.arange(2, 5))
    assert store.read(0, torch.tensor([[0]]), dtype)[0][0, 2:5].count_nonzero() == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 2), (64, 96), (130, 96), (523, 260)])
def test_products_are_products(dtype: torch.dtype, outputs: int, inputs: int) -> None:
    weight = torch.randn(outputs, inputs).to(dtype) * inputs**-0.5
    bias = torch.randn(outputs).to(dtype)
    panels = operators.packed(weight)
    whole_bias = F.pad(bias.float(), (0, panels.shape[0] * panels.shape[2] - outputs))

    for rows in (0, 1, 2, 5, 6, 7, 13, 64, 100):
        x = wide(rows, inputs, dtype)
        check(
            operators.linear(x, panels, whole_bias, outputs),
            x.double() @ weight.double().t() + bias.double(),
        )
        check(operators.linear(x, panels, None, outputs), x.double() @ weight.double().t())


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_bit_of_a_product_depends_on_other_rows_or_threads(dtype: torch.dtype) -> None:
    panels = operators.packed(torch.randn(300, 256).to(dtype))
    x = torch.randn(100, 256).to(dtype)
    x[50] = torch.nan
    expected = torch.cat([operators.linear(row[None], panels, None, 300) for row in x])
    assert expected[50].isnan().all()
    assert expected[51].isfinite().all()

    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for rows in (0, 1, 2, 5, 6, 7, 8, 16, 17, 100):
            computed = operators.linear(x[:rows], panels, None, 300)
            assert computed[:50].equal(expected[:rows][:50])
    for threads in (1, 2):
        torch.set_num_threads(threads)
        nothing = operators.rms_norm(x[:0, :256], 1e-6)
        assert nothing.shape == (0, 256)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 2), (64, 96), (130, 96), (523, 261)])
def test_products_in_int8_are_sums_of_whole_numbers(
    dtype: torch.dtype, outputs: int, inputs: int
) -> None:
    weight = torch.randn(outputs, inputs) * torch.logspace(-2, 2, outputs)[:, None]
    bias = torch.randn(outputs)
    panels = operators.rounded(weight)
    whole_bias = F.pad(bias, (0, len(panels.scales) - outputs))
    kernels = operators.library()
    assert kernels is not None
    weight_scales = weight.abs().amax(1).double() / kernels.weight_peak
    weight_steps = (weight / weight_scales[:, None]).round()

    for rows in (0, 1, 2, 5, 6, 7, 13, 64, 100):
        x = wide(rows, inputs, dtype)
        peaks = x.float().abs().amax(1, keepdim=True)
        # A product of two numbers in fp32 is exact in fp64, so it is rounded as the kernel does.
        x_steps = (x.double() * torch.tensor(127.0).div(peaks).double()).round()
        sums = x_steps @ weight_steps.double().t()
        check(operators.byte_linear(x, panels, None), sums * (peaks.double() / 127) * weight_scales)

        without_bias = operators.byte_linear(x.float(), panels, None)
        check(operators.byte_linear(x, panels, whole_bias), without_bias.double() + bias)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_bit_of_an_int8_product_depends_on_other_rows_or_threads(dtype: torch.dtype) -> None:
    panels = operators.rounded(torch.randn(300, 250))
    x = torch.randn(100, 250).to(dtype)
    x[50] = torch.nan
    expected = torch.cat([operators.byte_linear(row[None], panels, None) for row in x])
    assert expected[50].isnan().all()
    assert expected[51].isfinite().all()

    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for rows in (0, 1, 2, 5, 6, 7, 8, 16, 17, 100):
            computed = operators.byte_linear(x[:rows], panels, None)
            assert computed[:50].equal(expected[:rows][:50])


SAMPLINGS = {
    "greedy": [Sampling(1, seed=0, temperature=0.0)],
    "temperature": [Sampling(1, seed=0, temperature=heat) for heat in (1e-6, 0.3, 1.0, 5.0, 100.0)],
    "top_k": [Sampling(1, seed=0, top_k=count) for count in (1, 2, 50, 5000, 9999)],
    "top_p": [Sampling(1, seed=0, top_p=share) for share in (1e-9, 0.1, 0.5, 0.9, 0.999)],
    "min_p": [Sampling(1, seed=0, min_p=share) for share in (0.001, 0.2, 1.0)],
    "all": [
        Sampling(1, seed=0, temperature=heat, top_k=count, top_p=share, min_p=floor)
        for heat in (0.5, 3.0)
        for count in (3, 400)
        for share in (0.4, 0.95)
        for floor in (0.0, 0.01)
    ],
}


@pytest.mark.parametrize("kind", SAMPLINGS)
@pytest.mark.parametrize("vocab_size", [1, 7, 260, 5003])
def test_tokens_are_those_that_torch_chooses(
    kind: str, vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    samplings = []
    for seed in range(60):
        sampling = SAMPLINGS[kind][seed % len(SAMPLINGS[kind])]
        samplings.append(msgspec.structs.replace(sampling, seed=seed * 7919))
    positions = list(range(0, 600, 10))
    flat = torch.zeros(60, vocab_size)
    withheld = torch.randn(60, vocab_size)
    withheld[:, ::3] = -torch.inf
    withheld[:, -1] = 0.0
    # Of logits that were rounded to bf16, many are equal.
    rounded = (3 * torch.randn(60, vocab_size)).bfloat16().float()
    for logits in (torch.randn(60, vocab_size) * 4, rounded, withheld, flat, flat + 1e4):
        chosen = choose(logits, samplings, positions)
        with monkeypatch.context() as patches:
            patches.setattr(operators, "library", lambda: None)
            assert chosen == choose(logits, samplings, positions)


def test_the_largest_of_many_draws_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # A kernel that skips tokens by too low a bound on their noise would miss some of these.
    logits = 0.5 * torch.randn(2000, 1000)
    samplings = [Sampling(1, seed=seed) for seed in range(2000)]
    positions = list(range(2000))
    chosen = choose(logits, samplings, positions)
    monkeypatch.setattr(operators, "library", lambda: None)
    assert chosen == choose(logits, samplings, positions)


def test_each_row_is_told_whether_it_is_finite() -> None:
    for width in (1, 16, 37, 260):
        logits = torch.randn(5, width) * 1e30
        logits[1, -1] = torch.nan
        logits[2, 0] = torch.inf
        logits[3, width // 2] = -torch.inf
        assert operators.all_finite(logits).tolist() == [True, False, False, False, True]


def test_tensors_of_two_dtypes_are_refused() -> None:
    """Nothing is read or written beyond a tensor of the smaller dtype."""
    half = torch.zeros(2, 64, dtype=torch.bfloat16)
    whole = torch.zeros(2, 64)
    panels = operators.packed(torch.zeros(64, 64))
    heads = torch.zeros(2, 2, 2, 32)
    cos = torch.zeros(2, 1, 1, 32, dtype=torch.bfloat16)
    store = KVStore(KVShape(1, num_heads=2, head_dim=32), 1, 4, dtype=torch.float32, device=CPU)
    rows = torch.tensor([0, 1])
    for call in (
        lambda: operators.silu_gated(half, whole),
        lambda: operators.linear(half, panels, None, 64),
        lambda: operators.linear(whole[:, :32], panels, None, 64),
        lambda: operators.byte_linear(whole[:, :32], operators.rounded(whole), None),
        lambda: operators.rotate(heads, cos, cos),
        lambda: store.write(0, rows, heads[:, 0].bfloat16(), heads[:, 0]),
        lambda: store.write(0, rows, heads[:, 0, :, :16], heads[:, 0, :, :16]),
    ):
        with pytest.raises(RuntimeError):
            call()


LENGTHS = (1, 16, 17, 170, 90, 33, 75, 50)
QUERIES = (1, 1, 3, 1, 8, 33, 75, 41)
PREFIXES = (6, 7)
"""The rows whose queries see all of their row."""


def stored_as(heads: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.int8:
        return quantized(heads)
    return heads.to(dtype)


def exactly(stored: Tensor) -> Tensor:
    """Return what stored heads stand for, in fp64."""
    if stored.dtype != torch.int8:
        return stored.double()
    numbers = stored[..., :-4]
    scale = stored[..., -4:].contiguous().view(torch.float32)
    return numbers.double() * scale.double()


class Rows:
    """Rows of `LENGTHS` tokens with pages all over a pool. What no row may see is not a number."""

    def __init__(
        self, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, kv_dtype: torch.dtype
    ) -> None:
        self.page_size = 16
        width = -(-max(LENGTHS) // self.page_size)
        num_pages = width * len(LENGTHS)
        self.pages = torch.randperm(num_pages).view(len(LENGTHS), width)
        pool = torch.full((2, num_pages, self.page_size, kv_heads, head_dim), torch.nan)
        self.kv_heads = kv_heads
        self.rows: list[Tensor] = []
        for pages, length in zip(self.pages, LENGTHS, strict=True):
            row = torch.randn(2, length, kv_heads, head_dim)
            for position in range(length):
                page = pages[position // self.page_size]
                pool[:, page, position % self.page_size] = row[:, position]
            self.rows.append(exactly(stored_as(row, kv_dtype)))
        shape = KVShape(1, num_heads=kv_heads, head_dim=head_dim)
        self.store = KVStore(shape, num_pages, self.page_size, dtype=kv_dtype, device=CPU)
        self.store.keys[0], self.store.values[0] = stored_as(pool, kv_dtype)
        self.query = torch.randn(sum(QUERIES), 2, heads, head_dim).to(dtype)[:, 1]
        self.scale = head_dim**-0.5

    def attend(self, chosen: Sequence[int], window: int | None) -> list[Tensor]:
        """Return the outputs [queries, heads, head_dim] of some rows, computed in one call."""
        queries = self.query.split(list(QUERIES))
        given = new_rows()
        for row in chosen:
            positions = range(LENGTHS[row] - QUERIES[row], LENGTHS[row])
            ends = [self.end(row, position) for position in positions]
            given.add(self.pages[row].tolist(), positions, ends)
        query = torch.cat([queries[row] for row in chosen])
        own = query[:, : self.kv_heads]
        out = given.span().attend(
            self.store, 0, query=query, key=own, value=own, scale=self.scale, window=window
        )
        return list(out.split([QUERIES[row] for row in chosen]))

    def end(self, row: int, position: int) -> int:
        """Return the end of what a query sees: all of its row, for the rows of prefixes."""
        return LENGTHS[row] if row in PREFIXES else position + 1

    def expected(self, window: int | None) -> Iterator[Tensor]:
        """Yield the output of each row by its definition, in fp64."""
        for number, query in enumerate(self.query.double().split(list(QUERIES))):
            row = self.rows[number]
            group = query.shape[1] // row.shape[2]
            keys, values = row.repeat_interleave(group, 2)
            positions = torch.arange(len(keys))
            own = positions[-len(query) :]
            distance = own[:, None] - positions
            ends = torch.tensor([self.end(number, position) for position in own.tolist()])
            is_seen = positions < ends[:, None]
            if window is not None:
                is_seen &= distance < window
            scores = torch.einsum("qhd,khd->hqk", query, keys) * self.scale
            weights = scores.masked_fill(~is_seen, -torch.inf).softmax(-1)
            yield torch.einsum("hqk,khd->qhd", weights, values)


@pytest.mark.parametrize(("dtype", "kv_dtype"), STORED)
@pytest.mark.parametrize("window", [None, 1, 7, 64])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [(8, 8, 64), (9, 3, 64), (4, 2, 128), (4, 4, 32), (6, 1, 16), (2, 2, 256)],
)
def test_attention_over_pages_is_attention(
    heads: int,
    kv_heads: int,
    head_dim: int,
    window: int | None,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
) -> None:
    rows = Rows(heads, kv_heads, head_dim, dtype, kv_dtype)
    outputs = rows.attend(range(len(LENGTHS)), window)
    for computed, expected in zip(outputs, rows.expected(window), strict=True):
        check(computed, expected)


@pytest.mark.parametrize(("dtype", "kv_dtype"), STORED)
@pytest.mark.parametrize("window", [None, 6, 30])
@pytest.mark.parametrize("page_size", [4, 16])
def test_no_bit_depends_on_what_is_stored_or_computed_together(
    page_size: int, window: int | None, dtype: torch.dtype, kv_dtype: torch.dtype
) -> None:
    """Queries are the same in one block, one by one, and with their keys stored or fresh."""
    heads, kv_heads, head_dim, length = 6, 2, 32, 61
    store = KVStore(KVShape(1, kv_heads, head_dim), 16, page_size, dtype=kv_dtype, device=CPU)
    pages = torch.randperm(16).tolist()
    query = torch.randn(length, heads, head_dim).to(dtype)
    key, value = torch.randn(2, length, kv_heads, head_dim).to(dtype)
    places = [pages[p // page_size] * page_size + p % page_size for p in range(length)]
    store.write(0, torch.tensor(places), key, value)

    def attended(first: int, end: int, num_stored: int | None) -> Tensor:
        positions = range(first, end)
        ends = range(first + 1, end + 1)
        rows = new_rows()
        start = 0 if num_stored is None else num_stored - first
        rows.add(pages, positions, list(ends), num_stored, start)
        return rows.span().attend(
            store,
            0,
            query=query[first:end],
            key=key[first:end],
            value=value[first:end],
            scale=0.3,
            window=window,
        )

    whole = attended(0, length, None)
    one_by_one = torch.cat([attended(place, place + 1, None) for place in range(length)])
    assert whole.equal(one_by_one)
    for num_stored in (20, 37):
        # The store has other keys where fresh ones are expected.
        other = store.values.clone(), store.keys.clone()
        store.clear(torch.tensor(places[num_stored:]))
        assert whole[20:].equal(attended(20, length, num_stored))
        store.values.copy_(other[0])
        store.keys.copy_(other[1])


@pytest.mark.parametrize(("dtype", "kv_dtype"), STORED)
def test_no_bit_depends_on_other_rows_or_threads(dtype: torch.dtype, kv_dtype: torch.dtype) -> None:
    rows = Rows(8, 4, 64, dtype, kv_dtype)
    x = wide(300, 256, dtype)

    def alone_and_together(threads: int) -> list[list[Tensor]]:
        torch.set_num_threads(threads)
        alone = [rows.attend([row], None)[0] for row in range(len(LENGTHS))]
        together = rows.attend(range(len(LENGTHS)), None)
        backwards = rows.attend(range(len(LENGTHS))[::-1], None)[::-1]
        norms = [operators.rms_norm(x, 1e-6), operators.silu_gated(x, x)]
        parts = [operators.rms_norm(x[5:6], 1e-6), operators.silu_gated(x[5:6], x[5:6])]
        assert [norm[5:6].equal(part) for norm, part in zip(norms, parts, strict=True)] == [
            True
        ] * 2
        return [[*alone, *norms], [*together, *norms], [*backwards, *norms]]

    first, *others = [*alone_and_together(1), *alone_and_together(2), *alone_and_together(3)]
    for other in others:
        for one, same in zip(first, other, strict=True):
            assert one.equal(same)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("is_key", [True, False])
@pytest.mark.parametrize(("dtype", "kv_dtype"), STORED)
def test_what_is_not_finite_is_seen(
    dtype: torch.dtype, kv_dtype: torch.dtype, is_key: bool, broken: float
) -> None:
    """A head with a broken key or value has a broken result, and the head beside it a sound one."""
    store = KVStore(KVShape(1, num_heads=2, head_dim=32), 1, 16, dtype=kv_dtype, device=CPU)
    pair = torch.randn(2, 9, 2, 32).to(dtype)
    pair[0 if is_key else 1, 4, 1, 7] = broken
    store.write(0, torch.arange(9), *pair)
    rows = new_rows()
    rows.add([0], [8], [9])
    query = torch.rand(1, 2, 32).to(dtype)

    out = rows.span().attend(store, 0, query=query, key=query, value=query, scale=0.2, window=None)

    assert out[0, 0].isfinite().all()
    assert not out[0, 1].isfinite().all()


def test_it_is_chosen_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(dtype: torch.dtype, head_dim: int, kv_dtype: torch.dtype | None = None) -> str:
        shape = KVShape(1, num_heads=2, head_dim=head_dim)
        return obstacle(dtype, shape, 16, kv_dtype or dtype)

    for dtype, kv_dtype in STORED:
        assert reason(dtype, 64, kv_dtype) == ""
    for dtype, head_dim in ((torch.float16, 64), (torch.float32, 20), (torch.float32, 512)):
        assert str(head_dim) in reason(dtype, head_dim) or "256" in reason(dtype, head_dim)

    monkeypatch.setattr(operators, "library", lambda: None)
    assert "no kernel" in reason(torch.float32, 64)


def load_tiny(path: Path, kv_dtype: str = "auto") -> PagedRunner:
    options = options_for(
        path, "hrm-text", max_batch=4, page_size=16, context_window=64, kv_dtype=kv_dtype
    )
    runner = load_runner("hrm-text", options)
    assert isinstance(runner, PagedRunner)
    return runner


@pytest.mark.parametrize("kv_dtype", ["auto", "bfloat16", "int8"])
def test_a_model_answers_the_same_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kv_dtype: str
) -> None:
    write_tiny(tmp_path)
    tasks = []
    for number, prompt in enumerate(PROMPTS):
        tasks.append(Generate(prompt, Sampling(max_tokens=12, seed=number, temperature=0.5)))

    with_kernels = load_tiny(tmp_path, kv_dtype)
    assert with_kernels.is_native
    answers = generate_all(with_kernels, tasks)
    monkeypatch.setattr(operators, "library", lambda: None)
    plain = load_tiny(tmp_path, kv_dtype)
    assert not plain.is_native
    assert answers == generate_all(plain, tasks)


def test_int8_jobs_stay_where_their_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded activations may make another token of another last bit, so the fingerprint differs."""

    def prints(quantize: str) -> set[str]:
        options = RunnerOptions("net", quantize=quantize)
        found = {fingerprint("hrm-text", options)}
        with monkeypatch.context() as patches:
            patches.setattr(native, "library", lambda: None)
            found.add(fingerprint("hrm-text", options))
            patches.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
            found.add(fingerprint("hrm-text", options))
        return found

    assert len(prints("int8")) == 3
    assert len(prints("none")) == 1


def test_without_a_compiled_file_there_is_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    assert native.library.__wrapped__() is None
    for name in native.INSTRUCTIONS:
        (tmp_path / f"kernels_{name}.so").write_bytes(b"of another platform")
    assert native.library.__wrapped__() is None


def test_kernels_of_other_sources_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After an update of a checkout, what was compiled before may take other parameters."""
    compiled = native.FOLDER
    for name in native.INSTRUCTIONS:
        shutil.copy(compiled / f"kernels_{name}.so", tmp_path)
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    assert native.library.__wrapped__() is not None, "as in a wheel, which has no sources"

    source = (compiled / "kernels.c").read_text()
    (tmp_path / "kernels.c").write_text(source)
    assert native.library.__wrapped__() is not None
    (tmp_path / "kernels.c").write_text(source + "/* new */")
    assert native.library.__wrapped__() is None
    events = fields_of(caplog, "kernels not used, sources have changed")
    assert "setup_venv.sh" in events[0]["remedy"]
