"""Attention in place, decode graphs and compiled layers on a GPU, in half precision.

The oracle is a plain forward with gathered pages.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    HrmTextConfig,
    HrmTextForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from scripts.train.special_tokens import byte_tokenizer
from shared.messages import Generate, Sampling, Score
from tests.fixtures.worker.options import options_for
from tests.fixtures.worker.stepping import generate_all, score_all
from worker.engine.sequence import Encoded, Slice, TokenSequence
from worker.kv import flash
from worker.kv.attention import AttentionPlan, Span, attend
from worker.kv.batch import BatchBuilder
from worker.kv.spans import Kernel, PagedSpan, paged_span
from worker.kv.store import KVShape, KVStore
from worker.models.hrm_text import HrmTextModel
from worker.runners.paged import PagedRunner
from worker.runners.registry import load_runner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
CUDA = torch.device("cuda")
HALF = torch.bfloat16
MAJOR, MINOR = torch.__version__.split(".")[:2]
HAS_VARLEN = (int(MAJOR), int(MINOR)) >= (2, 13)
VOCABULARY = len(byte_tokenizer())
LONG = "the quick brown fox jumps over the lazy dog " * 13
"""A text of 572 bytes, which are as many tokens: three pages."""


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
    kind, path = model
    values: dict[str, object] = {
        "device": "cuda",
        "dtype": "bfloat16",
        "page_size": 256,
        "max_batch": 4,
        "context_window": 768,
    }
    if kind == "hrm-text":
        values["compile_layers"] = False
    values.update(changes)
    runner = load_runner(kind, options_for(path, kind, **values))
    assert isinstance(runner, PagedRunner)
    return runner


def greedy(text: str, max_tokens: int) -> Generate:
    return Generate(text, Sampling(max_tokens=max_tokens, seed=0, temperature=0.0))


def rows(runner: PagedRunner, lengths: Sequence[int]) -> list[Slice]:
    """Return decoding rows with shuffled pages, and fill the store with noise."""
    generator = torch.Generator().manual_seed(0)
    free_pages = torch.randperm(runner.spec.num_pages, generator=generator).tolist()
    with torch.inference_mode():
        for slot in range(runner.net.kv_shape.num_slots):
            for pool in runner.store.pool(slot):
                pool.normal_()

    slices = []
    for number, length in enumerate(lengths):
        ids = tuple(torch.randint(4, VOCABULARY, (length,), generator=generator).tolist())
        num_pages = math.ceil(length / runner.spec.page_size)
        row = TokenSequence(
            str(number),
            Encoded(ids, max_tokens=8),
            Sampling(max_tokens=8, seed=0),
            pages=free_pages[:num_pages],
            num_computed=length - 1,
        )
        del free_pages[:num_pages]
        slices.append(Slice(row, num_tokens=1))
    return slices


def answer_of(runner: PagedRunner, slices: Sequence[Slice]) -> Tensor:
    """Return the states that a decode graph computes for the rows."""
    assert runner.decoder is not None
    answer = runner.decoder.decode(slices)
    assert answer is not None
    return answer[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("page_size", [16, 256, 512])
def test_a_kernel_is_found(dtype: torch.dtype, head_dim: int, page_size: int) -> None:
    """Our own kernel serves everywhere, torch's with large pages and a torch that is new enough."""
    shape = KVShape(1, num_heads=2, head_dim=head_dim)
    expected: Kernel = flash.in_triton
    if page_size % 256 == 0 and HAS_VARLEN:
        expected = flash.varlen

    assert flash.trial(flash.in_triton, CUDA, dtype, shape, page_size) is None
    chosen, reason = flash.choose_kernel(CUDA, dtype, shape, page_size)
    assert chosen is expected, reason


@pytest.mark.parametrize("kernel", [flash.in_triton, flash.varlen])
@pytest.mark.parametrize("window", [None, 1, 200])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 40])
@torch.inference_mode()
def test_a_span_in_place_equals_one_that_gathers(
    kernel: Kernel, window: int | None, kv_heads: int, count: int
) -> None:
    """A span in place attends to the same keys and values as one that gathers its pages.

    The rows are of unequal length, the queries grouped, with and without a window.
    """
    if kernel is flash.varlen and not HAS_VARLEN:
        pytest.skip(f"torch {torch.__version__} has no paged varlen_attn")
    torch.manual_seed(0)
    shape = KVShape(2, num_heads=kv_heads, head_dim=64)
    store = KVStore(shape, num_pages=12, page_size=256, dtype=HALF, device=CUDA)
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

    def attended(span: Span | PagedSpan) -> Tensor:
        return attend(
            AttentionPlan(positions.flatten(), positions.flatten(), (span,)),
            store,
            1,
            query=query,
            key=fresh,
            value=fresh,
            scale=0.125,
            window=window,
        )

    torch.testing.assert_close(attended(in_place), attended(gathering), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("lengths", [(5,), (300, 2, 513), (256, 257, 767, 1)])
@torch.inference_mode()
def test_a_graph_computes_what_a_plain_forward_does(
    model: tuple[str, Path], lengths: tuple[int, ...]
) -> None:
    """A graph, padded or not, computes the states of a plain forward over the same pages."""
    runner = load(model)
    # A row of length 1 has nothing computed, so it is no decoding row.
    slices = [part for part in rows(runner, lengths) if part.sequence.num_computed]

    # The graph's own tensor is written again by the next replay.
    states = answer_of(runner, slices).clone()

    batch = BatchBuilder(256, CUDA, is_prefix=True, kernel=runner.kernel).build(slices)
    expected = runner.net.hidden(batch.ids, batch.plan, runner.store)
    torch.testing.assert_close(states, expected, atol=0.06, rtol=0.03)


@torch.inference_mode()
def test_padding_touches_no_page_of_a_sequence(model: tuple[str, Path]) -> None:
    """Three rows in a graph of four write their own positions and the page of padding, no others.

    The page of padding lies behind the pages of all sequences.
    """
    runner = load(model)
    slices = rows(runner, (300, 17, 513))
    before = runner.store.keys.clone()

    answer_of(runner, slices)

    written = [[runner.spec.num_pages, 0]]
    for part in slices:
        page, offset = divmod(part.sequence.num_computed, 256)
        written.append([part.sequence.pages[page], offset])
    changed = (runner.store.keys != before).flatten(3).any(-1).any(0)
    assert changed.nonzero().tolist() == sorted(written)


def test_graphs_say_what_plain_steps_say(model: tuple[str, Path]) -> None:
    """Four rows of unequal prompts give the same tokens with graphs and without.

    With equal shapes a graph runs the very same kernels.
    """
    tasks = [
        greedy("a", max_tokens=24),
        greedy("Hello there", max_tokens=24),
        greedy(LONG, max_tokens=24),
        greedy(LONG[:254], max_tokens=24),
    ]

    with_graphs = generate_all(load(model), tasks)
    without = generate_all(load(model, cuda_graphs=False), tasks)

    assert with_graphs == without


def test_rows_that_come_and_go_are_decoded_to_their_ends(model: tuple[str, Path]) -> None:
    """Seven tasks in a batch of four rows are each decoded to their cap or an end token."""
    runner = load(model)
    lengths = [9, 1, 30, 4, 17, 2, 12]
    tasks = []
    for number, length in enumerate(lengths, start=1):
        tasks.append(greedy(LONG[: 100 * number], max_tokens=length))

    responses = generate_all(runner, tasks)

    for ids, length in zip(responses, lengths, strict=True):
        assert len(ids) == length or ids[-1] in runner.eos_ids


@pytest.mark.parametrize("step_tokens", [4096, 100])
def test_scores_are_those_of_full_precision_on_the_cpu(
    model: tuple[str, Path], step_tokens: int
) -> None:
    """Scores in half precision are near those of the CPU in full precision.

    Prompts are read whole and, where the model allows it, in chunks of 100 tokens.
    """
    task = Score(LONG, (" and runs away", "!"))
    on_cpu = load(model, device="cpu", dtype="float32", page_size=16)

    [scores] = score_all(load(model, step_tokens=step_tokens), [task])

    [exact_scores] = score_all(on_cpu, [task])
    for score, exact in zip(scores, exact_scores, strict=True):
        assert score.log_likelihood == pytest.approx(exact.log_likelihood, rel=0.03, abs=0.1)


def test_full_precision_gathers_and_equals_the_cpu(model: tuple[str, Path]) -> None:
    """In full precision no kernel or graph is used, and the tokens are the CPU's."""
    tasks = [greedy("Hello", max_tokens=12), greedy("12 * 7", max_tokens=12)]
    on_cpu = load(model, device="cpu", dtype="float32", page_size=16)
    runner = load(model, dtype="float32", page_size=16)

    assert runner.kernel is None
    assert not runner.has_graphs
    assert generate_all(runner, tasks) == generate_all(on_cpu, tasks)


@torch.inference_mode()
def test_compiled_layers_equal_plain_ones(model: tuple[str, Path]) -> None:
    """Compiled layers compute the states of plain ones, but for what bfloat16 rounds.

    They are as far from full precision as plain ones.
    """
    if model[0] != "hrm-text":
        pytest.skip("only HRM-Text compiles its layers")
    plain = load(model)
    compiled = load(model, compile_layers=True)
    compiled_net: HrmTextModel = compiled.net.model  # type: ignore[attr-defined]
    plain_net: HrmTextModel = plain.net.model  # type: ignore[attr-defined]
    assert compiled_net.halves != plain_net.halves, "it fell back to plain layers"

    slices = rows(compiled, (300, 2, 513))
    exact = load(model, dtype="float32")
    # All read the same stored keys and values.
    for runner in (plain, exact):
        runner.store.keys.copy_(compiled.store.keys)
        runner.store.values.copy_(compiled.store.values)

    batch = BatchBuilder(256, CUDA, is_prefix=True, kernel=exact.kernel).build(slices)
    expected = exact.net.hidden(batch.ids, batch.plan, exact.store)
    error = (answer_of(compiled, slices).float() - expected).norm()
    plain_error = (answer_of(plain, slices).float() - expected).norm()
    assert plain_error < 0.02 * expected.norm()
    assert error < 1.25 * plain_error
