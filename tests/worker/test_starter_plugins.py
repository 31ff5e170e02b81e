"""The runners of `plugins/`, on small networks."""

import json
from pathlib import Path

import pytest
import torch
from cn2en_translator.runner import Translator, TranslatorRunner, words_of
from safetensors.torch import save_file
from torch import Tensor

from shared.errors import InvalidRequest
from shared.tasks.series import Forecast
from shared.tasks.writing import Translate, Written
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import NO_FILES, TaskOutput, Unwatched

SOURCE = ["SOS", "EOS", *"\u4f60\u597d\u5417", "tom"]
TARGET = ["SOS", "EOS", "how", "are", "you", "?"]


@pytest.fixture
def network() -> Translator:
    torch.manual_seed(3)
    network = Translator(len(SOURCE), len(TARGET), 8).eval()
    with torch.no_grad():
        # So that different texts have different answers.
        for weights in network.parameters():
            weights.mul_(4)
    return network


@pytest.fixture
def runner(network: Translator, tmp_path: Path) -> TranslatorRunner:
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "source.json").write_text(json.dumps(SOURCE))
    (tmp_path / "target.json").write_text(json.dumps(TARGET))
    return TranslatorRunner(RunnerOptions(str(tmp_path), name="m"))


def cell(gru: torch.nn.GRU, value: Tensor, state: Tensor) -> Tensor:
    """Return the next state of a GRU, by its equations (Cho et al., 2014)."""
    given = gru.weight_ih_l0 @ value + gru.bias_ih_l0
    kept = gru.weight_hh_l0 @ state + gru.bias_hh_l0
    given_r, given_z, given_n = given.chunk(3)
    kept_r, kept_z, kept_n = kept.chunk(3)
    reset = torch.sigmoid(given_r + kept_r)
    update = torch.sigmoid(given_z + kept_z)
    new = torch.tanh(given_n + reset * kept_n)
    return (1 - update) * new + update * state


@torch.no_grad()
def by_hand(network: Translator, words: list[str], max_tokens: int) -> str:
    state = torch.zeros(8)
    for number in [*(SOURCE.index(word) for word in words), 1]:
        state = cell(network.read_gru, network.read_embedding.weight[number], state)
    last = 0
    written: list[str] = []
    while len(written) < max_tokens:
        state = cell(network.write_gru, network.write_embedding.weight[last].relu(), state)
        last = int((network.out.weight @ state + network.out.bias).argmax())
        if last == 1:
            break
        written.append(TARGET[last])
    return " ".join(written)


def test_translations_are_those_of_the_equations(
    network: Translator, runner: TranslatorRunner
) -> None:
    texts = ["\u4f60\u597d", "\u597d\u4f60", "\u4f60\u597d\u5417", "Tom \u597d", "\u5417\u5417"]
    items = [runner.read(Translate(text, max_tokens=6), NO_FILES) for text in texts]
    expected = [by_hand(network, words_of(text), 6) for text in texts]
    assert len(set(expected)) > 2, "different texts have different answers"
    for item, text in zip(items, expected, strict=True):
        assert runner.run([item], Unwatched()) == [TaskOutput(Written(text))]
    pair = [0, 3]
    assert runner.group_key(items[0]) == runner.group_key(items[3]) != runner.group_key(items[2])
    outputs = runner.run([items[number] for number in pair], Unwatched())
    assert outputs == [TaskOutput(Written(expected[number])) for number in pair]


def test_words_are_letters_together_and_other_signs_alone() -> None:
    assert words_of("Tom's \u4f60\u597d, ok?") == ["tom's", "\u4f60", "\u597d", ",", "ok", "?"]


def test_what_it_cannot_translate_is_refused(runner: TranslatorRunner) -> None:
    for task in (
        Translate("xyz"),
        Translate("\u4f60", "de", "en"),
        Translate("\u4f60", "zh", "fr"),
    ):
        with pytest.raises(InvalidRequest):
            runner.read(task, NO_FILES)
    with pytest.raises(InvalidRequest, match="only translates"):
        runner.read(Forecast((1.0,), 1), NO_FILES)
