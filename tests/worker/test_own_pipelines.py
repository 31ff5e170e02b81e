"""Our own pipelines answer as direct calls of transformers' networks do."""

import io
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    M2M100Config,
    M2M100ForConditionalGeneration,
    NllbTokenizer,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from shared.errors import InvalidRequest
from shared.messages import Task
from shared.tasks.pictures import ChangePicture, Picture, Pictures
from shared.tasks.runner_options import OneShotOptions
from shared.tasks.series import Forecast, Forecasted
from shared.tasks.sound import SoundFormat, Speak, Spoken
from shared.tasks.vision import AnswerAboutImage, ImageAnswers
from shared.tasks.words import FindAnswer, FoundAnswer, FoundAnswers
from shared.tasks.writing import DescribeImage, Summarize, Translate, Written
from tests.fixtures.one_shots import write_one_shot
from tests.fixtures.pictures import encoded, picture
from tests.fixtures.sounds import tones
from tests.fixtures.tiny_encoder import SIZE, TEXTS, word_tokenizer
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import NO_FILES, FilesAtHand, TaskOutput, Unwatched
from worker.host.loading import warm_up
from worker.media.images import decode_image
from worker.media.sound import decode_sound, encode_sound
from worker.runners.one_shot import OneShotRunner, load

PICTURES = {f"p{seed}": encoded(picture(40 + seed, 30, seed=seed)) for seed in range(3)}
LONG = " ".join(["just a film"] * 30)


def make(task: str, path: Path, device: str = "cpu") -> OneShotRunner:
    own = OneShotOptions(task=task)  # type: ignore[arg-type]
    return load(RunnerOptions(str(path), name="m", device=device, own=own))


def results_of(runner: OneShotRunner, tasks: list[Task]) -> list[Any]:
    """Return the results of tasks that are done alone. Done together they are the same."""
    items = [runner.read(task, FilesAtHand(PICTURES)) for task in tasks]
    alone = []
    groups: dict[Any, list[int]] = {}
    for index, item in enumerate(items):
        [output] = runner.run([item], Unwatched())
        assert isinstance(output, TaskOutput), output
        alone.append(output.result)
        groups.setdefault(runner.group_key(item), []).append(index)
    assert len(groups) < len(items), "some share a call"
    for indices in groups.values():
        outputs = runner.run([items[index] for index in indices], Unwatched())
        for index, output in zip(indices, outputs, strict=True):
            assert isinstance(output, TaskOutput)
            assert_same(output.result, alone[index])
    return alone


def assert_same(one: Any, other: Any) -> None:
    """Assert that two results are equal, but for the last digits of their scores."""
    if isinstance(one, Written):
        assert one == other
        return
    assert len(one.answers) == len(other.answers)
    for answer, expected in zip(one.answers, other.answers, strict=True):
        assert answer.text == expected.text
        assert answer.score == pytest.approx(expected.score, rel=1e-3)


def network_of(path: Path) -> Any:
    [architecture] = AutoConfig.from_pretrained(path).architectures
    return getattr(transformers, architecture).from_pretrained(path).eval()


def written(path: Path, text: str, **options: Any) -> str:
    """Return what the library's own network writes behind a text."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    inputs = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
    ids = inputs["input_ids"]
    [answer] = network_of(path).generate(ids, max_new_tokens=12, **options)
    return str(tokenizer.decode(answer, skip_special_tokens=True))


def test_summaries(tmp_path: Path, device: str) -> None:
    write_one_shot("summarization", tmp_path)
    runner = make("summarization", tmp_path, device)
    texts = [*TEXTS, LONG]
    found = results_of(runner, [Summarize(text, max_tokens=12) for text in texts])
    assert found == [Written(written(tmp_path, text)) for text in texts]
    assert len(set(found)) > 1

    short, _ = results_of(runner, [Summarize("good", max_tokens=1)] * 2)
    assert len(short.text.split()) <= 1
    # No more than it has positions for.
    results_of(runner, [Summarize("good", max_tokens=4000)] * 2)


def test_translations_by_a_prefix(tmp_path: Path) -> None:
    """T5's config names the pairs of languages, and what stands before a text of each."""
    write_one_shot("translation", tmp_path)
    runner = make("translation", tmp_path)
    tasks: list[Task] = []
    expected = []
    for target, prefix in (("de", "good "), ("fr", "bad ")):
        for text in TEXTS:
            tasks.append(Translate(text, "en", target, max_tokens=12))
            expected.append(Written(written(tmp_path, prefix + text)))
    assert results_of(runner, tasks) == expected
    assert len(set(expected)) > 2

    for source, target in (("en", "es"), (None, "de"), (None, None)):
        with pytest.raises(InvalidRequest, match="this model translates en_to_de, en_to_fr"):
            runner.read(Translate("good", source, target), FilesAtHand({}))


def test_summaries_by_a_prefix(tmp_path: Path) -> None:
    write_one_shot("translation", tmp_path)
    [found, _] = results_of(make("summarization", tmp_path), [Summarize("good", 12)] * 2)
    assert found == Written(written(tmp_path, "just good"))


def write_multilingual(path: Path) -> None:
    """Write a network that knows en, de and fr by tokens of its tokenizer."""
    vocab = {sign: number for number, sign in enumerate(["<s>", "<pad>", "</s>", "<unk>"])}
    for word in [*"abcdefghijklmnopqrstuvwxyz", "\u2581"]:
        vocab[word] = len(vocab)
    tokenizer = NllbTokenizer(
        vocab=vocab, merges=[], extra_special_tokens=["eng", "deu", "fra"], src_lang="eng"
    )
    tokenizer.save_pretrained(path)
    torch.manual_seed(3)
    config = M2M100Config(
        vocab_size=len(tokenizer),
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        init_std=0.5,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=2,
    )
    M2M100ForConditionalGeneration(config).save_pretrained(path)


def test_translations_by_tokens_of_languages(tmp_path: Path) -> None:
    write_multilingual(tmp_path)
    runner = load(RunnerOptions(str(tmp_path), name="m"))
    assert runner.spec.tasks == ("translation",)
    warm_up(runner)

    tasks: list[Task] = []
    expected = []
    for source, target in (("eng", "deu"), ("deu", "eng"), ("eng", "fra")):
        for text in ("good day", "a film"):
            tasks.append(Translate(text, source, target, max_tokens=12))
            tokenizer = AutoTokenizer.from_pretrained(tmp_path, src_lang=source)
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            first = tokenizer.convert_tokens_to_ids(target)
            [answer] = network_of(tmp_path).generate(
                ids, max_new_tokens=12, forced_bos_token_id=first
            )
            expected.append(Written(tokenizer.decode(answer, skip_special_tokens=True)))
    assert results_of(runner, tasks) == expected
    assert len(set(expected)) > 3

    # Without a source it is the tokenizer's own, whatever was translated before.
    for source in ("deu", "fra"):
        runner.read(Translate("good day", source, "eng"), FilesAtHand({}))
        default, named = (
            runner.read(Translate("good day", one, "deu"), FilesAtHand({})).chunks[0]
            for one in (None, "eng")
        )
        assert default["input_ids"].tolist() == named["input_ids"].tolist()
    with pytest.raises(InvalidRequest, match="translates into several languages"):
        runner.read(Translate("good"), FilesAtHand({}))
    for source, target in (("eng", "klingon"), ("klingon", "eng")):
        with pytest.raises(InvalidRequest, match="'klingon', but eng, deu, fra"):
            runner.read(Translate("good", source, target), FilesAtHand({}))


def test_one_pair_of_languages_is_not_named(tmp_path: Path) -> None:
    write_one_shot("summarization", tmp_path)
    runner = make("translation", tmp_path)
    [found, _] = results_of(runner, [Translate("good", max_tokens=12)] * 2)
    assert found == Written(written(tmp_path, "good"))
    with pytest.raises(InvalidRequest, match="one pair of languages"):
        runner.read(Translate("good", "en", "de"), FilesAtHand({}))


def best_spans(
    path: Path, question: str, context: str, *, top_k: int, max_length: int
) -> list[tuple[float, int, int]]:
    """Return the best answers, found by trying every span of every window."""
    model = network_of(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    whole = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
    asked = tokenizer(question, add_special_tokens=False)["input_ids"]
    room = 32 - len(asked) - 3
    found: dict[tuple[int, int], float] = {}
    for start in range(0, len(whole["input_ids"]), room - 8):
        ids = whole["input_ids"][start : start + room]
        row = [2, *asked, 3, *ids, 3]
        types = [0] * (len(asked) + 2) + [1] * (len(ids) + 1)
        with torch.no_grad():
            output = model(torch.tensor([row]), token_type_ids=torch.tensor([types]))
        begin = len(asked) + 2
        first = output.start_logits[0, begin : begin + len(ids)].softmax(0).tolist()
        last = output.end_logits[0, begin : begin + len(ids)].softmax(0).tolist()
        for i in range(len(ids)):
            for j in range(i, min(len(ids), i + max_length)):
                place = (
                    whole["offset_mapping"][start + i][0],
                    whole["offset_mapping"][start + j][1],
                )
                found[place] = max(found.get(place, 0.0), first[i] * last[j])
        if start + room >= len(whole["input_ids"]):
            break
    spans = sorted(((score, *place) for place, score in found.items()), reverse=True)
    return spans[:top_k]


@pytest.mark.parametrize(("top_k", "max_length"), [(1, 15), (3, 2)])
def test_answers_in_a_text(tmp_path: Path, top_k: int, max_length: int, device: str) -> None:
    """The texts have one window, or some that overlap."""
    write_one_shot("question-answering", tmp_path)
    runner = make("question-answering", tmp_path, device)
    varied = " ".join(TEXTS * 6)
    pairs = [(question, context) for question in TEXTS[:2] for context in (*TEXTS, varied)]
    tasks: list[Task] = []
    for question, context in pairs:
        tasks.append(FindAnswer(question, context, top_k, max_length))
    found = results_of(runner, tasks)

    num_answers = 0
    for (question, context), result in zip(pairs, found, strict=True):
        expected = []
        for score, start, end in best_spans(
            tmp_path, question, context, top_k=top_k, max_length=max_length
        ):
            expected.append(FoundAnswer(context[start:end], score, start, end))
        assert_same(result, FoundAnswers(tuple(expected)))
        places = [(answer.start, answer.end) for answer in result.answers]
        assert places == [(answer.start, answer.end) for answer in expected]
        num_answers += len(places)
    assert num_answers > len(pairs) or top_k == 1


def test_a_question_without_room_for_a_text_is_refused(tmp_path: Path) -> None:
    write_one_shot("question-answering", tmp_path)
    runner = make("question-answering", tmp_path)
    with pytest.raises(InvalidRequest, match="cannot read the input"):
        runner.read(FindAnswer(LONG, "good"), FilesAtHand({}))


@pytest.mark.parametrize("prompt", [None, "a good"])
def test_captions(tmp_path: Path, prompt: str | None, device: str) -> None:
    write_one_shot("image-to-text", tmp_path)
    runner = make("image-to-text", tmp_path, device)
    tasks: list[Task] = [DescribeImage(name, prompt, max_tokens=12) for name in PICTURES]
    found = results_of(runner, tasks)

    processor = AutoImageProcessor.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    options: dict[str, Any] = {}
    if prompt is not None:
        words = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        options["decoder_input_ids"] = torch.tensor([[2, *words]])
    for data, result in zip(PICTURES.values(), found, strict=True):
        pixels = processor(images=decode_image(data, max_pixels=10_000), return_tensors="pt")
        [ids] = network_of(tmp_path).generate(pixels["pixel_values"], max_new_tokens=12, **options)
        assert result == Written(tokenizer.decode(ids, skip_special_tokens=True).strip())
        assert result.text.startswith(prompt or "")
    assert len(set(found)) > 1


def test_answers_about_pictures(tmp_path: Path, device: str) -> None:
    write_one_shot("visual-question-answering", tmp_path)
    runner = make("visual-question-answering", tmp_path, device)
    pairs = [(name, question) for name in PICTURES for question in TEXTS[:2]]
    found = results_of(runner, [AnswerAboutImage(name, text, 2) for name, text in pairs])

    processor = AutoImageProcessor.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = network_of(tmp_path)
    for (name, question), result in zip(pairs, found, strict=True):
        image = decode_image(PICTURES[name], max_pixels=10_000)
        inputs = {**tokenizer(question, return_tensors="pt")}
        with torch.no_grad():
            logits = model(**inputs, **processor(images=image, return_tensors="pt")).logits[0]
        scores = dict(zip(("yes", "no", "two"), logits.sigmoid().tolist(), strict=True))
        best = sorted(scores.items(), key=lambda pair: -pair[1])[:2]
        assert [answer.text for answer in result.answers] == [text for text, _ in best]
        assert [answer.score for answer in result.answers] == pytest.approx(
            [score for _, score in best], rel=1e-3
        )


def test_pictures_of_a_higher_resolution(tmp_path: Path) -> None:
    """As transformers documents it, without the pixels that the processor adds at two sides."""
    network: Any = write_one_shot("image-to-image", tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    runner = make("image-to-image", tmp_path)
    sides = [(21, 17), (22, 18), (9, 30)]
    files = {f"p{n}": encoded(picture(*side, seed=n)) for n, side in enumerate(sides)}
    items = [runner.read(ChangePicture(name, "", 0), FilesAtHand(files)) for name in files]
    assert runner.group_key(items[0]) == runner.group_key(items[1]) != runner.group_key(items[2])

    for batch in ([0], [1], [2], [0, 1]):
        outputs = runner.run([items[number] for number in batch], Unwatched())
        for number, output in zip(batch, outputs, strict=True):
            width, height = sides[number]
            given = processor(picture(width, height, seed=number), return_tensors="pt")
            made = network(**given).reconstruction[0].detach().clamp(0, 1).numpy()
            expected = (np.moveaxis(made, 0, -1) * 255.0).round()[: 2 * height, : 2 * width]
            assert isinstance(output, TaskOutput), output
            assert output.result == Pictures((Picture(0, 2 * width, 2 * height),))
            pixels = np.asarray(Image.open(io.BytesIO(output.files[0].data)))
            assert pixels.shape == expected.shape
            # Where a level lies between two, the last digits of a sum decide.
            assert np.abs(pixels - expected).max() <= 1
            assert len(np.unique(pixels)) > 50


def test_a_picture_of_a_higher_resolution_has_no_prompt_and_a_limit(tmp_path: Path) -> None:
    write_one_shot("image-to-image", tmp_path)
    own = OneShotOptions(task="image-to-image", max_pixels=80 * 60)
    runner = load(RunnerOptions(str(tmp_path), name="m", own=own))
    files = FilesAtHand({"full": encoded(picture(40, 30)), "large": encoded(picture(40, 31))})
    runner.read(ChangePicture("full", "", 0), files)
    with pytest.raises(InvalidRequest, match="at most 1200 pixels"):
        runner.read(ChangePicture("large", "", 0), files)
    for asked in (ChangePicture("full", "a cup", 0), ChangePicture("full", "", 0, num_images=2)):
        with pytest.raises(InvalidRequest, match="no prompt and no options"):
            runner.read(asked, files)


def test_speech(tmp_path: Path) -> None:
    """Its chance is the seed's, whatever else is spoken at the same time."""
    write_one_shot("text-to-speech", tmp_path)
    runner = make("text-to-speech", tmp_path)
    model = network_of(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tasks = [
        Speak("good film", 1),
        Speak("good film", 2),
        Speak("good film", 1, speed=2.0),
        Speak("good film", 1, speaker=2),
        Speak("a very good film indeed", 1, format="flac"),
    ]
    items = [runner.read(task, NO_FILES) for task in tasks]
    assert len({runner.group_key(item) for item in items}) == len(items)
    lengths = []
    for task, item in zip(tasks, items, strict=True):
        torch.manual_seed(99)
        before = torch.get_rng_state()
        [output] = runner.run([item], Unwatched())
        assert torch.equal(torch.get_rng_state(), before)
        assert isinstance(output, TaskOutput)
        assert isinstance(output.result, Spoken)

        torch.manual_seed(task.seed)
        with torch.no_grad():
            expected = model(
                **tokenizer(task.text, return_tensors="pt"),
                speaking_rate=task.speed,
                speaker_id=task.speaker or 0,
            ).waveform[0]
        [file] = output.files
        samples = decode_sound(file.data, rate=16_000, max_seconds=60)
        assert output.result == Spoken(len(expected) / 16_000, 16_000)
        # A file has 16 bits a sample.
        assert samples == pytest.approx(expected.clamp(-1, 1).numpy(), abs=1e-4)
        lengths.append(len(samples))
    assert lengths[0] == pytest.approx(2 * lengths[2], rel=0.2)

    with pytest.raises(InvalidRequest, match="voice: this model has 3 voices"):
        runner.read(Speak("good", 1, speaker=3), NO_FILES)


@pytest.mark.parametrize("format", get_args(SoundFormat))
def test_sounds_are_written_in_every_format(format: SoundFormat) -> None:
    """The file that is read again has the length and the tone of what was written."""
    samples = tones(440.0, seconds=1.0, rate=24_000)
    data = encode_sound(samples, 24_000, format)
    if format == "pcm":
        read = np.frombuffer(data, "<i2").astype(np.float32) / 32_767
    else:
        read = decode_sound(data, rate=24_000, max_seconds=2)
    assert len(read) == pytest.approx(24_000, abs=2400)
    spectrum = np.abs(np.fft.rfft(read[:24_000], 24_000))
    assert int(spectrum.argmax()) == 440
    loudest = encode_sound(np.array([2.0, -2.0], np.float32), 24_000, "pcm")
    assert np.frombuffer(loudest, "<i2").tolist() == [32_767, -32_767]


def test_forecasts(tmp_path: Path, device: str) -> None:
    """The series have different lengths, up to the network's horizon of eight and beyond."""
    write_one_shot("time-series-forecasting", tmp_path)
    runner = load(RunnerOptions(str(tmp_path), name="m", device=device))
    model = network_of(tmp_path)
    lengths = (1, 5, 16, 40)
    series = [tuple(np.sin(np.arange(n) / 2 + n).tolist()) for n in lengths]
    for horizon in (3, 8, 20):
        tasks: list[Task] = [Forecast(values, horizon) for values in series]
        items = [runner.read(task, NO_FILES) for task in tasks]
        together = runner.run(items, Unwatched())
        for values, item, output in zip(series, items, together, strict=True):
            [alone] = runner.run([item], Unwatched())
            expected, quantiles = continued(model, list(values), horizon)
            for one in (alone, output):
                assert isinstance(one, TaskOutput)
                assert isinstance(one.result, Forecasted)
                assert one.result.values == pytest.approx(expected, rel=1e-4, abs=1e-5)
                assert [quantile.level for quantile in one.result.quantiles] == [0.1, 0.5, 0.9]
                for quantile, numbers in zip(one.result.quantiles, quantiles, strict=True):
                    assert quantile.values == pytest.approx(numbers, rel=1e-4, abs=1e-5)


def continued(
    model: Any, values: list[float], horizon: int
) -> tuple[list[float], list[list[float]]]:
    """Return the forecast of a series, and its quantiles, by calls of the library's network."""
    forecast: list[float] = []
    quantiles: list[list[float]] = [[], [], []]
    while len(forecast) < horizon:
        with torch.no_grad():
            output = model(past_values=[torch.tensor(values + forecast)])
        forecast += output.mean_predictions[0].tolist()
        for number in range(3):
            quantiles[number] += output.full_predictions[0, :, 1 + number].tolist()
    return forecast[:horizon], [numbers[:horizon] for numbers in quantiles]


def test_answers_in_writing(tmp_path: Path) -> None:
    """BLIP writes its answer, and tells no probability."""
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    shape = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.5,
    }
    text = {"vocab_size": SIZE, "max_position_embeddings": 34, "encoder_hidden_size": 24}
    text |= {"pad_token_id": 0, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
    torch.manual_seed(2)
    vision = {"image_size": 32, "patch_size": 8}
    model = BlipForQuestionAnswering(
        BlipConfig(text_config=text | shape, vision_config=vision | shape)
    )
    model.eval().save_pretrained(tmp_path)
    runner = load(RunnerOptions(str(tmp_path), name="m"))
    assert runner.spec.tasks == ("visual-question-answering",)

    found = []
    for name in PICTURES:
        item = runner.read(AnswerAboutImage(name, TEXTS[1]), FilesAtHand(PICTURES))
        [output] = runner.run([item], Unwatched())
        assert isinstance(output, TaskOutput), output
        found.append(output.result)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for data, result in zip(PICTURES.values(), found, strict=True):
        inputs = tokenizer(TEXTS[1], return_token_type_ids=False, return_tensors="pt")
        image = decode_image(data, max_pixels=10_000)
        pixels = processor(images=image, return_tensors="pt")["pixel_values"]
        [ids] = model.generate(**inputs, pixel_values=pixels, max_new_tokens=33)
        assert isinstance(result, ImageAnswers)
        [answer] = result.answers
        assert answer.score is None
        assert answer.text == tokenizer.decode(ids, skip_special_tokens=True).strip()
