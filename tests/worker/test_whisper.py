"""Whisper answers as transformers does on the same weights: long sounds, times, languages."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    Speech2TextConfig,
    Speech2TextFeatureExtractor,
    Speech2TextForConditionalGeneration,
    pipeline,
)
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from shared.errors import InvalidRequest
from shared.tasks.sound import Timestamps, Transcribe, Transcript
from tests.fixtures.one_shots import WHISPER_S, whisper_tokenizer, write_whisper
from tests.fixtures.sounds import RATE, tones, wav
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import FilesAtHand, TaskOutput
from worker.host.loading import warm_up
from worker.media.sound import decode_sound
from worker.runners.one_shot import OneShotRunner
from worker.runners.registry import load_runner

SHORT = [wav(tones(440.0, 1300.0, seconds=1.5)), wav(tones(90.0, 700.0, seconds=1.2))]
LONG = [wav(tones(300.0, 900.0, seconds=5.5)), wav(tones(150.0, 2000.0, seconds=5.5))]
FOREIGN = [(440.0, 1300.0), (90.0, 700.0), (1000.0, 3000.0)]
"""Tones in which the random network finds three languages."""


class Unwatched:
    """A batch that nobody watches."""

    def heartbeat(self) -> None:
        return

    def report(
        self, index: int, done: int, total: int | None = None, note: str = "", **more: Any
    ) -> None:
        return

    def is_wanted(self, index: int) -> bool:
        return True


def load(path: Path) -> OneShotRunner:
    runner = load_runner("auto", RunnerOptions(str(path), name="m"))
    assert isinstance(runner, OneShotRunner)
    return runner


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("english")
    write_whisper(path, is_multilingual=False)
    return path


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("multilingual")
    write_whisper(path, is_multilingual=True)
    return path


def transcribe(
    path: Path, sounds: list[bytes], timestamps: Timestamps = "none", **options: Any
) -> list[Transcript]:
    """Return the transcripts of sounds, computed together but for those with times of words."""
    runner = load(path)
    files = FilesAtHand({str(number): data for number, data in enumerate(sounds)})
    items = [runner.read(Transcribe(name, timestamps, **options), files) for name in files.data]
    batches = [items]
    if timestamps == "word":
        batches = [[item] for item in items]
    assert len({runner.group_key(item) for item in items}) == len(batches)
    transcripts = []
    for batch in batches:
        for output in runner.run(batch, Unwatched()):
            assert isinstance(output, TaskOutput), output
            assert isinstance(output.result, Transcript)
            transcripts.append(output.result)
    return transcripts


def library(path: Path, data: bytes, **options: Any) -> dict[str, Any]:
    pipe = pipeline("automatic-speech-recognition", model=str(path), device="cpu")
    found: dict[str, Any] = pipe(decode_sound(data, rate=RATE, max_seconds=60), **options)
    return found


def parts_of(transcript: Transcript) -> list[tuple[str, float, float | None]]:
    return [(part.text, part.start, part.end) for part in transcript.parts]


def library_parts(found: dict[str, Any]) -> list[tuple[str, float, float | None]]:
    """Return the library's parts. One without a start begins where the one before it ends."""
    parts: list[tuple[str, float, float | None]] = []
    for one in found["chunks"]:
        start, end = one["timestamp"]
        if start is None:
            start = 0.0
            if parts:
                start = parts[-1][1] if parts[-1][2] is None else parts[-1][2]
        parts.append((one["text"].strip(), start, end))
    return parts


def asked_of_library(path: Path, **options: Any) -> dict[str, Any]:
    """Return options of the library's pipeline: real multilingual networks name the task so."""
    if path.name.startswith("multilingual"):
        options["generate_kwargs"] = {"task": "transcribe"}
    return options


@pytest.mark.parametrize("sounds", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("kind", ["english", "multilingual"])
def test_the_text_is_that_of_the_library(
    kind: str, sounds: list[bytes], request: pytest.FixtureRequest
) -> None:
    """Alone and beside another. What is longer than the window is read to its end."""
    path = request.getfixturevalue(kind)
    options = asked_of_library(path)
    if sounds is LONG:
        options["return_timestamps"] = True
    expected = [library(path, data, **options)["text"].strip() for data in sounds]
    assert expected[0] != expected[1], "different sounds have different answers"
    together = transcribe(path, sounds)
    assert [one.text for one in together] == expected
    [alone] = transcribe(path, sounds[:1])
    assert alone == together[0]
    assert alone.parts == ()


@pytest.mark.parametrize("sounds", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize(("timestamps", "given"), [("segment", True), ("word", "word")])
@pytest.mark.parametrize("kind", ["english", "multilingual"])
def test_times_are_those_of_the_library(
    kind: str,
    timestamps: Timestamps,
    given: bool | str,
    sounds: list[bytes],
    request: pytest.FixtureRequest,
) -> None:
    path = request.getfixturevalue(kind)
    options = asked_of_library(path, return_timestamps=given)
    expected = [library_parts(library(path, one, **options)) for one in sounds]
    assert expected[0] and expected[0] != expected[1]
    together = transcribe(path, sounds, timestamps)
    assert [parts_of(one) for one in together] == expected
    [alone] = transcribe(path, sounds[:1], timestamps)
    assert parts_of(alone) == expected[0]
    if sounds is LONG:
        assert max(start for _, start, _ in expected[0]) > WHISPER_S, (
            "some parts begin behind the first window"
        )


@pytest.mark.parametrize("timestamps", ["none", "segment", "word"])
def test_the_language_is_found_for_each_sound(multilingual: Path, timestamps: Timestamps) -> None:
    """In a batch it is the one that the library tells of each sound alone."""
    sounds = [wav(tones(*pair, seconds=1.5)) for pair in FOREIGN]
    options = asked_of_library(multilingual, return_language=True, return_timestamps=True)
    expected = []
    for data in sounds:
        name = library(multilingual, data, **options)["chunks"][0]["language"]
        expected.append(TO_LANGUAGE_CODE[name])
    assert len(set(expected)) == 3

    together = transcribe(multilingual, sounds, timestamps)
    assert [one.language for one in together] == expected
    [alone] = transcribe(multilingual, sounds[:1], timestamps)
    assert alone.language == expected[0]


@pytest.mark.parametrize("given", ["de", "German", "DE"])
@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_a_language_may_be_given(multilingual: Path, given: str, task: str) -> None:
    sounds = SHORT[:1]
    wanted = {"language": "german", "task": task}
    expected = library(multilingual, sounds[0], generate_kwargs=wanted)["text"].strip()
    other = library(multilingual, sounds[0], generate_kwargs=wanted | {"language": "french"})
    assert expected != other["text"].strip(), "the language makes a difference"
    [found] = transcribe(multilingual, sounds, language=given, translate=task == "translate")
    assert found.text == expected
    assert found.language == "de"


def test_a_foreign_language_is_refused_with_those_that_are_known(multilingual: Path) -> None:
    with pytest.raises(InvalidRequest, match="expected one of de, en, fr, got 'xx'") as caught:
        transcribe(multilingual, SHORT[:1], language="xx")
    assert caught.value.field == "language"
    # A language that others of its kind know.
    with pytest.raises(InvalidRequest, match="got 'Spanish'"):
        transcribe(multilingual, SHORT[:1], language="Spanish")


@pytest.mark.parametrize("options", [{"language": "de"}, {"translate": True}])
def test_a_network_of_one_language_refuses_others(english: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="transcribes one language, and does not translate"):
        transcribe(english, SHORT[:1], **options)
    [found] = transcribe(english, SHORT[:1])
    assert found.language is None
    # OpenAI's clients often name it.
    assert transcribe(english, SHORT[:1], language="en") == [found]


def test_times_of_words_need_a_network_that_tells_them(english: Path, tmp_path: Path) -> None:
    shutil.copytree(english, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "generation_config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    del values["alignment_heads"]
    file.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(InvalidRequest, match="tells no times of words"):
        transcribe(tmp_path, SHORT[:1], "word")
    assert transcribe(tmp_path, SHORT[:1], "segment")[0].parts


def test_a_network_without_times_refuses_them(tmp_path: Path) -> None:
    """Speech2Text writes as Whisper does, and knows neither times nor languages."""
    tokenizer = whisper_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    config = Speech2TextConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        conv_channels=16,
        input_feat_per_channel=16,
        max_target_positions=end + 40,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=end,
    )
    model = Speech2TextForConditionalGeneration(config)
    model.generation_config.max_length = 12
    model.save_pretrained(tmp_path)
    Speech2TextFeatureExtractor(feature_size=16, num_mel_bins=16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for timestamps in ("segment", "word"):
        with pytest.raises(InvalidRequest, match="tells no times"):
            transcribe(tmp_path, SHORT[:1], timestamps)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="transcribes one language"):
        transcribe(tmp_path, SHORT[:1], language="en")
    [found] = transcribe(tmp_path, SHORT[:1])
    assert found.seconds == 1.5


def test_times_of_words_leave_the_network_as_it_was(english: Path) -> None:
    """The library computes them by another attention, which is slower and rounds otherwise."""
    runner = load(english)
    config = runner._loaded.pipe.model.config
    before = config._attn_implementation
    assert before != "eager"
    files = FilesAtHand({"x": SHORT[0]})
    runner.run([runner.read(Transcribe("x", "word"), files)], Unwatched())
    assert config._attn_implementation == before


def test_a_short_sound_has_few_words(tmp_path: Path) -> None:
    """In silence a real network repeats itself to its limit, which takes long."""
    write_whisper(tmp_path, is_multilingual=False, writes_to_its_limit=True)
    [below] = transcribe(tmp_path, [wav(tones(440.0, seconds=0.9))])
    [above] = transcribe(tmp_path, [wav(tones(440.0, seconds=1.1))])
    assert len(below.text) <= 32 < len(above.text)


def test_a_trial_shows_that_it_works(english: Path, multilingual: Path) -> None:
    for path in (english, multilingual):
        assert warm_up(load(path)) == "did a automatic-speech-recognition task"
