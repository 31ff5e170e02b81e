"""Attention in place, decode graphs and the packed transfer on CPU, with a naive kernel for what
only a GPU has.

On a GPU, `test_gpu_decode.py` asks the same of the real ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scripts.train.train_sample import byte_tokenizer
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
from worker.kv.spans import paged_span
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
    defaults: dict[str, int | bool] = {"max_batch": 4, "page_size": 4, "context_window": 64}
    runner = load_runner(model[0], options_for(model[1], model[0], **(defaults | options)))
    assert isinstance(runner, PagedRunner)
    return runner


def tasks(*lengths: int) -> list[Generate]:
    prompts = [*PROMPTS, "a b"]
    return [
        Generate(text, Sampling(max_tokens=n, seed=0, temperature=0.0))
        for text, n in zip(prompts, lengths, strict=False)
    ]


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("step_tokens", [256, 3])
def test_in_place_says_what_gathering_says(
    model: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, cuda_graphs: bool, step_tokens: int
) -> None:
    """Rows join and leave, so that steps are mixed and graphs padded; 3 tokens a step cut prompts
    into chunks."""
    asked = [
        *tasks(9, 3, 6, 1, 4),
        Generate(PROMPTS[2], Sampling(max_tokens=5, seed=3, temperature=0.8, n=1)),
    ]
    plain = load(model, step_tokens=step_tokens)
    expected = generate_all(plain, asked)
    scored = Score("2 + 2 is", (" 4", " four or five"))
    scores = score_all(plain, [scored])[0]
    stand_in(monkeypatch)
    runner = load(model, step_tokens=step_tokens, cuda_graphs=cuda_graphs)
    assert runner.has_graphs == cuda_graphs
    assert generate_all(runner, asked) == expected
    for ours, theirs in zip(score_all(runner, [scored])[0], scores, strict=True):
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, abs=1e-4)


def test_pure_decoding_is_replayed_and_nothing_else(
    model: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of `n` tokens of one sequence the first comes from its prompt and the others from graphs."""
    stand_in(monkeypatch)
    runner = load(model)
    answers = []
    real = DecodeGraphs.decode

    def spy(self: DecodeGraphs, slices: Sequence[Slice]) -> tuple[Tensor, Tensor] | None:
        answers.append(real(self, slices))
        return answers[-1]

    monkeypatch.setattr(DecodeGraphs, "decode", spy)
    (said,) = generate_all(runner, tasks(7))
    assert [answer is not None for answer in answers] == [False] + [True] * (len(said) - 1)
    answers.clear()
    score_all(runner, [Score("2 + 2 is", (" 4",))])
    assert answers and all(answer is None for answer in answers)


def test_padding_touches_no_page_of_a_sequence(
    model: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 rows in a graph of 4: their own places and the page behind all others are written, and not
    one more."""
    stand_in(monkeypatch)
    runner = load(model)
    store = runner._store
    decoder = runner._decoder
    assert decoder is not None
    with torch.inference_mode():
        for slot in range(store._keys.shape[0]):
            for pool in store.pool(slot):
                pool.normal_()
        before = store._keys.clone()
        rows = [
            TokenSequence(str(n), Encoded((5, 6, 7, 8, 9, 10), 9), Sampling(max_tokens=9, seed=0))
            for n in range(3)
        ]
        for row, pages, computed in zip(rows, ([9, 2], [0, 31], [5, 7]), (5, 5, 5), strict=True):
            row.pages = pages
            row.num_computed = computed
        answer = decoder.decode([Slice(row, 1) for row in rows])
    assert answer is not None and [len(item) for item in answer] == [3, 3]
    changed = (store._keys != before).flatten(3).any(-1).any(0)
    assert changed.nonzero().tolist() == [[2, 1], [7, 1], [31, 1], [runner.spec.num_pages, 0]]


def test_a_net_that_cannot_be_captured_decodes_without(
    model: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = generate_all(load(model), tasks(5, 5))
    stand_in(monkeypatch)

    def refuse(_: torch.device) -> Callable[[object], object]:
        def capture(_: object) -> object:
            raise RuntimeError("operation not permitted when stream is capturing")

        return capture

    monkeypatch.setattr(decode_graphs, "CudaCapture", refuse)
    runner = load(model)
    assert runner._decoder is None
    [said] = fields_of(caplog, "decoding without CUDA graphs")
    assert "operation not permitted" in said["error"]
    assert generate_all(runner, tasks(5, 5)) == expected


@pytest.mark.parametrize("max_batch", [1, 2, 3, 8, 12, 16, 48, 50, 64, 200])
def test_every_batch_has_a_size_that_is_not_twice_too_large(max_batch: int) -> None:
    sizes = batch_sizes(max_batch)
    assert sizes == sorted(set(sizes)) and sizes[-1] == max_batch
    for count in range(1, max_batch + 1):
        size = next(size for size in sizes if size >= count)
        assert size < 2 * count
        assert count < 16 or size <= 1.5 * count + 1
    assert batch_sizes(64) == [1, 2, 4, 8, 16, 24, 32, 48, 64]


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("count", [1, 4])
def test_a_span_in_place_equals_one_that_gathers(
    monkeypatch: pytest.MonkeyPatch, window: int | None, count: int
) -> None:
    """Rows of unequal length, grouped queries, windows: the same attention from the same pages."""
    stand_in(monkeypatch)
    torch.manual_seed(0)
    store = KVStore(KVShape(2, 2, 8), 12, 4, torch.float32, CPU)
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
    ours, theirs = (
        attend(
            AttentionPlan(positions.flatten(), positions.flatten(), (span,)),
            store,
            1,
            query=query,
            key=fresh,
            value=fresh,
            scale=0.3,
            window=window,
        )
        for span in (in_place, gathering)
    )
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_trial_tells_a_right_kernel_from_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a build gets wrong is found when the model is loaded, and named."""
    place = "torch.nn.attention.varlen.varlen_attn_out"
    trial = (flash.varlen, CPU, torch.float32, KVShape(3, 2, 8), 256)
    monkeypatch.setattr(place, naive_varlen_attn_out)
    assert flash.trial(*trial) is None

    def with_other_pages(*args: Tensor, **options: Tensor) -> Tensor:
        return naive_varlen_attn_out(
            *args, **(options | {"block_table": options["block_table"].flip(1)})
        )  # type: ignore[arg-type]

    def that_writes_nothing(out: Tensor, *_: object, **__: object) -> Tensor:
        return out.fill_(torch.nan)

    for wrong in (with_other_pages, that_writes_nothing):
        monkeypatch.setattr(place, wrong)
        assert "is off by" in (flash.trial(*trial) or "")

    def missing(*_: object, **__: object) -> Tensor:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(place, missing)
    assert "no kernel image" in (flash.trial(*trial) or "")


def test_the_kernel_is_chosen_once_and_the_reason_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    shape = KVShape(1, 2, 64)
    half = torch.bfloat16
    failing: dict[object, str] = {}
    monkeypatch.setattr(flash, "trial", lambda kernel, *_: failing.get(kernel))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "an old card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))

    def chosen(*given: object) -> tuple[object, str]:
        return flash.choose_kernel(*given)  # type: ignore[arg-type]

    for given, reason in (
        ((CPU, half, shape, 256), "needs CUDA"),
        ((cuda, torch.float32, shape, 256), "float32"),
        ((cuda, half, shape, 256), "an old card"),
    ):
        kernel, why = chosen(*given)
        assert kernel is None and reason in why
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert "head dimension" in chosen(cuda, half, KVShape(1, 2, 264), 256)[1]
    assert chosen(cuda, half, shape, 256) == (flash.varlen, "")
    kernel, why = chosen(cuda, half, shape, 16)
    assert kernel is flash.in_triton and "multiple of 256" in why
    failing[flash.varlen] = "it is off"
    assert chosen(cuda, half, shape, 256) == (flash.in_triton, "it is off")
    failing[flash.in_triton] = "no triton"
    assert chosen(cuda, half, shape, 256) == (None, "it is off; no triton")


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
    monkeypatch.setattr(loading.device, "select_device", lambda _: torch.device(place))
    settings = Settings(dtype=dtype, page_size=given, cuda_graphs=False)
    options = loading._options(ModelEntry(id="m", path="x"), settings, "hrm-text")
    assert (options.page_size, options.declared(PagedOptions).cuda_graphs) == (expected, False)


def test_without_flash_attention_no_kernel_is_looked_for(
    model: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading.device, "select_device", lambda _: torch.device("cuda"))
    settings = Settings(dtype="bfloat16", flash_attention=False)
    options = loading._options(ModelEntry(id="m", path="x"), settings, "hrm-text")
    assert (options.page_size, options.declared(PagedOptions).flash_attention) == (16, False)
    stand_in(monkeypatch)
    assert load(model).kernel is not None
    assert load(model, flash_attention=False).kernel is None


def test_the_page_of_padding_comes_out_of_the_budget(
    model: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = 16  # one window
    per_page = load(model)._net.kv_shape.bytes_per_token(torch.float32) * 4
    assert load(model, kv_bytes=per_page * pages).spec.num_pages == pages
    stand_in(monkeypatch)
    runner = load(model, kv_bytes=per_page * (pages + 1))
    assert (runner.spec.num_pages, len(runner._store.pool(0)[0])) == (pages, pages + 1)
    assert load(model, kv_bytes=per_page * pages, cuda_graphs=False).spec.num_pages == pages
    with pytest.raises(ModelFormatError, match="kv_memory_mib"):
        load(model, kv_bytes=per_page * pages)


def test_packed_tensors_come_out_as_they_went_in() -> None:
    torch.manual_seed(0)
    given = [
        torch.arange(5),
        torch.rand(3, 7) > 0.5,
        torch.zeros(0, dtype=torch.int64),
        torch.arange(6, dtype=torch.int32).view(2, 3),
        torch.arange(12).view(3, 4).T,
        torch.tensor(3.5, dtype=torch.float64),
        torch.arange(4)[:, None].expand(4, 2),
    ]
    for item, copy in zip(given, packed(given, CPU), strict=True):
        assert copy.dtype == item.dtype and torch.equal(copy, item)


def test_no_tensor_of_a_step_stays_behind() -> None:
    """Everything of a batch, whichever span it is in, goes to the device with the rest, shapes and
    types unchanged."""
    decoding, prompt, scoring = (
        TokenSequence(
            name,
            Encoded((5, 6, 7, 8, 9), 4, continuations),
            sampling,
            pages=[0, 1],
            num_computed=computed,
        )
        for name, continuations, sampling, computed in (
            ("decodes", (), Sampling(max_tokens=4, seed=0), 4),
            ("starts", (), Sampling(max_tokens=4, seed=0), 0),
            ("scores", ((1, 2), (3,)), None, 5),
        )
    )
    slices = [Slice(decoding, 1), Slice(prompt, 5), Slice(scoring, num_continuations=2)]
    for kernel in (None, flash.varlen):
        here, there = (
            BatchBuilder(4, torch.device(kind), True, kernel).build(slices)
            for kind in ("cpu", "meta")
        )
        found = tensors_of(here)
        moved = tensors_of(there)
        assert [(item.shape, item.dtype) for item in moved] == [
            (item.shape, item.dtype) for item in found
        ]
        assert {item.device.type for item in moved} == {"meta"}
        assert (there.samplers, there.scored) == (here.samplers, here.scored)


def tensors_of(value: Batch | object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = [getattr(value, item.name) for item in fields(value)] if is_dataclass(value) else value
    return (
        [found for part in parts for found in tensors_of(part)]
        if isinstance(parts, list | tuple)
        else []
    )
