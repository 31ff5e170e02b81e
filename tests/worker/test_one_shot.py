"""Networks that do a task in one call answer as transformers does on the same weights."""

import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import torch
from redis.asyncio import Redis
from transformers import pipeline

from shared.errors import ArtifactNotFound, InvalidRequest
from shared.messages import Generate, Labelled, Sampling
from shared.tasks.vision import ClassifyImage
from tests.fixtures.api.fronts import in_memory
from tests.fixtures.pictures import encoded, picture, write_classifier
from tests.fixtures.polling import until
from tests.fixtures.worker.services import service, serving
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import FilesAtHand, TaskOutput
from worker.host.loading import warm_up
from worker.models.errors import ModelFormatError
from worker.runners.one_shot import OneShotRunner
from worker.runners.registry import load_runner

SIZES = [(70, 50), (32, 32), (300, 20), (1, 1)]


class Unwatched:
    """A batch that nobody watches."""

    def heartbeat(self) -> None:
        return

    def report(self, index: int, done: int, total: int | None = None, note: str = "") -> None:
        return

    def is_wanted(self, index: int) -> bool:
        return True


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    write_classifier(path)
    return path


@pytest.fixture
def runner(path: Path) -> OneShotRunner:
    runner = load_runner("auto", RunnerOptions(str(path), name="pictures"))
    assert isinstance(runner, OneShotRunner)
    return runner


def test_labels_are_those_of_transformers(runner: OneShotRunner, path: Path) -> None:
    """One at a time and all at once."""
    library = pipeline("image-classification", model=str(path), device="cpu")
    files = {}
    for number, (width, height) in enumerate(SIZES):
        files[f"file-{number}"] = encoded(picture(width, height, seed=number))
    items = [runner.read(ClassifyImage(name), FilesAtHand(files)) for name in files]
    assert len({runner.group_key(item) for item in items}) == 1

    together = runner.run(items, Unwatched())
    alone = [runner.run([item], Unwatched())[0] for item in items]

    scores_seen = set()
    for number, (width, height) in enumerate(SIZES):
        expected = library(picture(width, height, seed=number), top_k=3)
        for output in (together[number], alone[number]):
            assert isinstance(output, TaskOutput)
            assert isinstance(output.result, Labelled)
            labels = output.result.labels
            assert [label.name for label in labels] == [one["label"] for one in expected]
            scores = torch.tensor([label.score for label in labels])
            torch.testing.assert_close(scores, torch.tensor([one["score"] for one in expected]))
        scores_seen.add(round(labels[0].score, 4))
    assert len(scores_seen) == len(SIZES), "different pictures have different scores"


def test_only_the_likeliest_are_returned(runner: OneShotRunner) -> None:
    files = FilesAtHand({"x": encoded(picture())})
    [output] = runner.run([runner.read(ClassifyImage("x", top_k=1), files)], Unwatched())
    assert isinstance(output, TaskOutput)
    assert isinstance(output.result, Labelled)
    assert len(output.result.labels) == 1


def test_what_cannot_be_read_is_refused(runner: OneShotRunner) -> None:
    files = FilesAtHand({"x": b"no picture"})
    with pytest.raises(InvalidRequest, match="expected a picture"):
        runner.read(ClassifyImage("x"), files)
    with pytest.raises(ArtifactNotFound):
        runner.read(ClassifyImage("y"), files)
    with pytest.raises(InvalidRequest, match="does not serve 'generate'"):
        runner.read(Generate("a", Sampling(1, seed=1)), files)


def test_a_trial_shows_that_it_works(runner: OneShotRunner) -> None:
    assert warm_up(runner).startswith("labelled")


@pytest.mark.parametrize("missing", ["model.safetensors", "preprocessor_config.json"])
def test_missing_files_are_named(tmp_path: Path, missing: str) -> None:
    write_classifier(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ModelFormatError, match=missing.partition(".")[0]):
        load_runner("auto", RunnerOptions(str(tmp_path)))


@asynccontextmanager
async def fleet(redis: Redis, runner: OneShotRunner) -> AsyncIterator[httpx.AsyncClient]:
    """Run a worker and a front, and yield a client when they are ready."""

    async def is_ready() -> bool:
        return (await client.get("/readyz")).status_code == 200

    async with serving(service(redis), runner), in_memory(redis) as client:
        await until(is_ready, "the fleet is ready")
        yield client


async def test_a_picture_is_labelled_over_http(redis: Redis, runner: OneShotRunner) -> None:
    """As base64, as a data URL and as an uploaded file; twice the same bytes are one file."""
    data = encoded(picture())
    library = runner.read(ClassifyImage("x"), FilesAtHand({"x": data}))
    [expected] = runner.run([library], Unwatched())
    assert isinstance(expected, TaskOutput)
    assert isinstance(expected.result, Labelled)

    async with fleet(redis, runner) as client:
        uploaded = await client.post(
            "/v1/artifacts",
            content=data,
            headers={"Content-Type": "image/png"},
            params={"filename": "patches.png"},
        )
        file_id = uploaded.json()["id"]
        for inputs in given(data, file_id):
            body = {"task": "image-classification", "inputs": inputs, "model_id": "t"}
            answer = await client.post("/api/inference", json=body)
            assert answer.status_code == 200, answer.text
            labels = answer.json()["result"]["labels"]
            assert [one["label"] for one in labels] == [
                label.name for label in expected.result.labels
            ]
            assert labels[0]["score"] == pytest.approx(expected.result.labels[0].score, abs=1e-6)

        files = (await client.get("/v1/files")).json()["data"]
        assert [(file["id"], file["filename"]) for file in files] == [(file_id, "patches.png")]


def given(data: bytes, file_id: str) -> Iterator[str]:
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
