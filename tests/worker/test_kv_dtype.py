"""Keys and values in fewer bits: more of them fit, and every path still says the same.

The rounding itself is tested in `test_native.py`, and attention over rounded keys in
`test_attention.py` and `test_tiles.py`.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scripts.bench.model import causal, hrm_text
from scripts.train.special_tokens import byte_tokenizer
from shared.messages import Generate, Sampling, Score, TokenLogprob
from shared.settings.settings import ModelEntry, Settings, SettingsError, resolve
from shared.settings.types import Dtype
from shared.tasks.runner_options import KVDtype
from tests.fixtures.worker.act_fixtures import Net, write_bundle
from tests.fixtures.worker.options import options_for
from tests.fixtures.worker.paths import check_paths
from tests.fixtures.worker.stepping import run, score_all
from worker.engine.runner import RunnerOptions
from worker.host import loading
from worker.host.fingerprint import fingerprint
from worker.kv.paged_native import NativeSpan, obstacle
from worker.kv.store import KVShape, KVStore
from worker.models import linear
from worker.models.errors import ModelFormatError
from worker.native import library as native
from worker.native.library import library
from worker.runners.causal_net import CausalNet
from worker.runners.paged import PagedRunner, stored_dtype
from worker.runners.registry import load_runner

LOSSY: tuple[KVDtype, ...] = ("bfloat16", "int8")
KV_DTYPES: tuple[KVDtype, ...] = ("auto", *LOSSY)
PROMPTS = ["2x + 3 = 9", "Hello", "Once upon a time there was a", "12 * 7"]
MIB = 2**20
Write = Callable[[Path], Path]


def write_hrm_text(path: Path) -> Path:
    return hrm_text(path, "tiny")


def write_llama(path: Path) -> Path:
    return causal(path, "tiny")


def write_brain(path: Path) -> Path:
    """Write a causal brain with a sliding window."""
    byte_tokenizer().save_pretrained(path / "tokenizer")
    net = Net(vocab=264, hidden=64, max_seq_len=96, window=24, causal=True)
    write_bundle(path, net, tokenizer="tokenizer")
    return path


WRITERS = [write_hrm_text, write_llama, write_brain]


def load(path: Path, **options: Any) -> PagedRunner:
    runner = load_runner("auto", options_for(path, **options))
    assert isinstance(runner, PagedRunner)
    return runner


@pytest.mark.parametrize(
    ("kv_dtype", "bytes_of_head"), [("auto", 16 * 4), ("bfloat16", 16 * 2), ("int8", 16 + 4)]
)
@pytest.mark.parametrize("write", WRITERS[:2])
def test_more_pages_fit_into_the_same_memory(
    write: Write, kv_dtype: KVDtype, bytes_of_head: int, tmp_path: Path
) -> None:
    """In int8 a head of 16 has its scale in 4 bytes more."""
    path = write(tmp_path)
    runner = load(path, max_batch=64, kv_bytes=8 * MIB, kv_dtype=kv_dtype)

    shape = runner.net.kv_shape
    bytes_of_page = 16 * 2 * shape.num_slots * shape.num_heads * bytes_of_head
    assert runner.spec.num_pages == 8 * MIB // bytes_of_page
    allocated = runner.store.keys.nbytes + runner.store.values.nbytes
    assert allocated == runner.spec.num_pages * bytes_of_page
    assert ("keys and values in" in runner.spec.found) == (kv_dtype != "auto")


def test_a_head_of_64_costs_half_and_little_more_than_a_quarter() -> None:
    shape = KVShape(32, num_heads=8, head_dim=64)
    sizes = []
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        sizes.append(shape.bytes_per_token(dtype))
    assert sizes == [131_072, 65_536, 34_816]


def test_a_window_that_fits_no_longer_says_how_it_would(tmp_path: Path) -> None:
    """The window of 1,280 tokens needs 5 MiB in fp32, and 1.6 in int8."""
    path = write_hrm_text(tmp_path)
    with pytest.raises(ModelFormatError, match=r"kv_memory_mib allows 2\. .*kv_dtype"):
        load(path, kv_bytes=2 * MIB)
    assert load(path, kv_bytes=2 * MIB, kv_dtype="int8").spec.num_pages >= 1280 // 16


def network(dtype: torch.dtype, device: str = "cpu") -> Any:
    return SimpleNamespace(dtype=dtype, device=torch.device(device))


def test_only_fewer_bits_are_accepted_and_only_on_a_cpu() -> None:
    single, half, other_half = torch.float32, torch.bfloat16, torch.float16
    for dtype in (single, half, other_half):
        assert stored_dtype("auto", network(dtype)) == dtype
        assert stored_dtype("int8", network(dtype)) == torch.int8
    assert stored_dtype("bfloat16", network(single)) == half
    assert stored_dtype("bfloat16", network(half)) == half
    assert stored_dtype("bfloat16", network(half, "cuda")) == half
    with pytest.raises(ModelFormatError, match=r"bfloat16 are no smaller .* in float16"):
        stored_dtype("bfloat16", network(other_half))
    for kv_dtype, dtype in (("bfloat16", single), ("int8", half)):
        with pytest.raises(ModelFormatError, match=rf"{kv_dtype} are for the CPU.* on cuda"):
            stored_dtype(kv_dtype, network(dtype, "cuda"))  # type: ignore[arg-type]


def test_it_is_set_for_all_models_or_for_one(tmp_path: Path) -> None:
    llama = {"id": "llama", "path": "x", "runner": "causal"}
    brain = {"id": "brain", "path": "y", "runner": "hrm-act", "options": {"kv_dtype": "INT8"}}
    settings = Settings.model_validate({"models": [llama, brain], "kv_dtype": "bfloat16"})

    def chosen(settings: Settings, number: int) -> RunnerOptions:
        entry = settings.models[number]
        return loading.runner_options(entry, settings, entry.runner)

    assert chosen(settings, 0).own.kv_dtype == "bfloat16"  # type: ignore[union-attr]
    assert chosen(settings, 1).own.kv_dtype == "int8"  # type: ignore[union-attr]
    by_flag = resolve({"options": ["kv-dtype=int8"], "model_path": "z"}, {}, None).settings
    assert by_flag.options[0].name == "kv_dtype"
    with pytest.raises(SettingsError, match=r"'auto', 'bfloat16' or 'int8'.*'int4'"):
        resolve({"kv_dtype": "int4"}, {}, None)


def test_a_setting_that_a_device_cannot_have_refuses_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the model, and is one line."""
    path = write_hrm_text(tmp_path)
    settings = Settings(
        models=(ModelEntry(id="mine", path=str(path)),), dtype="float16", kv_dtype="bfloat16"
    )
    with pytest.raises(SettingsError, match=r"model 'mine': .*kv_dtype") as refused:
        loading.load_models(settings)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["causal", "hrm-text", "hrm-act"])
def test_jobs_stay_with_workers_that_round_alike(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rounding is another model. With rounding, last bits count, too."""

    def prints(kv_dtype: KVDtype, dtype: Dtype = "float32") -> set[str]:
        options = options_for("net", kind, kv_dtype=kv_dtype, dtype=dtype)
        found = {fingerprint(kind, options)}
        with monkeypatch.context() as patches:
            patches.setattr(native, "library", lambda: None)
            patches.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
            found.add(fingerprint(kind, options))
        return found

    auto, bfloat16, int8 = (prints(kv_dtype) for kv_dtype in KV_DTYPES)
    assert (len(auto), len(bfloat16), len(int8)) == (1, 2, 2)
    assert len(auto | bfloat16 | int8) == 5
    assert len(prints("bfloat16", dtype="bfloat16")) == 1, "nothing is rounded"


Answer = list[tuple[int, TokenLogprob]]
"""The tokens of an answer with their log-probabilities."""


@pytest.mark.skipif(library() is None, reason="no kernels: torch's products depend on the batch")
@pytest.mark.parametrize("flash_attention", [True, False])
@pytest.mark.parametrize("kv_dtype", LOSSY)
@pytest.mark.parametrize("write", WRITERS)
def test_every_path_says_the_same_to_the_last_bit(
    write: Write, kv_dtype: KVDtype, flash_attention: bool, tmp_path: Path
) -> None:
    """P3: answers and log-probabilities are bit for bit the same however they are computed.

    One other bit in what is rounded changes a log-probability at once.
    """
    path = write(tmp_path)
    options = options_for(
        path,
        max_batch=4,
        prefix_cache=False,
        kv_dtype=kv_dtype,
        flash_attention=flash_attention,
        context_window=96,
    )
    check_paths(options, PROMPTS)


@pytest.mark.skipif(library() is None, reason="no kernels")
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_no_product_depends_on_the_batch(quantize: str, tmp_path: Path) -> None:
    """Keys are rounded from products, so small layers are computed by our kernels, too.

    Without rounding torch computes them, which is faster.
    """
    path = write_llama(tmp_path)

    def keeps_rows_apart(kv_dtype: KVDtype) -> bool:
        runner = load(path, quantize=quantize, kv_dtype=kv_dtype)
        assert isinstance(runner.net, CausalNet)
        return linear.keeps_rows_apart(runner.net.model)

    assert not keeps_rows_apart("auto")
    assert keeps_rows_apart("bfloat16")
    assert keeps_rows_apart("int8")


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("write", WRITERS)
def test_a_continuation_is_scored_as_it_is_generated(
    write: Write, kv_dtype: KVDtype, tmp_path: Path
) -> None:
    """A scored continuation is not stored, and yet its tokens see each other as if it were.

    Unrounded ones would make gaps of 1e-3 and more. SDPA sums up in another order than decoding, so
    now and then a number is rounded the other way, and one gap in some is larger than the rest.
    """
    runner = load(write(tmp_path), kv_dtype=kv_dtype, context_window=96)
    sampling = Sampling(max_tokens=20, seed=0, temperature=0.0, logprobs=0, ignore_eos=True)
    gaps = []
    for first in range(20, 25):
        prompt = tuple(range(first, first + 30))
        ids: list[int] = []
        log_likelihood = 0.0
        for emission in run(runner, [Generate(prompt, sampling)], [[]]):
            ids += emission.ids
            log_likelihood += sum(token.logprob for token in emission.logprobs)

        [[score]] = score_all(runner, [Score(prompt, (tuple(ids),))])
        assert (score.num_tokens, score.is_greedy) == (20, True)
        gaps.append(abs(score.log_likelihood - log_likelihood))
    assert statistics.median(gaps) < 5e-5, gaps


@pytest.mark.skipif(library() is None, reason="no kernels: torch's products depend on the batch")
@pytest.mark.parametrize("kv_dtype", LOSSY)
@pytest.mark.parametrize("write", WRITERS)
def test_scores_do_not_depend_on_what_else_is_scored(
    write: Write, kv_dtype: KVDtype, tmp_path: Path
) -> None:
    """P3: a continuation has the same score to the last bit alone, with others, and in parts."""
    path = write(tmp_path)
    tails = []
    for number, length in enumerate((3, 1, 9, 17, 30, 2)):
        tails.append(tuple(range(30 + number, 30 + number + length)))
    contexts = [tuple(range(20, 21)), tuple(range(20, 50)), tuple(range(40, 90, 2))]
    together = [Score(context, tuple(tails)) for context in contexts]

    def scores(tasks: list[Score], **options: Any) -> list[float]:
        runner = load(path, kv_dtype=kv_dtype, context_window=96, **options)
        found = []
        for parts in score_all(runner, tasks):
            found += [part.log_likelihood for part in parts]
        return found

    alone: list[float] = []
    for context in contexts:
        for tail in tails:
            alone += scores([Score(context, (tail,))])
    assert scores(together) == alone
    assert scores(together, step_tokens=20) == alone


@pytest.mark.parametrize("kv_dtype", LOSSY)
@pytest.mark.parametrize("write", WRITERS)
def test_little_is_lost(write: Write, kv_dtype: KVDtype, tmp_path: Path) -> None:
    """Scores are near those of unrounded keys, and not the same."""
    path = write(tmp_path)
    tasks = [Score(text, (" four", " five or six and a half")) for text in PROMPTS]
    gaps = []
    exact = score_all(load(path, context_window=96), tasks)
    rounded = score_all(load(path, context_window=96, kv_dtype=kv_dtype), tasks)
    for scores, others in zip(exact, rounded, strict=True):
        for score, other in zip(scores, others, strict=True):
            gaps.append(abs(score.log_likelihood - other.log_likelihood) / score.num_tokens)
    assert 1e-6 < sum(gaps) / len(gaps) < 0.05


@pytest.mark.skipif(library() is None, reason="no kernels")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_reads_them_where_they_lie(dtype: Dtype, tmp_path: Path) -> None:
    path = write_hrm_text(tmp_path)
    assert load(path, dtype=dtype, kv_dtype="int8").is_native


@pytest.mark.skipif(library() is None, reason="no kernels")
def test_a_kernel_that_reads_them_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial is made with the dtype of the store."""
    shape = KVShape(1, num_heads=2, head_dim=64)
    seen = []

    def wrong(span: NativeSpan, store: KVStore, slot: int, **options: Any) -> torch.Tensor:
        seen.append(store.keys.dtype)
        return torch.zeros_like(options["query"])

    monkeypatch.setattr(NativeSpan, "attend", wrong)
    problem = obstacle(torch.float32, shape, 16, torch.int8)
    assert seen == [torch.int8]
    assert "is off by" in problem
