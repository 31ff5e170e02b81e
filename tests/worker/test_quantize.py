"""`--quantize int8` in every runner, against the same network in fp32 with weights and inputs
rounded by hooks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, HrmTextConfig, HrmTextForCausalLM
from transformers.pytorch_utils import Conv1D

from scripts.train.train_sample import byte_tokenizer
from shared.messages import Generate, Sampling, Score, TokenLogprob
from shared.settings.settings import Settings, SettingsError, model_entries
from tests.fixtures.worker.act_fixtures import Net, write_bundle
from tests.fixtures.worker.options import options_for
from tests.fixtures.worker.stepping import generate_all, run, score_all
from worker.engine.runner import Runner, RunnerOptions
from worker.host import loading
from worker.models import linear
from worker.models.act_bundle import load_act_bundle
from worker.models.linear import Int8Linear, PackedLinear
from worker.runners.registry import detect, load_runner

VOCABULARY = 264
LEAST_WEIGHTS = 1 << 16
PROMPTS = ["2x + 3 = 9", "Hello", "Once upon a time there was", "12 * 7"]
Logits = Callable[[tuple[int, ...], tuple[int, ...]], Tensor]
"""(prompt, continuation) -> logits [tokens, vocab] of a network that is not ours to replace layers
in."""


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
        types = torch.tensor([[1] * len(prompt) + [0] * len(tail)])
        return model(
            input_ids=torch.tensor([[*prompt, *tail]]), token_type_ids=types, use_cache=False
        ).logits[0]

    return model, logits


def write_gpt2(path: Path) -> tuple[nn.Module, Logits]:
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=256, n_layer=2, n_head=4)
    ).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    model.save_pretrained(path)
    return model, lambda prompt, tail: model(torch.tensor([[*prompt, *tail]])).logits[0]


def write_act(path: Path, *, causal: bool = False) -> tuple[nn.Module, Logits]:
    """In both directions a rounding that flips, of two near ones, reaches every token: there, the
    fewest layers."""
    net = Net(
        vocab=VOCABULARY, hidden=256, intermediate=256, max_seq_len=64, h_cycles=1, causal=causal
    )
    net = net if causal else replace(net, h_layers=1, l_cycles=1)
    write_bundle(path, net, tokenizer="tokenizer")
    model = load_act_bundle(path).model

    def logits(prompt: tuple[int, ...], tail: tuple[int, ...]) -> Tensor:
        ids = torch.tensor([[*prompt, *tail]])
        carry = model.initial_carry(1, ids.shape[1])
        return model.logits(model.forward_segment(ids, torch.tensor([ids.shape[1]]), carry).hidden)[
            0
        ]

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
    """A network whose layers are all large enough to gain would be too slow to test with."""
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
    """Brains score in one pass, which `logits` is, too."""
    own = {"scoring": "aios_compat"} if detect(str(path)) == "hrm-act" else {}
    return load_runner("auto", options_for(path, max_batch=4, page_size=4, **own, **options))


def expected_scores(runner: Runner, task: Score, logits: Logits) -> list[float]:
    encoded = runner.encode(task)
    scores = []
    for tail in encoded.continuations:
        with torch.no_grad():
            table = logits(encoded.prompt_ids, tail).double().log_softmax(-1)
        start = len(encoded.prompt_ids) - 1
        scores.append(sum(float(table[start + i, token]) for i, token in enumerate(tail)))
    return scores


def rounded(x: Tensor, peak: int) -> Tensor:
    """The nearest multiples, in each row, of that row's largest magnitude over `peak`."""
    step = x.abs().amax(-1, keepdim=True) / peak
    return (x / step).round() * step


def round_linears(model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
    """Weights of every linear layer to 63 steps a side, of each output channel, and inputs to 127,
    of each row."""
    handles = []
    for layer in model.modules():
        if isinstance(layer, nn.Linear | Conv1D) and layer.weight.numel() >= LEAST_WEIGHTS:
            outputs_first = (
                layer.weight.data.t() if isinstance(layer, Conv1D) else layer.weight.data
            )
            better = rounded(outputs_first, 63)
            layer.weight = nn.Parameter(
                better.t() if isinstance(layer, Conv1D) else better, requires_grad=False
            )
            handles.append(
                layer.register_forward_pre_hook(lambda _, args: (rounded(args[0], 127),))
            )
    assert len(handles) >= 6
    return handles


def test_scores_are_those_of_the_rounded_network(written: tuple[Path, nn.Module, Logits]) -> None:
    path, model, logits = written
    task = Score("What is 2 + 2?", ("four, I think", "x = 3"))
    runner = load(path, quantize="int8")
    found = [score.log_likelihood for score in score_all(runner, [task])[0]]
    whole = expected_scores(runner, task, logits)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    handles = round_linears(model)
    expected = expected_scores(runner, task, logits)
    for handle in handles:
        handle.remove()
    model.load_state_dict(kept)
    gaps = [abs(one - other) for one, other in zip(found, expected, strict=True)]
    assert max(gaps) < 0.2 * max(
        abs(one - other) for one, other in zip(whole, expected, strict=True)
    ), (gaps, whole)
    assert found == pytest.approx(whole, rel=0.05)
    assert "int8" in runner.spec.found


def test_an_int8_batch_says_what_each_says_alone(written: tuple[Path, nn.Module, Logits]) -> None:
    """P3, T5."""
    runner = load(written[0], quantize="int8")
    tasks = [
        Generate(text, Sampling(max_tokens=8, seed=i, temperature=0.9))
        for i, text in enumerate(PROMPTS)
    ]
    together = generate_all(runner, tasks)
    assert together == [generate_all(runner, [task])[0] for task in tasks]


@pytest.mark.parametrize("write", [write_hrm_text, write_gpt2, write_causal_act])
def test_int8_says_the_same_in_every_path_to_the_last_bit(
    write: Callable[[Path], tuple[nn.Module, Logits]], tmp_path: Path
) -> None:
    """P3: one more bit in what is rounded to int8 soon changes a token; logprobs show it at
    once."""
    torch.manual_seed(2)
    for place in (tmp_path, tmp_path / "tokenizer"):
        byte_tokenizer().save_pretrained(place)
    write(tmp_path)
    tasks = [
        Generate(
            text * 2, Sampling(max_tokens=12, seed=i, temperature=0.9, logprobs=3, ignore_eos=True)
        )
        for i, text in enumerate(PROMPTS)
    ]
    options = RunnerOptions(path=str(tmp_path), max_batch=4, quantize="int8", prefix_cache=False)

    def told(
        tasks: list[Generate], said: list[list[int]], **changes: Any
    ) -> list[list[tuple[int, TokenLogprob]]]:
        answers: list[list[tuple[int, TokenLogprob]]] = [[] for _ in tasks]
        for part in run(load_runner("auto", replace(options, **changes)), tasks, said):
            answers[int(part.key)] += zip(part.ids, part.logprobs, strict=True)
        return answers

    nothing: list[list[int]] = [[] for _ in tasks]
    alone = [told([task], [[]])[0] for task in tasks]
    assert all(len(items) == 12 for items in alone)
    assert told(tasks, nothing) == alone, "batched"
    assert told(tasks, nothing, step_tokens=7) == alone, "chunked, where prompts may be"
    half = [[token for token, _ in items[:6]] for items in alone]
    assert told(tasks, half) == [items[6:] for items in alone], "resumed"
    assert told(tasks * 2, nothing * 2, prefix_cache=True)[len(tasks) :] == alone, (
        "over known prompts"
    )


def recorded(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The weight of every layer of `kind` that is made from now on."""
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
    packed = recorded(PackedLinear, monkeypatch)
    path, model, logits = written
    runner = load(path)
    task = Score("What is 2 + 2?", ("four, I think", "x = 3"))
    found = [score.log_likelihood for score in score_all(runner, [task])[0]]
    assert found == pytest.approx(expected_scores(runner, task, logits), abs=1e-3)
    assert packed or type(model).__name__ == "ActModel", (
        "only the test brain has no layer wide enough"
    )


def test_the_setting_reaches_each_model_and_a_model_may_differ(
    written: tuple[Path, nn.Module, Logits], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recorded(Int8Linear, monkeypatch)
    ids = {"as-the-fleet": None, "own": "none"}
    models = [{"id": name, "path": str(written[0]), "quantize": own} for name, own in ids.items()]
    settings = Settings(models=models, quantize="int8", device="cpu", context_window=64)
    counts = []
    for entry in model_entries(settings):
        made.clear()
        loading.load_models(settings.model_copy(update={"models": (entry,)}))
        counts.append(len(made))
    assert counts[0] >= 6 and counts[1] == 0


def test_int8_elsewhere_than_on_the_cpu_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_act(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    monkeypatch.setattr(loading.device, "select_device", lambda wanted: torch.device("meta"))
    settings = Settings(model_path=str(tmp_path), quantize="int8", context_window=64)
    with pytest.raises(SettingsError, match="int8 weights are for the CPU"):
        loading.load_models(settings)
