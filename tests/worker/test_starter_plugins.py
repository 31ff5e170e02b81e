"""The runners of `plugins/`, on small networks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chronos import BaseChronosPipeline
from chronos.chronos_bolt import ChronosBoltModelForForecasting
from chronos_forecaster.runner import ChronosRunner
from cn2en_translator.runner import Translator, TranslatorRunner, words_of
from safetensors.torch import save_file
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from shared.errors import InvalidRequest
from shared.tasks.series import Forecast, Forecasted
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


NUMBERS = [float(number % 5) + 0.1 * number for number in range(40)]
SERIES = [tuple(NUMBERS), tuple(NUMBERS[::-1]), tuple(NUMBERS[:17])]


def write_chronos(path: Path, *, draws: bool) -> None:
    """Write a tiny Chronos (T5 over binned numbers), or a Chronos-Bolt."""
    torch.manual_seed(0)
    shared: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    if draws:
        tokens = {"n_tokens": 64, "n_special_tokens": 2, "pad_token_id": 0, "eos_token_id": 1}
        own = {
            "tokenizer_class": "MeanScaleUniformBins",
            "tokenizer_kwargs": {"low_limit": -4.0, "high_limit": 4.0},
            "context_length": 32,
            "prediction_length": 8,
            "use_eos_token": True,
            "model_type": "seq2seq",
            "num_samples": 20,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        }
        config = T5Config(vocab_size=64, decoder_start_token_id=0, **shared)
        config.chronos_config = own | tokens
        T5ForConditionalGeneration(config).save_pretrained(path)
        return
    config = T5Config(vocab_size=2, decoder_start_token_id=0, **shared)
    config.chronos_pipeline_class = "ChronosBoltPipeline"
    config.chronos_config = {
        "context_length": 32,
        "prediction_length": 8,
        "input_patch_size": 4,
        "input_patch_stride": 4,
        "quantiles": [level / 10 for level in range(1, 10)],
        "use_reg_token": True,
    }
    ChronosBoltModelForForecasting(config).save_pretrained(path)


@pytest.mark.parametrize("draws", [False, True], ids=["bolt", "t5"])
def test_forecasts_of_the_chronos_family_are_its_own(draws: bool, tmp_path: Path) -> None:
    write_chronos(tmp_path, draws=draws)
    runner = ChronosRunner(RunnerOptions(str(tmp_path), name="m"))
    horizon = 11
    items = [runner.read(Forecast(values, horizon), NO_FILES) for values in SERIES]
    assert (runner.group_key(items[0]) == runner.group_key(items[1])) is not draws

    alone = [one_of(runner, [item]) for item in items]
    assert [one_of(runner, [item]) for item in items] == alone, "equal series, equal forecasts"
    library = BaseChronosPipeline.from_pretrained(tmp_path, device_map="cpu")
    for found, values in zip(alone, SERIES, strict=True):
        assert len(found.values) == horizon
        assert [quantile.level for quantile in found.quantiles] == [n / 10 for n in range(1, 10)]
        if not draws:
            quantiles, mean = library.predict_quantiles(
                [torch.tensor(values)], prediction_length=horizon
            )
            assert found.values == pytest.approx(mean[0].tolist(), rel=1e-4)
            highest = quantiles[0, :, -1].tolist()
            assert found.quantiles[-1].values == pytest.approx(highest, rel=1e-4)
    assert len({found.values for found in alone}) == len(SERIES)
    if draws:
        low, high = (alone[0].quantiles[place].values for place in (0, -1))
        assert all(one <= other for one, other in zip(low, high, strict=True))
        assert low != high
        return
    for output, found in zip(runner.run(items, Unwatched()), alone, strict=True):
        assert isinstance(output, TaskOutput)
        assert isinstance(output.result, Forecasted)
        assert output.result.values == pytest.approx(found.values, rel=1e-4)


def one_of(runner: ChronosRunner, items: list[Forecast]) -> Forecasted:
    [output] = runner.run(items, Unwatched())
    assert isinstance(output, TaskOutput)
    assert isinstance(output.result, Forecasted)
    return output.result


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
