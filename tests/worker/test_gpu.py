"""The same models on a CUDA device: equal tokens in float32, near ones in bfloat16.

The oracle is the CPU's answers in float32, which other tests compare with transformers. The store
is sized by free memory.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scripts.train.special_tokens import byte_tokenizer
from shared.messages import Generate, Sampling, Score
from shared.settings.settings import ModelEntry, Settings, SettingsError
from tests.fixtures.tiny_hrm_text import write_tiny
from tests.fixtures.worker.act_fixtures import Net, write_bundle
from tests.fixtures.worker.stepping import generate_all, score_all
from tests.fixtures.worker.tiny_causal import llama
from worker.engine.runner import Runner, RunnerOptions
from worker.host.loading import load_models
from worker.runners.registry import load_runner

pytestmark = pytest.mark.gpu

GPU = "cuda:0"
PROMPTS = ["2x + 3 = 9", "Hello", "Once upon a time there was", "x"]
CONTINUATIONS = (" world", "12 * 7", "!")


def write_hrm_text(path: Path) -> None:
    write_tiny(path)


def write_llama(path: Path) -> None:
    torch.manual_seed(1)
    llama().eval().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)


def write_brain(path: Path) -> None:
    byte_tokenizer().save_pretrained(path / "tokenizer")
    write_bundle(path, Net(vocab=264, max_seq_len=64), tokenizer="tokenizer")


@pytest.fixture(
    scope="module",
    params=[write_hrm_text, write_llama, write_brain],
    ids=["hrm-text", "llama", "brain"],
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    write: Callable[[Path], None] = request.param
    write(path)
    return path


def load(path: Path, device: str, dtype: str = "float32") -> Runner:
    options = RunnerOptions(path=str(path), device=device, dtype=dtype, max_batch=4, page_size=4)
    return load_runner("auto", options)


def tokens(runner: Runner, temperature: float = 0.0) -> list[list[int]]:
    """Return each prompt's response tokens, all prompts decoded together."""
    sampling = Sampling(max_tokens=12, seed=7, temperature=temperature)
    return generate_all(runner, [Generate(text, sampling) for text in PROMPTS])


def log_likelihoods(runner: Runner) -> list[float]:
    """Return the log-likelihoods of all continuations, prompt by prompt."""
    values = []
    for scores in score_all(runner, [Score(text, CONTINUATIONS) for text in PROMPTS]):
        for score in scores:
            values.append(score.log_likelihood)
    return values


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_float32_decodes_the_cpus_tokens(model: Path, temperature: float) -> None:
    """In float32 a GPU generates the CPU's tokens, greedy or sampled.

    The noise is a hash of integers, so it is the same on any device.
    """
    assert tokens(load(model, GPU), temperature) == tokens(load(model, "cpu"), temperature)


def test_float32_scores_are_the_cpus(model: Path) -> None:
    """In float32 a GPU's scores are the CPU's but for rounding."""
    expected = log_likelihoods(load(model, "cpu"))
    assert log_likelihoods(load(model, GPU)) == pytest.approx(expected, abs=1e-3)


def test_bfloat16_is_near(model: Path, record_property: Callable[[str, object], None]) -> None:
    """Scores in bfloat16 are near those in float32.

    The share of equal greedy tokens is only reported, since a random network nearly ties often.
    """
    reference = load(model, "cpu")
    half = load(model, GPU, "bfloat16")

    num_equal = 0
    num_pairs = 0
    for reference_ids, half_ids in zip(tokens(reference), tokens(half), strict=True):
        for reference_id, half_id in zip(reference_ids, half_ids, strict=False):
            num_equal += reference_id == half_id
            num_pairs += 1
    record_property("bfloat16_agreement", num_equal / num_pairs)

    assert log_likelihoods(half) == pytest.approx(log_likelihoods(reference), rel=0.1)


def test_a_worker_takes_cuda_by_itself_and_sizes_its_store(tmp_path: Path) -> None:
    """By default a worker on a GPU uses bfloat16 where it can, with room for a full batch.

    A cap on its memory that is too low stops the start.
    """
    write_tiny(tmp_path)
    settings = Settings(models=(ModelEntry(id="tiny", path=str(tmp_path)),), page_size=4)
    dtype = "float16"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        dtype = "bfloat16"

    [loaded] = load_models(settings)

    assert loaded.info.found.endswith(dtype)
    pages_per_window = math.ceil(loaded.runner.spec.context_window / 4)
    assert loaded.runner.spec.num_pages == settings.max_batch_size * pages_per_window

    with pytest.raises(SettingsError, match="max_gpu_memory_gb"):
        load_models(settings.model_copy(update={"max_gpu_memory_gb": 1e-6}))
