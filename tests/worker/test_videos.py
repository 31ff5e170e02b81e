"""Videos become evenly spaced pictures, within limits, and are labelled as transformers does it."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, VideoMAEForVideoClassification

from shared.errors import InvalidRequest
from shared.messages import Labelled
from shared.tasks.vision import ClassifyVideo
from tests.fixtures.one_shots import write_one_shot
from tests.fixtures.pictures import encoded, picture
from tests.fixtures.sounds import tones, wav
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import FilesAtHand, TaskOutput, Unwatched
from worker.media.video import decode_video, encode_video
from worker.runners.one_shot import load

LIMITS = {"max_frames": 1000, "max_pixels": 1_000_000}


def greys(count: int, size: tuple[int, int] = (32, 32)) -> list[Image.Image]:
    """Return frames whose grey tells their number."""
    return [Image.new("RGB", size, (8 * number,) * 3) for number in range(count)]


def numbers_of(frames: list[Image.Image]) -> list[int]:
    return [round(float(np.asarray(frame).mean()) / 8) for frame in frames]


@pytest.mark.parametrize(
    ("count", "wanted", "expected"),
    [
        (25, 5, [0, 6, 12, 18, 24]),
        (25, 1, [0]),
        (3, 3, [0, 1, 2]),
        (2, 4, [0, 0, 1, 1]),
        (1, 3, [0, 0, 0]),
    ],
)
def test_frames_are_spread_over_the_whole(count: int, wanted: int, expected: list[int]) -> None:
    frames = decode_video(encode_video(greys(count)), num_frames=wanted, **LIMITS)
    assert numbers_of(frames) == expected


@pytest.mark.parametrize(("container", "codec"), [("matroska", "mpeg4"), ("avi", "mpeg4")])
def test_other_containers(container: str, codec: str) -> None:
    data = io.BytesIO()
    with av.open(data, "w", format=container) as output:
        stream = output.add_stream(codec, rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for frame in greys(9):
            output.mux(stream.encode(av.VideoFrame.from_image(frame)))
        output.mux(stream.encode(None))
    assert numbers_of(decode_video(data.getvalue(), num_frames=3, **LIMITS)) == [0, 4, 8]


VIDEO = encode_video(greys(20))


@pytest.mark.parametrize(
    ("data", "limits", "words"),
    [
        (b"", {}, "expected a video"),
        (b"no video", {}, "expected a video"),
        (VIDEO[:40], {}, "expected a video"),
        (encoded(picture()), {}, "expected a video"),
        (wav(tones(440.0)), {}, "expected a video"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", {}, "expected a video"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", {}, "expected a video"),
        (VIDEO, {"max_frames": 19}, "at most 19 frames"),
        (VIDEO, {"max_pixels": 1000}, "at most 1000 pixels, got 32 x 32"),
    ],
)
def test_what_is_refused(data: bytes, limits: dict[str, int], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        decode_video(data, num_frames=4, **LIMITS | limits)


def test_labels_are_those_of_transformers(tmp_path: Path) -> None:
    write_one_shot("video-classification", tmp_path)
    runner = load(RunnerOptions(str(tmp_path), name="m"))
    assert runner.spec.tasks == ("video-classification",)
    videos = {
        "up": encode_video(greys(9)),
        "down": encode_video(greys(9)[::-1]),
        "patches": encode_video([picture(48, 32, seed=seed) for seed in range(4)]),
    }
    items = [runner.read(ClassifyVideo(name), FilesAtHand(videos)) for name in videos]
    together = runner.run(items, Unwatched())

    processor = AutoImageProcessor.from_pretrained(tmp_path)
    model = VideoMAEForVideoClassification.from_pretrained(tmp_path).eval()
    found = set()
    for data, item, output in zip(videos.values(), items, together, strict=True):
        frames = decode_video(data, num_frames=4, **LIMITS)
        pixels = processor(frames, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            scores = model(pixels).logits[0].softmax(-1).tolist()
        expected = dict(zip(("running", "sleeping", "eating"), scores, strict=True))
        [alone] = runner.run([item], Unwatched())
        for one in (alone, output):
            assert isinstance(one, TaskOutput)
            assert isinstance(one.result, Labelled)
            labels = {label.name: label.score for label in one.result.labels}
            assert labels == pytest.approx(expected, rel=1e-3)
        found.add(tuple(scores))
    assert len(found) == 3
