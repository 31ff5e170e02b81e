"""HRM-Text exports whose tokenizer lacks the marks or the conditions.

They are served as far as possible, and a warning says so.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import HrmTextForCausalLM, PreTrainedTokenizerFast

from scripts.train.special_tokens import BOQ, CONDITION_TOKENS, EOA, EOQ, PAD
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
    """Return a tokenizer of bytes with these special tokens alone.

    Its ids are those of the byte tokenizer, so that the network fits.
    """
    all_specials = [PAD, BOQ, EOQ, EOA, *CONDITION_TOKENS.values()]
    vocabulary = {}
    for token_id, token in enumerate(all_specials):
        if token == PAD or token in specials:
            vocabulary[token] = token_id
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    for token_id, letter in enumerate(letters, start=len(all_specials)):
        vocabulary[letter] = token_id

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, *specials])
    names = {"pad_token": PAD}
    if ends and EOA in specials:
        names["eos_token"] = EOA
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, HrmTextForCausalLM]:
    path = tmp_path_factory.mktemp("tiny")
    return path, write_tiny(path)


@pytest.fixture
def write(tiny: tuple[Path, HrmTextForCausalLM], tmp_path: Path) -> Write:
    """Return a function that exports the same network with another tokenizer."""

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


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages that the runner has logged."""
    messages = []
    for record in caplog.records:
        if record.name == "aios.hrm_text":
            messages.append(record.getMessage())
    return messages


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
    """Without its marks a prompt is read raw, and a warning gives the reason.

    Responses and scores are those of transformers' own network for the bare text.
    """
    _, network = tiny
    path = write(*specials)

    with caplog.at_level(logging.WARNING, logger="aios.hrm_text"):
        model = load(path)

    assert warnings_of(caplog) == ["prompts read raw"]
    assert reason in model.info.found
    assert "prompts read raw" in model.info.found

    text = " 2x + 3 = 9 "
    prompt = tuple(tokenizer_with(*specials)(text, add_special_tokens=False)["input_ids"])
    assert model.runner.encode(ask(text)).prompt_ids == prompt

    [ids] = generate_all(model.runner, [ask(text)])
    for index, token in enumerate(ids):
        logits = own_logits(network, prompt, tuple(ids[:index]))[-1]
        assert token == int(logits.argmax())

    task = Score(text, ("42",))
    [[score]] = score_all(model.runner, [task])
    [tail] = model.runner.encode(task).continuations
    logprobs = own_logits(network, prompt, tail).double().log_softmax(-1)
    expected = 0.0
    for index, token in enumerate(tail):
        # The logits that predict a token are those of the position before it.
        expected += float(logprobs[len(prompt) - 1 + index, token])
    assert score.log_likelihood == pytest.approx(expected, abs=1e-4)


def test_everything_else_works_without_marks(write: Write) -> None:
    """Without marks a model tokenizes, embeds and chats; only a rolling text needs a start."""
    runner = load(write()).runner
    assert runner.encode(Tokenize("ab")).answer is not None

    # 48 states of 4 bytes each.
    [vector] = embed_all(runner, [Embed("ab")])
    assert len(vector) == 4 * 48

    chat = Generate(Chat((Turn("user", "ab"),)), Sampling(max_tokens=2, seed=0))
    assert runner.encode(chat).prompt_ids == runner.encode(ask("ab")).prompt_ids

    with pytest.raises(InvalidRequest, match="no start token"):
        runner.encode(Score("", ("abc",), rolling=True))

    # The end token is that of generation_config.json.
    assert runner.eos_ids == {3}


def test_without_a_generation_config_answers_end_as_config_json_says(write: Write) -> None:
    """The end token is then that of config.json, as in transformers."""
    path = write()
    (path / "generation_config.json").unlink()
    assert load(path).runner.eos_ids == {3}


@pytest.mark.parametrize("specials", [(), (EOQ, EOA)])
def test_behind_an_empty_context_the_start_token_predicts(
    write: Write, specials: tuple[str, ...]
) -> None:
    """A text without context is predicted from the start token, if there is one.

    An end token serves as start, as it does for other families.
    """
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
    """A condition that the tokenizer has is served, and another one refused by name."""
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
    """A default condition that the tokenizer has is used without a warning."""
    path = write(BOQ, EOQ, EOA, CONDITION_TOKENS["cot"])

    with caplog.at_level(logging.WARNING, logger="aios.hrm_text"):
        model = load(path, "cot")

    assert "raw" not in model.info.found
    assert warnings_of(caplog) == []
    assert model.runner.encode(ask("ab")).prompt_ids[:2] == (1, 5)


@pytest.mark.parametrize("condition", ["direct", "cot"])
def test_what_is_asked_for_by_name_must_be_there(write: Write, condition: str) -> None:
    """A condition that the tokenizer lacks is refused at the start and in a request."""
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
    """A raw checkpoint refuses a tokenizer without its marks: it was trained with another."""
    write_config(tmp_path, ema=None)
    save_epoch(tmp_path / "fsdp2_epoch_1", raw_weights(tiny_raw(0)), {})
    tokenizer_with(EOQ, EOA).save_pretrained(tmp_path / "tokenizer")
    with torch.no_grad(), pytest.raises(ModelFormatError, match="--tokenizer-path"):
        load_runner("auto", RunnerOptions(path=str(tmp_path)))
