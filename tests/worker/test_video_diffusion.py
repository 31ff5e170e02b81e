"""Videos made by a pipeline of diffusers are those of its own call, whole and by HTTP."""

import io
import itertools
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from diffusers import LTXImageToVideoPipeline, LTXPipeline
from numpy.typing import NDArray
from redis.asyncio import Redis

from shared.errors import ClientGone, InvalidRequest
from shared.messages import Done, decode_event, encode
from shared.settings.settings import ModelEntry, Settings
from shared.tasks.pictures import MakePictures
from shared.tasks.runner_options import DiffusionOptions
from shared.tasks.videos import AnimatePicture, MakeVideo, Video
from tests.fixtures.pictures import encoded, picture
from tests.fixtures.tiny_diffusion import write_video_pipeline
from tests.fixtures.worker.callers import Caller
from tests.fixtures.worker.fleets import fleet
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import NO_FILES, FilesAtHand, TaskOutput
from worker.host.facts import facts_of, modality_of
from worker.media.video import encode_video
from worker.models.errors import ModelFormatError
from worker.runners.registry import load_runner
from worker.runners.video_diffusion import VideoRunner

SMALL: dict[str, Any] = {"width": 64, "height": 32, "num_frames": 9, "num_inference_steps": 3}
TASK = MakeVideo("a cup", 7, fps=12, **SMALL)
GIVEN = picture(64, 32, seed=1)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video_pipeline(tmp_path_factory.mktemp("video"))


@pytest.fixture(scope="module")
def runner(path: Path) -> VideoRunner:
    return load(path)


def load(path: Path, **own: Any) -> VideoRunner:
    options = RunnerOptions(str(path), name="m", own=DiffusionOptions(**own))
    runner = load_runner("auto", options)
    assert isinstance(runner, VideoRunner)
    return runner


def made(runner: VideoRunner, task: Any, caller: Caller | None = None) -> TaskOutput:
    item = runner.read(task, FilesAtHand({"x": encoded(GIVEN)}))
    [output] = runner.run([item], caller or Caller())
    assert isinstance(output, TaskOutput), output
    done: Done = Done("stop", 0, 0, result=output.result)
    assert decode_event(encode(done)) == done, "it can be sent"
    return output


def frames_of(data: bytes) -> NDArray[np.uint8]:
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)


def library_file(path: Path, **more: Any) -> bytes:
    """Return what the library's own pipeline makes, as a file."""
    kind: Any = LTXImageToVideoPipeline if "image" in more else LTXPipeline
    pipeline = kind.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(7)
    given = SMALL | {"prompt": "a cup", "generator": generator, "frame_rate": 12} | more
    [frames] = pipeline(**given, output_type="pil").frames
    return encode_video(frames, rate=12)


def test_a_video_is_that_of_the_library(path: Path, runner: VideoRunner) -> None:
    caller = Caller()
    output = made(runner, TASK, caller)
    assert output.result == Video(7, 64, 32, 9, 12)
    [file] = output.files
    assert (file.media_type, file.name) == ("video/mp4", "video.mp4")
    assert caller.steps == [(1, 3), (2, 3), (3, 3)]
    expected = frames_of(library_file(path))
    found = frames_of(file.data)
    assert found.shape == (9, 32, 64, 3)
    # A level may lie between two, and the file's compression makes more of it.
    assert np.abs(found.astype(int) - expected).mean() < 1
    assert found.std() > 10
    with av.open(io.BytesIO(file.data)) as container:
        assert container.streams.video[0].average_rate == 12


def test_a_video_that_begins_with_a_picture_is_that_of_the_library(
    path: Path, runner: VideoRunner
) -> None:
    task = AnimatePicture("x", "a cup", 7, fps=12, num_frames=9, num_inference_steps=3)
    output = made(runner, task)
    assert output.result == Video(7, 64, 32, 9, 12), "it has the size of the picture"
    expected = frames_of(library_file(path, image=GIVEN))
    assert np.abs(frames_of(output.files[0].data).astype(int) - expected).mean() < 1


def test_equal_seeds_make_equal_videos(runner: VideoRunner) -> None:
    tasks = [TASK, MakeVideo("a cup", 8, fps=12, **SMALL), MakeVideo("a road", 7, fps=12, **SMALL)]
    files = [made(runner, task).files[0].data for task in tasks]
    assert made(runner, TASK).files[0].data == files[0]
    for one, other in itertools.combinations(files, 2):
        assert one != other
    items = [runner.read(task, NO_FILES) for task in tasks[:2]]
    assert runner.group_key(items[0]) != runner.group_key(items[1]), "one at a time"


def test_what_nobody_waits_for_ends_between_two_steps(runner: VideoRunner) -> None:
    caller = Caller(leaves_after=1)
    [output] = runner.run([runner.read(TASK, NO_FILES)], caller)
    assert isinstance(output, ClientGone)
    assert caller.steps == [(1, 3)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 48}, "width: expected a multiple of 32, got 48"),
        ({"height": 16}, "height: expected a multiple of 32, got 16"),
        ({"num_frames": 8}, "num_frames: expected 1 more than a multiple of 4, got 8"),
        ({"num_frames": 21}, "num_frames: expected at most 17, got 21"),
        ({"num_inference_steps": 11}, "num_inference_steps: expected 1 to 10, got 11"),
        ({"width": 128, "height": 64}, "width: expected width x height of at most 4096 pixels"),
    ],
)
def test_what_cannot_be_made_is_refused(changes: dict[str, Any], words: str, path: Path) -> None:
    runner = load(path, max_pixels=4096, max_steps=10, max_frames=17)
    with pytest.raises(InvalidRequest, match=words):
        runner.read(MakeVideo("a", 1, **(SMALL | changes)), NO_FILES)


def test_what_is_left_open_is_the_models_own_within_the_caps(path: Path) -> None:
    runner = load(path, max_steps=10, max_frames=18)
    item = runner.read(MakeVideo("a", 1), NO_FILES)
    assert (item.width, item.height, item.fps) == (704, 512, 25)
    assert (item.num_frames, item.steps) == (17, 10)
    with pytest.raises(InvalidRequest, match="does not serve 'text-to-image'"):
        runner.read(MakePictures("a", 1), NO_FILES)
    with pytest.raises(ModelFormatError, match="max_pixels: expected at least 1024"):
        load(path, max_pixels=1000)


def test_its_tasks_are_known_before_it_is_loaded(path: Path) -> None:
    entry = ModelEntry(id="m", path=str(path))
    assert facts_of(entry, Settings(models=(entry,))).info.tasks == (
        "text-to-video",
        "image-to-video",
    )
    assert modality_of(entry, Settings(models=(entry,))) == "video"


async def test_a_video_is_made_over_http(redis: Redis, runner: VideoRunner) -> None:
    async with fleet(redis, runner) as client:
        body = {
            "task": "text-to-video",
            "inputs": "a cup",
            "model_id": "t",
            "options": SMALL | {"seed": 7, "frame_rate": 12},
        }
        answer = await client.post("/api/inference", json=body)
        assert answer.status_code == 200, answer.text
        result = answer.json()["result"]
        assert (result["num_frames"], result["fps"]) == (9, 12)
        file = await client.get(f"/v1/artifacts/{result['video']['id']}")
        assert file.content == made(runner, TASK).files[0].data
        assert file.headers["content-type"] == "video/mp4"
