"""Attention in place, decode graphs and the packed transfer, on the CPU.

A naive kernel stands in for the one that only a GPU has. `test_gpu_decode.py` tests the real ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scripts.train.special_tokens import byte_tokenizer
from shared.messages import Generate, Sampling, Score
from shared.settings.settings import ModelEntry, Settings
from shared.tasks.runner_options import PagedOptions
from tests.fixtures.logged import fields_of
from tests.fixtures.tiny_hrm_text import PROMPTS, write_tiny
from tests.fixtures.worker.options import options_for
from tests.fixtures.worker.paged_kernel import naive_varlen_attn_out, stand_in
from tests.fixtures.worker.stepping import generate_all, score_all
from tests.fixtures.worker.tiny_causal import llama
from worker.engine.sequence import Encoded, Slice, TokenSequence
from worker.host import loading
from worker.kv import flash
from worker.kv.attention import AttentionPlan, Span, attend
from worker.kv.batch import Batch, BatchBuilder
from worker.kv.spans import Kernel, PagedSpan, paged_span
from worker.kv.store import KVShape, KVStore
from worker.kv.transfer import packed
from worker.models.errors import ModelFormatError
from worker.runners import decode_graphs
from worker.runners.decode_graphs import DecodeGraphs, batch_sizes
from worker.runners.paged import PagedRunner
from worker.runners.registry import load_runner

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["hrm-text", "causal"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "hrm-text":
        write_tiny(path)
    else:
        torch.manual_seed(1)
        net = llama()
        for parameter in net.parameters():
            parameter.data.mul_(4)
        net.save_pretrained(path)
        byte_tokenizer().save_pretrained(path)
    return request.param, path


def load(model: tuple[str, Path], **options: int | bool) -> PagedRunner:
    kind, path = model
    values: dict[str, int | bool] = {"max_batch": 4, "page_size": 4, "context_window": 64}
    values.update(options)
    runner = load_runner(kind, options_for(path, kind, **values))
    assert isinstance(runner, PagedRunner)
    return runner


def greedy_tasks(*lengths: int) -> list[Generate]:
    """Return a greedy task of each length, each with another prompt."""
    prompts = [*PROMPTS, "a b"]
    tasks = []
    for prompt, length in zip(prompts, lengths, strict=False):
        tasks.append(Generate(prompt, Sampling(max_tokens=length, seed=0, temperature=0.0)))
    return tasks


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("step_tokens", [256, 3])
def test_in_place_says_what_gathering_says(
    model: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, cuda_graphs: bool, step_tokens: int
) -> None:
    """Attention in place gives the answers and scores of attention to gathered pages.

    Rows join and leave, so that steps are mixed and graphs padded.
    """
    tasks = greedy_tasks(9, 3, 6, 1, 4)
    tasks.append(Generate(PROMPTS[2], Sampling(max_tokens=5, seed=3, temperature=0.8, n=1)))
    score_task = Score("2 + 2 is", (" 4", " four or five"))
    # Steps of 3 tokens cut prompts into chunks.
    plain = load(model, step_tokens=step_tokens)
    expected = generate_all(plain, tasks)
    [expected_scores] = score_all(plain, [score_task])

    stand_in(monkeypatch)
    runner = load(model, step_tokens=step_tokens, cuda_graphs=cuda_graphs)

    assert runner.has_graphs == cuda_graphs
    assert generate_all(runner, tasks) == expected
    [scores] = score_all(runner, [score_task])
    for score, expected_score in zip(scores, expected_scores, strict=True):
        assert score.log_likelihood == pytest.approx(expected_score.log_likelihood, abs=1e-4)


def test_pure_decoding_is_replayed_and_nothing_else(
    model: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first token of a sequence comes from its prompt's step, and the others from graphs.

    A score never comes from a graph.
    """
    stand_in(monkeypatch)
    runner = load(model)
    replayed = []
    real = DecodeGraphs.decode

    def spy(self: DecodeGraphs, slices: Sequence[Slice]) -> tuple[Tensor, Tensor] | None:
        answer = real(self, slices)
        replayed.append(answer is not None)
        return answer

    monkeypatch.setattr(DecodeGraphs, "decode", spy)
    [ids] = generate_all(runner, greedy_tasks(7))
    assert replayed == [False] + [True] * (len(ids) - 1)

    replayed.clear()
    score_all(runner, [Score("2 + 2 is", (" 4",))])
    assert replayed
    assert not any(replayed)


def test_padding_touches_no_page_of_a_sequence(
    model: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rows in a graph of four write their own positions and the page of padding, no others.

    The page of padding lies behind the pages of all sequences.
    """
    stand_in(monkeypatch)
    runner = load(model)
    store = runner.store
    decoder = runner.decoder
    assert decoder is not None
    slices = []
    for key, pages in (("0", [9, 2]), ("1", [0, 31]), ("2", [5, 7])):
        sequence = TokenSequence(
            key,
            Encoded((5, 6, 7, 8, 9, 10), max_tokens=9),
            Sampling(max_tokens=9, seed=0),
            pages=pages,
            num_computed=5,
        )
        slices.append(Slice(sequence, num_tokens=1))

    with torch.inference_mode():
        for slot in range(store.keys.shape[0]):
            for pool in store.pool(slot):
                pool.normal_()
        before = store.keys.clone()
        answer = decoder.decode(slices)

    assert answer is not None
    tokens, logits = answer
    assert len(tokens) == 3
    assert len(logits) == 3
    # Pages have 4 positions, so the sixth token is at position 1 of a row's second page.
    changed = (store.keys != before).flatten(3).any(-1).any(0)
    assert changed.nonzero().tolist() == [[2, 1], [7, 1], [31, 1], [runner.spec.num_pages, 0]]


def test_a_net_that_cannot_be_captured_decodes_without(
    model: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A runner whose capture fails logs the reason and decodes without graphs."""
    expected = generate_all(load(model), greedy_tasks(5, 5))
    stand_in(monkeypatch)

    def refuse(_: torch.device) -> Callable[[object], object]:
        def capture(_: object) -> object:
            raise RuntimeError("operation not permitted when stream is capturing")

        return capture

    monkeypatch.setattr(decode_graphs, "CudaCapture", refuse)
    runner = load(model)

    assert not runner.has_graphs
    [warning] = fields_of(caplog, "decoding without CUDA graphs")
    assert "operation not permitted" in warning["error"]
    assert generate_all(runner, greedy_tasks(5, 5)) == expected


@pytest.mark.parametrize("max_batch", [1, 2, 3, 8, 12, 16, 48, 50, 64, 200])
def test_every_batch_has_a_size_that_is_not_twice_too_large(max_batch: int) -> None:
    """A batch's graph has less than twice its rows; from 16 rows on, at most about 1.5 times."""
    sizes = batch_sizes(max_batch)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_batch

    for count in range(1, max_batch + 1):
        smallest = min(size for size in sizes if size >= count)
        assert smallest < 2 * count
        if count >= 16:
            assert smallest <= 1.5 * count + 1
    assert batch_sizes(64) == [1, 2, 4, 8, 16, 24, 32, 48, 64]


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("count", [1, 4])
def test_a_span_in_place_equals_one_that_gathers(
    monkeypatch: pytest.MonkeyPatch, window: int | None, count: int
) -> None:
    """A span in place attends to the same keys and values as one that gathers its pages.

    The rows are of unequal length, the queries grouped, with and without a window.
    """
    stand_in(monkeypatch)
    torch.manual_seed(0)
    store = KVStore(
        KVShape(2, num_heads=2, head_dim=8),
        num_pages=12,
        page_size=4,
        dtype=torch.float32,
        device=CPU,
    )
    for pool in store.pool(1):
        pool.normal_()
    firsts = [7, 0, 3]
    pages = [[3, 11, 0], [5, 0, 0], [1, 2, 0]]
    query = torch.randn(3 * count, 4, 8)
    fresh = torch.zeros(3 * count, 2, 8)
    lengths = [first + count for first in firsts]
    in_place = paged_span(0, [count] * 3, lengths, pages, page_size=4, kernel=flash.varlen)
    positions = torch.tensor(firsts)[:, None] + torch.arange(count)
    gathering = Span(0, 3 * count, positions, torch.tensor(pages), max(lengths), is_causal=True)

    def attended(span: Span | PagedSpan) -> Tensor:
        return attend(
            AttentionPlan(positions.flatten(), positions.flatten(), (span,)),
            store,
            1,
            query=query,
            key=fresh,
            value=fresh,
            scale=0.3,
            window=window,
        )

    assert torch.allclose(attended(in_place), attended(gathering), atol=1e-5)


def test_the_trial_tells_a_right_kernel_from_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial of a kernel returns None for a right one, and else names the fault."""
    kernel_name = "torch.nn.attention.varlen.varlen_attn_out"

    def problem_with(kernel: Callable[..., Tensor]) -> str | None:
        monkeypatch.setattr(kernel_name, kernel)
        shape = KVShape(3, num_heads=2, head_dim=8)
        return flash.trial(flash.varlen, CPU, torch.float32, shape, page_size=256)

    def with_other_pages(*args: Any, block_table: Tensor, **options: Any) -> Tensor:
        return naive_varlen_attn_out(*args, block_table=block_table.flip(1), **options)

    def that_writes_nothing(out: Tensor, *_: object, **__: object) -> Tensor:
        return out.fill_(torch.nan)

    def missing(*_: object, **__: object) -> Tensor:
        raise RuntimeError("no kernel image is available")

    assert problem_with(naive_varlen_attn_out) is None
    assert "is off by" in (problem_with(with_other_pages) or "")
    assert "is off by" in (problem_with(that_writes_nothing) or "")
    assert "no kernel image" in (problem_with(missing) or "")


def test_the_kernel_is_chosen_once_and_the_reason_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is torch's, else our own, else none; the reason says why not a better one."""
    cuda = torch.device("cuda")
    shape = KVShape(1, num_heads=2, head_dim=64)
    half = torch.bfloat16
    failing: dict[object, str] = {}
    monkeypatch.setattr(flash, "trial", lambda kernel, *_, **__: failing.get(kernel))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "an old card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))

    def chosen(
        device: torch.device, dtype: torch.dtype, shape: KVShape, page_size: int = 256
    ) -> tuple[object, str]:
        return flash.choose_kernel(device, dtype, shape, page_size)

    for device, dtype, expected_reason in (
        (torch.device("mps"), half, "needs CUDA"),
        (cuda, torch.float32, "float32"),
        (cuda, half, "an old card"),
    ):
        kernel, reason = chosen(device, dtype, shape)
        assert kernel is None
        assert expected_reason in reason

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    _, reason = chosen(cuda, half, KVShape(1, num_heads=2, head_dim=264))
    assert "head dimension" in reason
    assert chosen(cuda, half, shape) == (flash.varlen, "")
    kernel, reason = chosen(cuda, half, shape, page_size=16)
    assert kernel is flash.in_triton
    assert "multiple of 256" in reason

    failing[flash.varlen] = "it is off"
    assert chosen(cuda, half, shape) == (flash.in_triton, "it is off")
    failing[flash.in_triton] = "no triton"
    assert chosen(cuda, half, shape) == (None, "it is off; no triton")


@pytest.mark.parametrize(
    ("place", "dtype", "given", "expected"),
    [
        ("cuda", "bfloat16", None, 256),
        ("cuda", "float32", None, 16),
        ("cpu", "bfloat16", None, 16),
        ("cuda", "float16", 32, 32),
    ],
)
def test_pages_are_large_where_flash_attention_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, place: str, dtype: str, given: int | None, expected: int
) -> None:
    """Flash attention takes pages of 256 tokens only; a page size that is set is obeyed."""
    monkeypatch.setattr(loading.device, "select_device", lambda _: torch.device(place))
    settings = Settings(dtype=dtype, page_size=given, cuda_graphs=False)

    options = loading.runner_options(ModelEntry(id="m", path="x"), settings, "hrm-text")

    assert options.page_size == expected
    assert options.declared(PagedOptions).cuda_graphs is False


def test_without_flash_attention_no_kernel_is_looked_for(
    model: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting `flash_attention` false means small pages and no kernel."""
    monkeypatch.setattr(loading.device, "select_device", lambda _: torch.device("cuda"))
    settings = Settings(dtype="bfloat16", flash_attention=False)

    options = loading.runner_options(ModelEntry(id="m", path="x"), settings, "hrm-text")

    assert options.page_size == 16
    assert options.declared(PagedOptions).flash_attention is False
    stand_in(monkeypatch)
    assert load(model).kernel is not None
    assert load(model, flash_attention=False).kernel is None


def test_the_page_of_padding_comes_out_of_the_budget(
    model: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With graphs one page more must fit into the budget; without them none is needed."""
    # One context window of 64 tokens in pages of 4.
    pages = 16
    page_bytes = load(model).net.kv_shape.bytes_per_token(torch.float32) * 4
    assert load(model, kv_bytes=page_bytes * pages).spec.num_pages == pages

    stand_in(monkeypatch)
    runner = load(model, kv_bytes=page_bytes * (pages + 1))
    keys, _ = runner.store.pool(0)
    assert runner.spec.num_pages == pages
    assert len(keys) == pages + 1
    assert load(model, kv_bytes=page_bytes * pages, cuda_graphs=False).spec.num_pages == pages
    with pytest.raises(ModelFormatError, match="kv_memory_mib"):
        load(model, kv_bytes=page_bytes * pages)


def test_packed_tensors_come_out_as_they_went_in() -> None:
    """Tensors of any type and layout keep their types and values in one transfer."""
    torch.manual_seed(0)
    tensors = [
        torch.arange(5),
        torch.rand(3, 7) > 0.5,
        torch.zeros(0, dtype=torch.int64),
        torch.arange(6, dtype=torch.int32).view(2, 3),
        torch.arange(12).view(3, 4).T,
        torch.tensor(3.5, dtype=torch.float64),
        torch.arange(4)[:, None].expand(4, 2),
    ]
    for tensor, copy in zip(tensors, packed(tensors, CPU), strict=True):
        assert copy.dtype == tensor.dtype
        assert torch.equal(copy, tensor)


def test_no_tensor_of_a_step_stays_behind() -> None:
    """All tensors of a batch, in all its spans, go to the device and keep shapes and types."""
    decoding = TokenSequence(
        "decodes",
        Encoded((5, 6, 7, 8, 9), max_tokens=4),
        Sampling(max_tokens=4, seed=0),
        pages=[0, 1],
        num_computed=4,
    )
    prompt = TokenSequence(
        "starts",
        Encoded((5, 6, 7, 8, 9), max_tokens=4),
        Sampling(max_tokens=4, seed=0),
        pages=[0, 1],
        num_computed=0,
    )
    scoring = TokenSequence(
        "scores",
        Encoded((5, 6, 7, 8, 9), max_tokens=4, continuations=((1, 2), (3,))),
        sampling=None,
        pages=[0, 1],
        num_computed=5,
    )
    slices = [Slice(decoding, 1), Slice(prompt, 5), Slice(scoring, num_continuations=2)]

    for kernel in (None, flash.varlen):
        on_cpu = batch_on("cpu", slices, kernel)
        on_meta = batch_on("meta", slices, kernel)

        for tensor, moved in zip(tensors_of(on_cpu), tensors_of(on_meta), strict=True):
            assert moved.shape == tensor.shape
            assert moved.dtype == tensor.dtype
            assert moved.device.type == "meta"
        assert tensors_of(on_meta)
        assert on_meta.samplers == on_cpu.samplers
        assert on_meta.scored == on_cpu.scored


def batch_on(device: str, slices: Sequence[Slice], kernel: Kernel | None) -> Batch:
    builder = BatchBuilder(4, torch.device(device), is_prefix=True, kernel=kernel)
    return builder.build(slices)


def tensors_of(value: object) -> list[Tensor]:
    """Return all tensors inside dataclasses, lists and tuples, however deep."""
    if isinstance(value, Tensor):
        return [value]

    parts: list[object] = []
    if is_dataclass(value):
        for field in fields(value):
            parts.append(getattr(value, field.name))
    elif isinstance(value, list | tuple):
        parts.extend(value)

    tensors = []
    for part in parts:
        tensors.extend(tensors_of(part))
    return tensors
