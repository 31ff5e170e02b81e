"""On a GPU: attention in place, decode graphs and compiled layers in half precision, against what
needs none."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import (
    HrmTextConfig,
    HrmTextForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from scripts.train.train_sample import byte_tokenizer
from shared.messages import Generate, Sampling, Score
from tests.fixtures.worker.options import options_for
from tests.fixtures.worker.stepping import generate_all, score_all
from worker.engine.sequence import Encoded, Slice, TokenSequence
from worker.kv import flash
from worker.kv.attention import AttentionPlan, Span, attend
from worker.kv.batch import BatchBuilder
from worker.kv.spans import Kernel, paged_span
from worker.kv.store import KVShape, KVStore
from worker.models.hrm_text import HrmTextModel
from worker.runners.paged import PagedRunner
from worker.runners.registry import load_runner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.timeout(300),
]
CUDA = torch.device("cuda")
HALF = torch.bfloat16
HAS_VARLEN = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
VOCABULARY = len(byte_tokenizer())
LONG = "the quick brown fox jumps over the lazy dog " * 13
"""572 bytes, which are as many tokens: three pages."""


def hrm_text() -> PreTrainedModel:
    return HrmTextForCausalLM(
        HrmTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            head_dim=64,
            H_cycles=2,
            L_cycles=2,
            max_position_embeddings=1024,
            initializer_range=0.1,
            embedding_scale=2.5,
            bos_token_id=1,
            eos_token_id=3,
            pad_token_id=0,
        )
    )


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            initializer_range=0.1,
        )
    )


@pytest.fixture(
    scope="module", params=[("hrm-text", hrm_text), ("causal", llama)], ids=["hrm-text", "llama"]
)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    torch.manual_seed(1)
    kind, build = request.param
    path = tmp_path_factory.mktemp(kind)
    build().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return kind, path


def load(model: tuple[str, Path], **changes: object) -> PagedRunner:
    common: dict[str, object] = {
        "device": "cuda",
        "dtype": "bfloat16",
        "page_size": 256,
        "max_batch": 4,
        "context_window": 768,
    }
    if model[0] == "hrm-text":
        common["compile_layers"] = False
    runner = load_runner(model[0], options_for(model[1], model[0], **(common | changes)))
    assert isinstance(runner, PagedRunner)
    return runner


def greedy(text: str, max_tokens: int) -> Generate:
    return Generate(text, Sampling(max_tokens=max_tokens, seed=0, temperature=0.0))


def rows(runner: PagedRunner, lengths: Sequence[int]) -> list[Slice]:
    """Decoding rows whose pages are shuffled, and a store full of noise."""
    generator = torch.Generator().manual_seed(0)
    order = iter(torch.randperm(runner.spec.num_pages, generator=generator).tolist())
    with torch.inference_mode():
        for slot in range(runner._net.kv_shape.num_slots):
            for pool in runner._store.pool(slot):
                pool.normal_()
    slices = []
    for number, length in enumerate(lengths):
        ids = tuple(torch.randint(4, VOCABULARY, (length,), generator=generator).tolist())
        row = TokenSequence(
            str(number), Encoded(ids, 8), Sampling(max_tokens=8, seed=0), num_computed=length - 1
        )
        row.pages = [next(order) for _ in range(-(-length // runner.spec.page_size))]
        slices.append(Slice(row, 1))
    return slices


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("page_size", [16, 256, 512])
def test_a_kernel_is_found(dtype: torch.dtype, head_dim: int, page_size: int) -> None:
    """Our own everywhere, torch's where its pages are large and torch new enough."""
    shape = KVShape(1, 2, head_dim)
    assert flash.trial(flash.in_triton, CUDA, dtype, shape, page_size) is None
    chosen, why = flash.choose_kernel(CUDA, dtype, shape, page_size)
    assert chosen is (flash.varlen if page_size % 256 == 0 and HAS_VARLEN else flash.in_triton), why


@pytest.mark.parametrize("kernel", [flash.in_triton, flash.varlen])
@pytest.mark.parametrize("window", [None, 1, 200])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 40])
@torch.inference_mode()
def test_a_span_in_place_equals_one_that_gathers(
    kernel: Kernel, window: int | None, kv_heads: int, count: int
) -> None:
    if kernel is flash.varlen and not HAS_VARLEN:
        pytest.skip(f"torch {torch.__version__} has no paged varlen_attn")
    torch.manual_seed(0)
    store = KVStore(KVShape(2, kv_heads, 64), 12, 256, HALF, CUDA)
    for pool in store.pool(1):
        pool.normal_()
    firsts = [511, 0, 300]
    pages = [[3, 11, 0], [5, 0, 0], [1, 2, 0]]
    query = torch.randn(3 * count, 4, 64, dtype=HALF, device=CUDA)
    fresh = torch.zeros(3 * count, kv_heads, 64, dtype=HALF, device=CUDA)
    lengths = [first + count for first in firsts]
    positions = (torch.tensor(firsts)[:, None] + torch.arange(count)).to(CUDA)
    in_place = paged_span(0, [count] * 3, lengths, pages, page_size=256, kernel=kernel, device=CUDA)
    gathering = Span(
        0, 3 * count, positions, torch.tensor(pages, device=CUDA), max(lengths), is_causal=True
    )
    ours, theirs = (
        attend(
            AttentionPlan(positions.flatten(), positions.flatten(), (span,)),
            store,
            1,
            query=query,
            key=fresh,
            value=fresh,
            scale=0.125,
            window=window,
        )
        for span in (in_place, gathering)
    )
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("lengths", [(5,), (300, 2, 513), (256, 257, 767, 1)])
@torch.inference_mode()
def test_a_graph_computes_what_a_plain_forward_does(
    model: tuple[str, Path], lengths: tuple[int, ...]
) -> None:
    """Padded or not, rows of any length: the same states as without a graph, from the same
    places."""
    runner = load(model)
    assert runner._decoder is not None
    slices = [part for part in rows(runner, lengths) if part.sequence.num_computed]
    answer = runner._decoder.decode(slices)
    assert answer is not None
    states = answer[0].clone()
    batch = BatchBuilder(256, CUDA, True, runner.kernel).build(slices)
    torch.testing.assert_close(
        states, runner._net.hidden(batch.ids, batch.plan, runner._store), atol=0.06, rtol=0.03
    )


@torch.inference_mode()
def test_padding_touches_no_page_of_a_sequence(model: tuple[str, Path]) -> None:
    runner = load(model)
    slices = rows(runner, (300, 17, 513))
    before = runner._store._keys.clone()
    assert runner._decoder is not None and runner._decoder.decode(slices) is not None
    changed = (runner._store._keys != before).flatten(3).any(-1).any(0).nonzero().tolist()
    written = [
        [part.sequence.pages[at // 256], at % 256]
        for part in slices
        if (at := part.sequence.num_computed)
    ]
    assert changed == sorted([*written, [runner.spec.num_pages, 0]])


def test_graphs_say_what_plain_steps_say(model: tuple[str, Path]) -> None:
    """Four rows of unequal prompts at a time: with equal shapes a graph runs the very same
    kernels."""
    tasks = [greedy(text, 24) for text in ("a", "Hello there", LONG, LONG[:254])]
    assert generate_all(load(model), tasks) == generate_all(load(model, cuda_graphs=False), tasks)


def test_rows_that_come_and_go_are_decoded_to_their_ends(model: tuple[str, Path]) -> None:
    runner = load(model)
    lengths = [9, 1, 30, 4, 17, 2, 12]
    said = generate_all(
        runner, [greedy(LONG[: 100 * n], length) for n, length in enumerate(lengths, 1)]
    )
    for ids, length in zip(said, lengths, strict=True):
        assert len(ids) == length or ids[-1] in runner.eos_ids


@pytest.mark.parametrize("step_tokens", [4096, 100])
def test_scores_are_those_of_full_precision_on_the_cpu(
    model: tuple[str, Path], step_tokens: int
) -> None:
    """Whole prompts and, where the model allows it, prompts in chunks of 100 tokens over stored
    pages."""
    task = Score(LONG, (" and runs away", "!"))
    exact = score_all(load(model, device="cpu", dtype="float32", page_size=16), [task])[0]
    for ours, theirs in zip(
        score_all(load(model, step_tokens=step_tokens), [task])[0], exact, strict=True
    ):
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, rel=0.03, abs=0.1)


def test_full_precision_gathers_and_equals_the_cpu(model: tuple[str, Path]) -> None:
    tasks = [greedy("Hello", 12), greedy("12 * 7", 12)]
    runner = load(model, dtype="float32", page_size=16)
    assert runner.kernel is None and runner._decoder is None
    assert generate_all(runner, tasks) == generate_all(
        load(model, device="cpu", dtype="float32", page_size=16), tasks
    )


@torch.inference_mode()
def test_compiled_layers_equal_plain_ones(model: tuple[str, Path]) -> None:
    if model[0] != "hrm-text":
        pytest.skip("only HRM-Text compiles its layers")
    plain = load(model)
    compiled = load(model, compile_layers=True)
    net: HrmTextModel = compiled._net.model  # type: ignore[attr-defined]
    assert net.halves != plain._net.model.halves, "it fell back to plain layers"  # type: ignore[attr-defined]
    assert compiled._decoder is not None
    slices = rows(compiled, (300, 2, 513))
    plain._store._keys.copy_(compiled._store._keys)
    plain._store._values.copy_(compiled._store._values)
    ours, theirs = (
        runner._decoder.decode(slices)
        for runner in (compiled, plain)
        if runner._decoder is not None
    )
    assert ours is not None and theirs is not None
    torch.testing.assert_close(ours[0], theirs[0], atol=0.06, rtol=0.03)
