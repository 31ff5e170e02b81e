"""HRM-Text exports whose tokenizer lacks the marks or the conditions: served as far as they can be,
and said so."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import HrmTextForCausalLM, PreTrainedTokenizerFast

from scripts.train.train_sample import BOQ, CONDITION_TOKENS, EOA, EOQ, PAD
from shared.errors import InvalidRequest
from shared.messages import Chat, Embed, Generate, Sampling, Score, Tokenize, Turn
from shared.settings.settings import ModelEntry, Settings, SettingsError
from tests.fixtures.tiny_hrm_text import own_logits, write_tiny
from tests.fixtures.worker.hrm_text_raw import raw_weights, save_epoch, write_config
from tests.fixtures.worker.hrm_text_raw import tiny as tiny_raw
from tests.fixtures.worker.stepping import embed_all, generate_all, score_all
from worker.engine.runner import RunnerOptions
from worker.host.loading import LoadedModel, load_models
from worker.models.errors import ModelFormatError
from worker.runners.registry import load_runner

Write = Callable[..., Path]


def tokenizer_with(*specials: str, ends: bool = True) -> PreTrainedTokenizerFast:
    """Bytes, and these special tokens alone; ids are those of the byte tokenizer, so that the
    network fits."""
    places = [PAD, BOQ, EOQ, EOA, *CONDITION_TOKENS.values()]
    vocabulary = {token: place for place, token in enumerate(places) if token in (PAD, *specials)}
    for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=len(places)):
        vocabulary[letter] = place
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, *specials])
    names = {"pad_token": PAD} | ({"eos_token": EOA} if ends and EOA in specials else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, HrmTextForCausalLM]:
    path = tmp_path_factory.mktemp("tiny")
    return path, write_tiny(path)


@pytest.fixture
def write(tiny: tuple[Path, HrmTextForCausalLM], tmp_path: Path) -> Write:
    """The same network with another tokenizer."""

    def with_tokenizer(*specials: str) -> Path:
        path = tmp_path / "export"
        path.mkdir()
        for name in ("config.json", "generation_config.json", "model.safetensors"):
            (path / name).symlink_to(tiny[0] / name)
        tokenizer_with(*specials).save_pretrained(path)
        return path

    return with_tokenizer


def load(path: Path, condition: str | None = None) -> LoadedModel:
    entry = ModelEntry(id="bare", path=str(path), condition=condition)
    [model] = load_models(Settings(models=(entry,), max_batch_size=2, device="cpu", threads=1))
    return model


def ask(prompt: str, condition: str | None = None) -> Generate:
    return Generate(prompt, Sampling(max_tokens=5, seed=0, temperature=0.0), condition=condition)


@pytest.mark.parametrize(
    ("specials", "reason"),
    [
        ((EOQ, EOA, *CONDITION_TOKENS.values()), f"no {BOQ}"),
        ((BOQ, EOA, *CONDITION_TOKENS.values()), f"no {EOQ}"),
        ((), f"no {BOQ} and no {EOQ}"),
        ((BOQ, EOQ, EOA), "no token of the condition direct"),
        (
            (BOQ, EOQ, EOA, CONDITION_TOKENS["cot"]),
            "no token of the condition direct (of others: cot)",
        ),
    ],
)
def test_prompts_are_read_raw_and_that_is_said(
    write: Write,
    tiny: tuple[Path, HrmTextForCausalLM],
    caplog: pytest.LogCaptureFixture,
    specials: tuple[str, ...],
    reason: str,
) -> None:
    """Greedy answers are those of transformers' own network for the bare text."""
    path = write(*specials)
    with caplog.at_level(logging.WARNING, logger="aios.hrm_text"):
        model = load(path)
    [warning] = [record for record in caplog.records if record.name == "aios.hrm_text"]
    assert warning.getMessage() == "prompts read raw"
    assert reason in model.info.found
    assert "prompts read raw" in model.info.found
    text = " 2x + 3 = 9 "
    prompt = tuple(tokenizer_with(*specials)(text, add_special_tokens=False)["input_ids"])
    assert model.runner.encode(ask(text)).prompt_ids == prompt
    [said] = generate_all(model.runner, [ask(text)])
    for place, token in enumerate(said):
        own = own_logits(tiny[1], prompt, tuple(said[:place]))[-1]
        assert token == int(own.argmax())
    [[score]] = score_all(model.runner, [Score(text, ("42",))])
    tail = model.runner.encode(Score(text, ("42",))).continuations[0]
    logits = own_logits(tiny[1], prompt, tail).double().log_softmax(-1)
    expected = sum(float(logits[len(prompt) - 1 + at, token]) for at, token in enumerate(tail))
    assert score.log_likelihood == pytest.approx(expected, abs=1e-4)


def test_everything_else_works_without_marks(write: Write) -> None:
    runner = load(write()).runner
    assert runner.encode(Tokenize("ab")).answer is not None
    assert len(embed_all(runner, [Embed("ab")])[0]) == 4 * 48
    chat = Generate(Chat((Turn("user", "ab"),)), Sampling(max_tokens=2, seed=0))
    assert runner.encode(chat).prompt_ids == runner.encode(ask("ab")).prompt_ids
    with pytest.raises(InvalidRequest, match="no start token"):
        runner.encode(Score("", ("abc",), rolling=True))
    assert runner.eos_ids == {3}  # of generation_config.json


def test_without_a_generation_config_answers_end_as_config_json_says(write: Write) -> None:
    """As transformers has it."""
    path = write()
    (path / "generation_config.json").unlink()
    assert load(path).runner.eos_ids == {3}


@pytest.mark.parametrize("specials", [(), (EOQ, EOA)])
def test_behind_an_empty_context_the_start_token_predicts(
    write: Write, specials: tuple[str, ...]
) -> None:
    """If there is one: an end token serves as start, as it does for other families."""
    runner = load(write(*specials)).runner
    task = Score("", ("ab",))
    if not specials:
        with pytest.raises(InvalidRequest, match="no start token"):
            runner.encode(task)
        return
    encoded = runner.encode(task)
    assert encoded.prompt_ids == (3,)
    assert encoded.prompt_ids == runner.encode(Score("", ("ab",), rolling=True)).prompt_ids
    [[score]] = score_all(runner, [task])
    assert score.num_tokens == 2


def test_conditions_that_are_there_can_be_asked_for(write: Write) -> None:
    runner = load(write(BOQ, EOQ, EOA, CONDITION_TOKENS["cot"])).runner
    tokens = runner.encode(ask("ab", "cot")).prompt_ids
    assert tokens[:2] == (1, 5)
    assert tokens[-1] == 2
    with pytest.raises(InvalidRequest, match="expected some of cot, or raw alone") as refused:
        runner.encode(ask("ab", "direct"))
    assert refused.value.field == "condition"


def test_a_default_that_is_there_is_no_fallback(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(BOQ, EOQ, EOA, CONDITION_TOKENS["cot"])
    with caplog.at_level(logging.WARNING, logger="aios.hrm_text"):
        model = load(path, "cot")
    assert "raw" not in model.info.found
    assert not [record for record in caplog.records if record.name == "aios.hrm_text"]
    assert model.runner.encode(ask("ab")).prompt_ids[:2] == (1, 5)


@pytest.mark.parametrize("condition", ["direct", "cot"])
def test_what_is_asked_for_by_name_must_be_there(write: Write, condition: str) -> None:
    path = write()
    with pytest.raises(
        SettingsError, match=f"condition: Unknown condition '{condition}': expected raw, as"
    ):
        load(path, condition)
    runner = load(path, "raw").runner
    with pytest.raises(
        InvalidRequest, match="expected raw, as its tokenizer knows none"
    ) as refused:
        runner.encode(ask("ab", condition))
    assert refused.value.field == "condition"


def test_a_raw_checkpoint_keeps_to_the_marks_of_its_training(tmp_path: Path) -> None:
    """A tokenizer without them is not the one it was trained with."""
    write_config(tmp_path, ema=None)
    save_epoch(tmp_path / "fsdp2_epoch_1", raw_weights(tiny_raw(0)), {})
    tokenizer_with(EOQ, EOA).save_pretrained(tmp_path / "tokenizer")
    with torch.no_grad(), pytest.raises(ModelFormatError, match="--tokenizer-path"):
        load_runner("auto", RunnerOptions(path=str(tmp_path)))
