"""Networks that do a task in one call answer as transformers does on the same weights."""

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from redis.asyncio import Redis
from transformers import pipeline

from shared.errors import ArtifactNotFound, InvalidRequest, WorkerFailed
from shared.messages import Done, Generate, Labelled, Sampling, decode_event, encode
from shared.tasks.runner_options import OneShotOptions, OneShotTask
from shared.tasks.sound import ClassifySound, Transcribe, Transcript
from shared.tasks.vision import (
    ClassifyImage,
    ClassifyImageAmong,
    DepthEstimated,
    DetectedObjects,
    DetectObjects,
    DetectObjectsAmong,
    EstimateDepth,
    Segmented,
    SegmentImage,
)
from shared.tasks.words import ClassifyAmong, FilledMasks, FillMask, LabelledParts, LabelTokens
from tests.fixtures.one_shots import write_one_shot
from tests.fixtures.pictures import encoded, picture
from tests.fixtures.sounds import RATE, tones, wav
from tests.fixtures.worker.fleets import fleet
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import FilesAtHand, TaskOutput, Unwatched
from worker.host.loading import warm_up
from worker.media.sound import decode_sound
from worker.models.errors import ModelFormatError
from worker.runners.one_shot import ONE_SHOTS, OneShotRunner
from worker.runners.registry import load_runner
from worker.tasks.sound import SOUND

SIZES = [(70, 50), (32, 32), (60, 20), (3, 2)]
TONES = [(440.0, 0.5), (880.0, 0.5), (300.0, 0.4), (100.0, 0.7)]
TEXTS = ["good", "a very good film indeed", "bad bad bad", "just a film that is very very long"]
LABELS = ("good", "bad film")


def files_of_kind(kind: str) -> list[tuple[str, bytes, Any]]:
    """Return the name and the bytes of files, and what the library gets in their place."""
    if kind == "image":
        pictures = [picture(*size, seed=number) for number, size in enumerate(SIZES)]
        return [(f"file-{n}", encoded(one), one) for n, one in enumerate(pictures)]
    files = []
    for number, (hertz, seconds) in enumerate(TONES):
        data = wav(tones(hertz, 3 * hertz, seconds=seconds))
        samples = decode_sound(data, rate=RATE, max_seconds=60)
        files.append((f"file-{number}", data, samples))
    return files


def make(task: str, path: Path, device: str = "cpu") -> OneShotRunner:
    write_one_shot(task, path)
    own = OneShotOptions(task=task)  # type: ignore[arg-type]
    runner = load_runner("one-shot", RunnerOptions(str(path), name="m", device=device, own=own))
    assert isinstance(runner, OneShotRunner)
    return runner


def run(runner: OneShotRunner, *items: Any) -> list[TaskOutput]:
    outputs = []
    for output in runner.run(items, Unwatched()):
        assert isinstance(output, TaskOutput), output
        done: Done = Done("stop", 0, 0, result=output.result)
        assert decode_event(encode(done)) == done, "it can be sent"
        outputs.append(output)
    return outputs


def labels_of(output: TaskOutput) -> list[dict[str, Any]]:
    assert isinstance(output.result, Labelled)
    return [{"label": one.name, "score": one.score} for one in output.result.labels]


def objects_of(output: TaskOutput) -> list[dict[str, Any]]:
    assert isinstance(output.result, DetectedObjects)
    found = []
    for one in output.result.objects:
        box = {"xmin": one.xmin, "ymin": one.ymin, "xmax": one.xmax, "ymax": one.ymax}
        found.append({"score": one.score, "label": one.label, "box": box})
    return found


def segments_of(output: TaskOutput) -> list[dict[str, Any]]:
    assert isinstance(output.result, Segmented)
    found = []
    for one, file in zip(output.result.segments, output.files, strict=True):
        mask = np.asarray(Image.open(io.BytesIO(file.data)))
        assert one.area == pytest.approx((mask == 255).mean())
        found.append({"score": one.score, "label": one.label, "mask": mask.tolist()})
    return found


def depth_of(output: TaskOutput) -> list[float]:
    """Return least, most and mean, and a few pixels of the map from 0 (least) to 1 (most)."""
    result = output.result
    assert isinstance(result, DepthEstimated)
    [file] = output.files
    levels = np.asarray(Image.open(io.BytesIO(file.data))).astype(float)
    assert (levels.min(), levels.max()) in ((0, 65535), (0, 0))
    return [result.least, result.most, result.mean, *(levels[0, :3] / 65535).tolist()]


def parts_of(output: TaskOutput) -> list[dict[str, Any]]:
    assert isinstance(output.result, LabelledParts)
    found = []
    for one in output.result.parts:
        found.append(
            {"entity_group": one.label, "score": one.score, "start": one.start, "end": one.end}
        )
    return found


def fills_of(output: TaskOutput) -> list[list[dict[str, Any]]]:
    assert isinstance(output.result, FilledMasks)
    masks = []
    for fills in output.result.masks:
        masks.append(
            [
                {
                    "score": one.score,
                    "token": one.token,
                    "token_str": one.token_text,
                    "sequence": one.text,
                }
                for one in fills
            ]
        )
    return masks


def library_segments(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one | {"mask": np.asarray(one["mask"]).tolist()} for one in found]


def library_depth(found: dict[str, Any]) -> list[float]:
    depth = found["predicted_depth"].numpy()
    shares = (depth[0, :3] - depth.min()) / (depth.max() - depth.min())
    return [depth.min(), depth.max(), depth.mean(), *shares]


def library_parts(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: one[name] for name in ("entity_group", "score", "start", "end")} for one in found
    ]


def library_labels(found: dict[str, Any]) -> list[dict[str, Any]]:
    pairs = zip(found["labels"], found["scores"], strict=True)
    return [{"label": name, "score": score} for name, score in pairs]


def library_fills(found: Any) -> list[list[dict[str, Any]]]:
    masks = found if isinstance(found[0], list) else [found]
    names = ("score", "token", "token_str", "sequence")
    return [[{name: one[name] for name in names} for one in fills] for fills in masks]


def transcript_of(output: TaskOutput) -> dict[str, Any]:
    assert isinstance(output.result, Transcript)
    parts = [{"text": one.text, "timestamp": (one.start, one.end)} for one in output.result.parts]
    return {"text": output.result.text, "chunks": parts}


def library_transcript(found: dict[str, Any]) -> dict[str, Any]:
    parts = [one | {"text": one["text"].strip()} for one in found["chunks"]]
    return {"text": found["text"].strip(), "chunks": parts}


def itself(found: Any) -> Any:
    return found


Row = tuple[
    Callable[[str], Any],
    dict[str, Any],
    Callable[[TaskOutput], Any],
    Callable[[Any], Any],
    list[str],
]
# Of each task: the task, the options of the library's own call, our result, the library's, and texts.
ROWS: dict[str, Row] = {
    "image-classification": (ClassifyImage, {"top_k": 3}, labels_of, itself, []),
    "zero-shot-image-classification": (
        lambda image: ClassifyImageAmong(image, LABELS),
        {"candidate_labels": list(LABELS)},
        labels_of,
        itself,
        [],
    ),
    "object-detection": (
        lambda image: DetectObjects(image, 0.2),
        {"threshold": 0.2},
        objects_of,
        lambda found: sorted(found, key=lambda one: -one["score"]),
        [],
    ),
    "zero-shot-object-detection": (
        lambda image: DetectObjectsAmong(image, LABELS, 0.3),
        {"candidate_labels": list(LABELS), "threshold": 0.3},
        objects_of,
        itself,
        [],
    ),
    "image-segmentation": (SegmentImage, {}, segments_of, library_segments, []),
    "depth-estimation": (
        lambda image: EstimateDepth(image, with_map=True),
        {},
        depth_of,
        library_depth,
        [],
    ),
    "audio-classification": (ClassifySound, {"top_k": 3}, labels_of, itself, []),
    "automatic-speech-recognition": (
        lambda audio: Transcribe(audio, "word"),
        {"return_timestamps": "word"},
        transcript_of,
        library_transcript,
        [],
    ),
    "token-classification": (
        LabelTokens,
        {"aggregation_strategy": "simple"},
        parts_of,
        library_parts,
        TEXTS,
    ),
    "zero-shot-classification": (
        lambda text: ClassifyAmong(text, LABELS),
        {"candidate_labels": list(LABELS)},
        labels_of,
        library_labels,
        TEXTS,
    ),
    "fill-mask": (
        FillMask,
        {"top_k": 5},
        fills_of,
        library_fills,
        ["[MASK]", "a [MASK] film", "very very [MASK] film indeed", "[MASK] bad [MASK]"],
    ),
}


OWN = {
    "summarization",
    "translation",
    "question-answering",
    "image-to-text",
    "visual-question-answering",
    "text-to-speech",
    "time-series-forecasting",
    "video-classification",
    "image-to-image",
}
"""Tasks of our own pipelines, which `test_own_pipelines.py` compares with the networks."""


def test_every_task_has_a_row() -> None:
    """The option `task` names each of them, too."""
    assert ROWS.keys() | OWN == ONE_SHOTS.keys()
    assert set(get_args(OneShotTask)) == ONE_SHOTS.keys()


@pytest.mark.parametrize("task", ROWS)
def test_answers_are_those_of_transformers(task: str, tmp_path: Path, device: str) -> None:
    """One at a time and all at once."""
    ask, options, ours, theirs, texts = ROWS[task]
    runner = make(task, tmp_path, device)
    library = pipeline(task, model=str(tmp_path), device="cpu")  # type: ignore[call-overload]
    files: dict[str, bytes] = {}
    inputs: list[Any] = list(texts)
    questions = list(texts)
    if not texts:
        for name, data, given in files_of_kind("audio" if task in SOUND else "image"):
            inputs.append(given)
            questions.append(name)
            files[name] = data

    items = [runner.read(ask(question), FilesAtHand(files)) for question in questions]
    groups: dict[Any, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(runner.group_key(item), []).append(index)
    together: dict[int, TaskOutput] = {}
    for indices in groups.values():
        together.update(
            zip(indices, run(runner, *[items[index] for index in indices]), strict=True)
        )
    assert len(groups) < len(items), "some share a call"

    answers = []
    for index, given in enumerate(inputs):
        expected = theirs(library(given, **options))
        [alone] = run(runner, items[index])
        assert_close(ours(alone), expected)
        assert_close(ours(together[index]), expected)
        answers.append(repr(expected))
    assert len(set(answers)) > 1, "different inputs have different answers"


def assert_close(actual: Any, expected: Any) -> None:
    """Assert that nested lists and dictionaries are equal, numbers but for the last digits."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(actual[name], value)
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_close(one, other)
    elif isinstance(expected, float | np.floating):
        assert actual == pytest.approx(float(expected), rel=2e-4, abs=2e-5)
    else:
        assert actual == expected


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> OneShotRunner:
    return make("image-classification", tmp_path_factory.mktemp("pictures"))


def test_numbers_that_are_none_are_an_error(tmp_path: Path) -> None:
    """Weights can be broken where a trial does not show it."""
    classifier = make("image-classification", tmp_path)
    item = classifier.read(ClassifyImage("x"), FilesAtHand({"x": encoded(picture())}))
    item.chunks[0]["pixel_values"][0, 0, 0, 0] = float("nan")
    [output] = classifier.run([item], Unwatched())
    assert isinstance(output, WorkerFailed)


def test_only_the_likeliest_are_returned(runner: OneShotRunner) -> None:
    files = FilesAtHand({"x": encoded(picture())})
    [output] = run(runner, runner.read(ClassifyImage("x", top_k=1), files))
    assert len(labels_of(output)) == 1


def test_a_text_needs_a_mask_and_a_template_its_place(tmp_path: Path) -> None:
    filler = make("fill-mask", tmp_path / "fill")
    with pytest.raises(InvalidRequest, match="expected a mask"):
        filler.read(FillMask("good film"), FilesAtHand({}))
    one = run(filler, filler.read(FillMask("a <mask> film"), FilesAtHand({})))
    other = run(filler, filler.read(FillMask("a [MASK] film"), FilesAtHand({})))
    assert one == other

    judge = make("zero-shot-classification", tmp_path / "judge")
    for template in ("no place", "{} and {}", "{0}", "{} {name}"):
        with pytest.raises(InvalidRequest, match=r"template: expected \{\} once"):
            judge.read(ClassifyAmong("good", LABELS, template), FilesAtHand({}))


def test_a_picture_that_the_network_cannot_take_is_refused(tmp_path: Path) -> None:
    """Scaled to the network's size this one would have no height."""
    detector = make("object-detection", tmp_path)
    files = FilesAtHand({"x": encoded(picture(300, 2))})
    with pytest.raises(InvalidRequest, match="cannot read the input"):
        detector.read(DetectObjects("x"), files)


def test_what_cannot_be_read_is_refused(runner: OneShotRunner) -> None:
    files = FilesAtHand({"x": b"no picture"})
    with pytest.raises(InvalidRequest, match="expected a picture"):
        runner.read(ClassifyImage("x"), files)
    with pytest.raises(ArtifactNotFound):
        runner.read(ClassifyImage("y"), files)
    with pytest.raises(InvalidRequest, match="does not serve 'generate'"):
        runner.read(Generate("a", Sampling(1, seed=1)), files)


@pytest.mark.parametrize("task", ONE_SHOTS)
def test_a_trial_shows_that_it_works(task: str, tmp_path: Path) -> None:
    assert warm_up(make(task, tmp_path)).startswith(("labelled its trial", f"did a {task} task"))


def test_an_architecture_tells_the_task(tmp_path: Path) -> None:
    for task in ("image-classification", "object-detection", "token-classification"):
        path = tmp_path / task
        write_one_shot(task, path)
        assert load_runner("auto", RunnerOptions(str(path))).spec.tasks == (task,)


@pytest.mark.parametrize("missing", ["model.safetensors", "preprocessor_config.json"])
def test_missing_files_are_named(tmp_path: Path, missing: str) -> None:
    write_one_shot("image-classification", tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ModelFormatError, match=missing.partition(".")[0]):
        load_runner("auto", RunnerOptions(str(tmp_path)))


async def test_a_picture_is_labelled_over_http(redis: Redis, runner: OneShotRunner) -> None:
    """As base64, as a data URL and as an uploaded file; twice the same bytes are one file."""
    data = encoded(picture())
    [alone] = run(runner, runner.read(ClassifyImage("x"), FilesAtHand({"x": data})))

    async with fleet(redis, runner) as client:
        uploaded = await client.post(
            "/v1/artifacts",
            content=data,
            headers={"Content-Type": "image/png"},
            params={"filename": "patches.png"},
        )
        file_id = uploaded.json()["id"]
        for inputs in given_as(data, file_id):
            body = {"task": "image-classification", "inputs": inputs, "model_id": "t"}
            answer = await client.post("/api/inference", json=body)
            assert answer.status_code == 200, answer.text
            assert_close(answer.json()["result"]["labels"], labels_of(alone))

        files = (await client.get("/v1/files")).json()["data"]
        assert [(file["id"], file["filename"]) for file in files] == [(file_id, "patches.png")]


def given_as(data: bytes, file_id: str) -> Iterator[str]:
    """Yield the ways in which a body can hold a file."""
    text = base64.b64encode(data).decode()
    yield text
    yield f"data:image/png;base64,{text}"
    yield file_id


@pytest.mark.parametrize(
    ("inputs", "status", "code", "words"),
    [
        ("bm8gcGljdHVyZQ==", 400, "invalid_request", "expected a picture"),
        ("not base64!", 400, "invalid_request", "inputs: expected base64"),
        ("https://example.com/cat.png", 400, "invalid_request", "URLs are not fetched"),
        ("/etc/passwd", 400, "invalid_request", "paths are not opened"),
        ("data:image/png;base64,", 400, "invalid_request", "at least one byte"),
        ("file-" + "0" * 32, 404, "artifact_not_found", "file-0000"),
        (5, 422, "invalid_request", "valid string"),
    ],
)
async def test_what_is_no_picture_is_refused_over_http(
    redis: Redis, runner: OneShotRunner, inputs: object, status: int, code: str, words: str
) -> None:
    async with fleet(redis, runner) as client:
        body = {"task": "image-classification", "inputs": inputs, "model_id": "t"}
        answer = await client.post("/api/inference", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == code
    assert words in answer.json()["error"]["message"]
