"""`--quantize int8` in every runner.

The oracle is the same network in fp32, whose weights and inputs hooks round.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, HrmTextConfig, HrmTextForCausalLM
from transformers.pytorch_utils import Conv1D

from scripts.train.special_tokens import byte_tokenizer
from shared.messages import Generate, Sampling, Score
from shared.settings.settings import Settings, SettingsError, model_entries
from tests.fixtures.worker.act_fixtures import Net, write_bundle
from tests.fixtures.worker.int8 import int8_layer, weight_peak
from tests.fixtures.worker.options import options_for
from tests.fixtures.worker.paths import check_paths
from tests.fixtures.worker.stepping import generate_all, score_all
from worker.engine.runner import Runner, RunnerOptions
from worker.host import loading
from worker.models import linear
from worker.models.act_bundle import load_act_bundle
from worker.models.linear import PackedLinear, PanelLinear
from worker.native import operators
from worker.runners.registry import detect, load_runner

VOCABULARY = 264
LEAST_WEIGHTS = 1 << 16
PROMPTS = ["2x + 3 = 9", "Hello", "Once upon a time there was", "12 * 7"]
Logits = Callable[[tuple[int, ...], tuple[int, ...]], Tensor]
"""Returns the logits [tokens, vocab] of a prompt and its continuation, from a network whose layers
no runner has replaced."""


def write_hrm_text(path: Path) -> tuple[nn.Module, Logits]:
    config = HrmTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        head_dim=64,
        H_cycles=1,
        L_cycles=2,
        max_position_embeddings=64,
        initializer_range=0.08,
        bos_token_id=1,
        eos_token_id=3,
        pad_token_id=0,
    )
    model = HrmTextForCausalLM(config).eval()
    model.save_pretrained(path)

    def logits(prompt: tuple[int, ...], tail: tuple[int, ...]) -> Tensor:
        ids = torch.tensor([[*prompt, *tail]])
        types = torch.tensor([[1] * len(prompt) + [0] * len(tail)])
        return model(input_ids=ids, token_type_ids=types, use_cache=False).logits[0]

    return model, logits


def write_gpt2(path: Path) -> tuple[nn.Module, Logits]:
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=256, n_layer=2, n_head=4)
    model = GPT2LMHeadModel(config).eval()
    # With the initial weights all tokens are almost equally likely.
    for parameter in model.parameters():
        parameter.data.mul_(3)
    model.save_pretrained(path)

    def logits(prompt: tuple[int, ...], tail: tuple[int, ...]) -> Tensor:
        return model(torch.tensor([[*prompt, *tail]])).logits[0]

    return model, logits


def write_act(path: Path, *, causal: bool = False) -> tuple[nn.Module, Logits]:
    """Write a test brain.

    A bidirectional one has the fewest layers: there a rounding that flips reaches every token.
    """
    net = Net(
        vocab=VOCABULARY, hidden=256, intermediate=256, max_seq_len=64, h_cycles=1, causal=causal
    )
    if not causal:
        net = replace(net, h_layers=1, l_cycles=1)
    write_bundle(path, net, tokenizer="tokenizer")
    model = load_act_bundle(path).model

    def logits(prompt: tuple[int, ...], tail: tuple[int, ...]) -> Tensor:
        ids = torch.tensor([[*prompt, *tail]])
        length = ids.shape[1]
        carry = model.initial_carry(1, length)
        out = model.forward_segment(ids, torch.tensor([length]), carry)
        return model.logits(out.hidden)[0]

    return model, logits


def write_causal_act(path: Path) -> tuple[nn.Module, Logits]:
    return write_act(path, causal=True)


WRITERS = {
    "hrm-text": write_hrm_text,
    "gpt2": write_gpt2,
    "act": write_act,
    "causal-act": write_causal_act,
}


@pytest.fixture(autouse=True)
def int8_in_small_nets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantize smaller layers than in production, where a network would be too slow to test."""
    monkeypatch.setattr(linear, "MIN_INT8_WEIGHTS", LEAST_WEIGHTS)


@pytest.fixture(scope="module", params=WRITERS.values(), ids=WRITERS)
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, nn.Module, Logits]:
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("net")
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(path)
    tokenizer.save_pretrained(path / "tokenizer")
    return path, *request.param(path)


def load(path: Path, **options: str) -> Runner:
    """Load a runner. A brain scores in one pass, as `logits` does."""
    if detect(str(path)) == "hrm-act":
        options["scoring"] = "aios_compat"
    return load_runner("auto", options_for(path, max_batch=4, page_size=4, **options))


def log_likelihoods(runner: Runner, task: Score) -> list[float]:
    [scores] = score_all(runner, [task])
    return [score.log_likelihood for score in scores]


def expected_scores(runner: Runner, task: Score, logits: Logits) -> list[float]:
    encoded = runner.encode(task)
    scores = []
    for tail in encoded.continuations:
        with torch.no_grad():
            log_probs = logits(encoded.prompt_ids, tail).double().log_softmax(-1)
        # The last token of the prompt predicts the first of the continuation.
        start = len(encoded.prompt_ids) - 1
        total = 0.0
        for offset, token in enumerate(tail):
            total += float(log_probs[start + offset, token])
        scores.append(total)
    return scores


def largest_gap(scores: list[float], others: list[float]) -> float:
    return max(abs(score - other) for score, other in zip(scores, others, strict=True))


def rounded(x: Tensor, peak: int) -> Tensor:
    """Round each row to multiples of its largest magnitude divided by `peak`."""
    step = x.abs().amax(-1, keepdim=True) / peak
    return (x / step).round() * step


def round_inputs(layer: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (rounded(args[0], peak=127),)


def round_linears(model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
    """Round the weights and the inputs of every large linear layer. Return the hooks.

    Weights have 127 steps a side in each output channel, or 63 without VNNI, inputs 127 in each row.
    """
    peak = weight_peak(int8_layer())
    handles = []
    for layer in model.modules():
        if not isinstance(layer, nn.Linear | Conv1D) or layer.weight.numel() < LEAST_WEIGHTS:
            continue
        weight = layer.weight.data
        if isinstance(layer, Conv1D):
            # It stores the weights with the inputs first.
            weight = rounded(weight.t(), peak).t()
        else:
            weight = rounded(weight, peak)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        handles.append(layer.register_forward_pre_hook(round_inputs))
    assert len(handles) >= 6
    return handles


def test_scores_are_those_of_the_rounded_network(written: tuple[Path, nn.Module, Logits]) -> None:
    """Scores of int8 weights are five times closer to the rounded network than fp32 scores are."""
    path, model, logits = written
    task = Score("What is 2 + 2?", ("four, I think", "x = 3"))
    runner = load(path, quantize="int8")
    scores = log_likelihoods(runner, task)
    unrounded = expected_scores(runner, task, logits)

    # The fixture's network serves the other tests of the module, too: it is restored.
    weights = deepcopy(model.state_dict())
    handles = round_linears(model)
    expected = expected_scores(runner, task, logits)
    for handle in handles:
        handle.remove()
    model.load_state_dict(weights)

    gap = largest_gap(scores, expected)
    assert gap < 0.2 * largest_gap(unrounded, expected), (scores, unrounded)
    assert scores == pytest.approx(unrounded, rel=0.05)
    assert "int8" in runner.spec.found


def test_an_int8_batch_says_what_each_says_alone(written: tuple[Path, nn.Module, Logits]) -> None:
    """P3, T5: A request of an int8 model gets the same answer in a batch as alone."""
    runner = load(written[0], quantize="int8")
    tasks = []
    for seed, text in enumerate(PROMPTS):
        tasks.append(Generate(text, Sampling(max_tokens=8, seed=seed, temperature=0.9)))

    together = generate_all(runner, tasks)

    for task, ids in zip(tasks, together, strict=True):
        assert generate_all(runner, [task]) == [ids]


@pytest.mark.parametrize("write", [write_hrm_text, write_gpt2, write_causal_act])
def test_int8_says_the_same_in_every_path_to_the_last_bit(
    write: Callable[[Path], tuple[nn.Module, Logits]], tmp_path: Path
) -> None:
    """P3: int8 answers and log-probabilities are bit for bit the same however they are computed.

    One other bit in what is rounded soon changes a token, and changes a log-probability at once.
    """
    torch.manual_seed(2)
    for directory in (tmp_path, tmp_path / "tokenizer"):
        byte_tokenizer().save_pretrained(directory)
    write(tmp_path)
    options = RunnerOptions(path=str(tmp_path), max_batch=4, quantize="int8", prefix_cache=False)
    check_paths(options, PROMPTS)


def recorded(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return a list that grows by the weight of every layer of `kind` made from now on."""
    weights: list[Tensor] = []
    real = kind.__init__

    def init(self: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
        weights.append(weight)
        real(self, weight, bias)

    monkeypatch.setattr(kind, "__init__", init)
    return weights


def test_packed_fp32_scores_as_the_network_itself(
    written: tuple[Path, nn.Module, Logits], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of packed fp32 layers are the network's own."""
    kind = PackedLinear if operators.library() is None else PanelLinear
    packed = recorded(kind, monkeypatch)
    path, model, logits = written
    runner = load(path)
    task = Score("What is 2 + 2?", ("four, I think", "x = 3"))

    scores = log_likelihoods(runner, task)

    assert scores == pytest.approx(expected_scores(runner, task, logits), abs=1e-3)
    assert packed or type(model).__name__ == "ActModel", (
        "only the test brain has no layer wide enough"
    )


def test_the_setting_reaches_each_model_and_a_model_may_differ(
    written: tuple[Path, nn.Module, Logits], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that says nothing is quantized as the fleet is, and one may choose otherwise."""
    weights = recorded(int8_layer(), monkeypatch)
    path = str(written[0])
    settings = Settings(
        models=[
            {"id": "as-the-fleet", "path": path, "quantize": None},
            {"id": "own", "path": path, "quantize": "none"},
        ],
        quantize="int8",
        device="cpu",
        context_window=64,
    )
    as_the_fleet, exception = model_entries(settings)

    loading.load_models(settings.model_copy(update={"models": (as_the_fleet,)}))
    assert len(weights) >= 6

    weights.clear()
    loading.load_models(settings.model_copy(update={"models": (exception,)}))
    assert weights == []


def test_int8_elsewhere_than_on_the_cpu_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8 weights on another device than the CPU are a settings error."""
    write_act(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    monkeypatch.setattr(loading.device, "select_device", lambda wanted: torch.device("meta"))
    settings = Settings(model_path=str(tmp_path), quantize="int8", context_window=64)

    with pytest.raises(SettingsError, match="int8 weights are for the CPU"):
        loading.load_models(settings)
