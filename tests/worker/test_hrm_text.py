"""HRM-Text: weights, prefill, decoding, scoring and the prompt format.

The oracle is transformers' own HrmTextForCausalLM.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import HrmTextForCausalLM

from scripts.train.special_tokens import byte_tokenizer
from shared.errors import FleetError, InvalidRequest
from shared.messages import Failed, Generate, Sampling, Score
from shared.settings.settings import ModelEntry, Settings, SettingsError
from shared.tasks.runner_options import OptionError
from tests.fixtures.tiny_hrm_text import PROMPTS, own_logits, write_tiny
from tests.fixtures.worker.options import options_for
from tests.fixtures.worker.stepping import generate_all, run, score_all
from worker.engine import scoring
from worker.engine.runner import RunnerOptions
from worker.engine.sequence import Slice, StepResult
from worker.host.loading import load_models
from worker.kv.batch import Batch
from worker.models.errors import ModelFormatError
from worker.runners import hrm_text, paged
from worker.runners.paged import PagedRunner
from worker.runners.registry import detect


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, HrmTextForCausalLM]:
    path = tmp_path_factory.mktemp("hrm-text")
    return path, write_tiny(path)


@pytest.fixture
def runner(tiny: tuple[Path, HrmTextForCausalLM]) -> PagedRunner:
    return hrm_text.load(RunnerOptions(path=str(tiny[0]), max_batch=4, page_size=4))


def test_state_dict_names_and_slots(tiny: tuple[Path, HrmTextForCausalLM]) -> None:
    """Parameters have the export's names and shapes (T1).

    There are layers x (H + H x L) cache slots (T7).
    """
    tensors = load_file(tiny[0] / "model.safetensors")
    assert tensors["model.L_module.layers.1.attn.gqkv_proj.weight"].shape == (4 * 48, 48)
    assert tensors["model.H_module.layers.0.mlp.gate_up_proj.weight"].shape == (2 * 80, 48)

    model = hrm_text.load_model(tiny[0])
    assert set(dict(model.named_parameters())) == set(tensors)
    assert model.shape.num_kv_slots == 2 * (2 + 2 * 3)
    assert detect(str(tiny[0])) == "hrm-text"


def test_greedy_batch_equals_transformers_generate(
    tiny: tuple[Path, HrmTextForCausalLM], runner: PagedRunner
) -> None:
    """Unequal prompts decoded together equal transformers' generate on each alone (T3)."""
    tasks = [Generate(text, Sampling(max_tokens=12, seed=0, temperature=0.0)) for text in PROMPTS]

    together = generate_all(runner, tasks)

    for task, ids in zip(tasks, together, strict=True):
        prompt = torch.tensor([runner.encode(task).prompt_ids])
        out = tiny[1].generate(
            prompt,
            token_type_ids=torch.ones_like(prompt),
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=12,
            do_sample=False,
        )
        assert ids == out[0, prompt.shape[1] :].tolist()


def test_a_replayed_response_goes_on_as_if_never_cut(runner: PagedRunner) -> None:
    """After a takeover the logged tokens are run, not sampled, and the rest is the same."""
    task = Generate(PROMPTS[0], Sampling(max_tokens=12, seed=5, temperature=1.0))
    [whole] = generate_all(runner, [task])
    assert len(whole) == 12

    for num_logged in (1, 5, 11):
        [ids] = generate_all(runner, [task], replayed=[whole[:num_logged]])
        assert ids == whole


def log_likelihood(logits: Tensor, num_context: int, tail: tuple[int, ...]) -> float:
    """Return the log-likelihood of the `tail` behind the first `num_context` tokens."""
    logprobs = logits.double().log_softmax(-1)
    total = 0.0
    for index, token in enumerate(tail):
        # The logits that predict a token are those of the position before it.
        total += float(logprobs[num_context - 1 + index, token])
    return total


def test_scores_equal_token_by_token_and_transformers(
    tiny: tuple[Path, HrmTextForCausalLM], runner: PagedRunner
) -> None:
    """A prompt is read in both directions and a continuation causally (T7, X18).

    A pass in which a continuation sees itself in both directions gives other values.
    """
    _, network = tiny
    task = Score("What is 2 + 2?", ("4", "four, I think", "x = 3"))
    encoded = runner.encode(task)
    prompt = encoded.prompt_ids

    [scores] = score_all(runner, [task])

    for tail, score in zip(encoded.continuations, scores, strict=True):
        expected = log_likelihood(own_logits(network, prompt, tail), len(prompt), tail)
        assert score.log_likelihood == pytest.approx(expected, abs=1e-4)
        assert score.num_tokens == len(tail)

        leaking = own_logits(network, (*prompt, *tail), ())
        leaked = log_likelihood(leaking, len(prompt), tail)
        assert abs(leaked - expected) > 1e-2, "the test could not tell the two apart"


def test_the_greedy_flag_tells_what_greedy_decoding_says(runner: PagedRunner) -> None:
    """A continuation is greedy if greedy decoding generates just it."""
    task = Generate("12 * 7", Sampling(max_tokens=3, seed=0, temperature=0.0))
    [greedy] = generate_all(runner, [task])
    other = [*greedy[:-1], (greedy[-1] + 1) % 200]

    [scores] = score_all(runner, [Score("12 * 7", (tuple(greedy), tuple(other)))])

    greedy_score, other_score = scores
    assert greedy_score.is_greedy
    assert not other_score.is_greedy
    assert greedy_score.log_likelihood > other_score.log_likelihood


def test_prompt_format_and_conditions(runner: PagedRunner) -> None:
    """A prompt is boq, the conditions in their given order, the stripped text, and eoq.

    The name of a special token inside a prompt is plain text.
    """
    tokenizer = byte_tokenizer()
    task = Generate("  hi ", Sampling(max_tokens=4, seed=0), condition="synth,cot")
    expected = tokenizer(
        "<|im_start|><|quad_end|><|object_ref_end|>hi<|im_end|>", add_special_tokens=False
    )
    assert list(runner.encode(task).prompt_ids) == expected["input_ids"]

    injected = runner.encode(Generate("<|im_end|>", Sampling(max_tokens=4, seed=0)))
    assert injected.prompt_ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1

    with pytest.raises(InvalidRequest, match="Unknown condition 'loud'"):
        runner.encode(Generate("hi", Sampling(max_tokens=4, seed=0), condition="loud"))


def test_conditions_are_named_once(runner: PagedRunner) -> None:
    """A condition named twice is refused, so that marks cannot fill the context window."""
    with pytest.raises(InvalidRequest, match="once"):
        runner.encode(Generate("hi", Sampling(max_tokens=4, seed=0), condition="direct,direct"))


def test_raw_adds_nothing_and_reads_marks(runner: PagedRunner) -> None:
    """With the condition `raw` the caller writes the marks, and blanks are kept.

    Continuations are read in the same way. No other condition may stand beside `raw`.
    """
    text = "<|im_start|><|quad_start|> hi <|im_end|>"
    expected = tuple(byte_tokenizer()(text, add_special_tokens=False)["input_ids"])
    task = Generate(text, Sampling(max_tokens=4, seed=0), condition="raw")
    assert runner.encode(task).prompt_ids == expected

    scored = runner.encode(Score(text, ("4<|box_end|>",), condition="raw"))
    assert scored.prompt_ids == expected
    assert scored.continuations[0][-1] in runner.eos_ids

    with pytest.raises(InvalidRequest, match="raw alone"):
        runner.encode(Generate("hi", Sampling(max_tokens=4, seed=0), condition="raw,cot"))
    with pytest.raises(InvalidRequest, match="empty"):
        runner.encode(Generate("", Sampling(max_tokens=4, seed=0), condition="raw"))


def test_each_model_may_have_a_default_condition(tiny: tuple[Path, HrmTextForCausalLM]) -> None:
    """A model's own condition outranks the fleet's; a request's outranks both."""
    path = str(tiny[0])
    entries = (
        ModelEntry(id="own", path=path, condition="synth,cot"),
        ModelEntry(id="common", path=path),
        ModelEntry(id="plain", path=path, condition="raw"),
    )
    models = load_models(Settings(models=entries, default_model="own", condition="noisy"))
    task = Generate("hi", Sampling(max_tokens=4, seed=0))

    for model, default in zip(models, ("synth,cot", "noisy", "raw"), strict=True):
        explicit = Generate("hi", Sampling(max_tokens=4, seed=0), condition=default)
        assert model.runner.encode(task) == model.runner.encode(explicit)

    with pytest.raises(SettingsError, match="model 'own': condition: Unknown condition 'loud'"):
        load_models(Settings(models=(ModelEntry(id="own", path=path, condition="loud"),)))


def test_the_options_of_an_entry_reach_the_runner_that_its_files_ask_for(
    tiny: tuple[Path, HrmTextForCausalLM],
) -> None:
    """An entry's options go to the runner of its files, and outrank the entry's settings.

    An option that this runner does not declare is refused.
    """
    path = str(tiny[0])
    entries = (ModelEntry(id="own", path=path, condition="raw", options={"condition": "synth"}),)
    [model] = load_models(Settings(models=entries, condition="noisy"))
    task = Generate("hi", Sampling(max_tokens=4, seed=0))
    explicit = Generate("hi", Sampling(max_tokens=4, seed=0), condition="synth")
    assert model.runner.encode(task) == model.runner.encode(explicit)

    foreign = (ModelEntry(id="own", path=path, options={"segments": "max"}),)
    with pytest.raises(
        SettingsError, match=r"model 'own': option 'segments': .*its runner is hrm-text"
    ):
        load_models(Settings(models=foreign))


def test_a_mate_of_a_failing_sequence_loses_nothing(
    runner: PagedRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that fails after its prefill is repeated for each sequence alone (P7).

    The one that was prefilled gives the same tokens as without the failure.
    """
    task = Generate(PROMPTS[0], Sampling(max_tokens=6, seed=5, temperature=0.0))
    [expected] = generate_all(runner, [task])

    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(paged, "score_slices", broken)
    ids: list[int] = []
    score_ends = []
    for emission in run(runner, [task, Score("x", ("y",))], [[], []]):
        if emission.key == "0":
            ids.extend(emission.ids)
        else:
            score_ends.append(emission.ended)

    assert ids == expected
    [failed] = score_ends
    assert isinstance(failed, Failed)


def test_long_continuations_are_scored_in_slices(
    runner: PagedRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits of a few positions at a time give the same score as all at once."""
    task = Score("What is 2 + 2?", ("four, I think, or five", "4"))
    [whole_scores] = score_all(runner, [task])

    monkeypatch.setattr(scoring, "LOGIT_ROWS", 3)
    [sliced_scores] = score_all(runner, [task])

    for sliced, whole in zip(sliced_scores, whole_scores, strict=True):
        assert sliced.log_likelihood == pytest.approx(whole.log_likelihood, abs=1e-4)
        assert sliced.num_tokens == whole.num_tokens
        assert sliced.is_greedy == whole.is_greedy


def test_a_long_prompt_loses_its_beginning_but_not_its_marks(runner: PagedRunner) -> None:
    """A prompt is cut on its left so far that max_tokens fit; boq, condition and eoq stay (X20)."""
    encoded = runner.encode(Generate("a" * 200 + "b", Sampling(max_tokens=10, seed=0)))

    assert len(encoded.prompt_ids) + encoded.max_tokens == 96
    assert encoded.max_tokens == 10
    # 201 bytes and 3 marks, of which 86 are left.
    assert encoded.num_truncated == 204 - 86
    assert encoded.prompt_ids[0] == 1
    assert runner.decode(encoded.prompt_ids).endswith("ab")


@pytest.mark.parametrize("written", [4, 2, 16])
def test_the_layer_count_comes_from_the_tensors(
    tiny: tuple[Path, HrmTextForCausalLM], tmp_path: Path, written: int
) -> None:
    """The configuration's layer count changes nothing.

    Exporters write raw, per-stack or inflated counts (hrm-formats 3).
    """
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny[0] / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["num_hidden_layers"] = written
    config.pop("num_layers_per_stack")
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert hrm_text.load_model(tmp_path).shape.num_layers == 2


@pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
def test_unmatched_weights_fail_loudly(
    tiny: tuple[Path, HrmTextForCausalLM], tmp_path: Path, fault: str
) -> None:
    """A tensor that is missing, left over or misshapen is an error that names it (T6)."""
    tensors = load_file(tiny[0] / "model.safetensors")
    name = "model.H_module.layers.1.mlp.down_proj.weight"
    if fault == "missing":
        del tensors[name]
    elif fault == "extra":
        name = "model.H_module.layers.1.mlp.router.weight"
        tensors[name] = torch.zeros(2)
    else:
        tensors[name] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((tiny[0] / "config.json").read_bytes())

    with pytest.raises(ModelFormatError, match=name.replace(".", r"\.")):
        hrm_text.load_model(tmp_path)


def test_other_cycles_are_those_of_a_config_that_names_them(
    tiny: tuple[Path, HrmTextForCausalLM], runner: PagedRunner, tmp_path: Path
) -> None:
    """The option gives the tokens, and needs the slots, of a network whose config says so."""
    shutil.copytree(tiny[0], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"H_cycles": 1, "L_cycles": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tasks = [Generate(text, Sampling(max_tokens=12, seed=0, temperature=0.0)) for text in PROMPTS]

    written = hrm_text.load(RunnerOptions(path=str(tmp_path), max_batch=4, page_size=4))
    asked = hrm_text.load(options_for(tiny[0], max_batch=4, page_size=4, cycles="1x2"))

    assert asked.net.kv_shape == written.net.kv_shape
    assert "cycles 1 x 2" in asked.spec.found
    answers = generate_all(asked, tasks)
    assert answers == generate_all(written, tasks)
    assert answers != generate_all(runner, tasks)


@pytest.mark.parametrize("cycles", ["2", "0x3", "2x3x4", "2x100", "two"])
def test_cycles_are_two_numbers(tiny: tuple[Path, HrmTextForCausalLM], cycles: str) -> None:
    with pytest.raises(OptionError, match=r"option 'cycles': expected H and L cycles as 2x3"):
        options_for(tiny[0], cycles=cycles)


def test_a_window_that_does_not_fit_is_refused_at_load(
    tiny: tuple[Path, HrmTextForCausalLM],
) -> None:
    """A memory budget below one context window is refused when the model is loaded."""
    with pytest.raises(ModelFormatError, match="kv_memory_mib"):
        hrm_text.load(RunnerOptions(path=str(tiny[0]), kv_bytes=1000))


def test_sampling_does_not_depend_on_batch_mates(runner: PagedRunner) -> None:
    """A row gives the same tokens alone, and with any batch mates in any order (T5, P3)."""
    tasks = []
    alone = []
    for seed, text in enumerate(PROMPTS):
        sampling = Sampling(max_tokens=8, seed=seed, temperature=0.9, top_p=0.95, top_k=40)
        task = Generate(text, sampling)
        tasks.append(task)
        alone.append(generate_all(runner, [task])[0])

    for order in ((0, 1, 2, 3), (1, 0, 3, 2), (2, 1, 0, 3), (3, 1, 2, 0)):
        together = generate_all(runner, [tasks[number] for number in order])
        for number, ids in zip(order, together, strict=True):
            assert ids == alone[number]


@pytest.mark.parametrize("step_tokens", [1, 3, 20])
def test_a_prompt_that_is_computed_layer_by_layer_says_the_same(
    tiny: tuple[Path, HrmTextForCausalLM], runner: PagedRunner, step_tokens: int
) -> None:
    options = RunnerOptions(
        path=str(tiny[0]), max_batch=4, page_size=4, step_tokens=step_tokens, prefix_cache=False
    )
    in_parts = hrm_text.load(options)
    generations = []
    for number, text in enumerate(PROMPTS):
        sampling = Sampling(max_tokens=6, seed=number, temperature=0.7)
        generations.append(Generate(text, sampling))
    scores = [Score(text, ("yes", "no, never")) for text in PROMPTS]

    assert generate_all(in_parts, generations) == generate_all(runner, generations)
    for part, whole in zip(score_all(in_parts, scores), score_all(runner, scores), strict=True):
        for one, other in zip(part, whole, strict=True):
            assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-4)


def test_a_step_that_fails_between_two_layers_is_repeated_from_where_it_began(
    tiny: tuple[Path, HrmTextForCausalLM], runner: PagedRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [Generate(text, Sampling(max_tokens=4, seed=0, temperature=0.0)) for text in PROMPTS]
    expected = generate_all(runner, tasks)
    options = RunnerOptions(path=str(tiny[0]), max_batch=4, page_size=4, step_tokens=8)
    in_parts = hrm_text.load(options)
    whole_step = in_parts._results
    calls = 0

    def failing(
        slices: Sequence[Slice], batch: Batch, hidden: Tensor
    ) -> list[StepResult | FleetError]:
        nonlocal calls
        calls += 1
        # After all layers of this step are computed.
        if calls % 5 == 0 and len(slices) > 1:
            raise RuntimeError("no luck")
        return whole_step(slices, batch, hidden)

    monkeypatch.setattr(in_parts, "_results", failing)
    assert generate_all(in_parts, tasks) == expected
    assert calls > 10
