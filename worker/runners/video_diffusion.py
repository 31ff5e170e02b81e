"""Pipelines of diffusers that make videos of noise, one at a time.

A video is many pictures: nothing is gained by making several together, and alone each is the same
whatever else is asked for.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from shared.errors import ClientGone, FleetError, InvalidRequest
from shared.messages import Task, TaskName, name_of
from shared.tasks.runner_options import DiffusionOptions
from shared.tasks.videos import AnimatePicture, MakeVideo, Video
from worker.engine.sampler import broken
from worker.engine.task_runner import BatchProgress, Files, NewFile, TaskOutput, TaskRunnerSpec
from worker.engine.weights import WeightSize
from worker.media.images import MAX_IMAGE_BYTES, decode_image
from worker.media.video import encode_video
from worker.models.errors import ModelFormatError
from worker.runners.allocation import tells_out_of_memory
from worker.runners.pipeline_calls import (
    MAX_GIVEN_PIXELS,
    SEED_MASK,
    NobodyWaits,
    default_of,
    parameters_of,
    refusal,
    rounded_size,
    steps_of,
)

MP4 = "video/mp4"
_SIDE_MULTIPLE = 32
"""The pipeline of LTX-Video takes no other sides, whatever its networks could."""
VideoTask = MakeVideo | AnimatePicture


@dataclass(frozen=True)
class VideoItem:
    """A task that has been read. Sizes are in pixels."""

    task: VideoTask
    seed: int
    width: int
    height: int
    num_frames: int
    fps: int
    steps: int
    guidance_scale: float
    image: Image.Image | None


class VideoRunner:
    """A pipeline for each task, all around the same networks.

    `multiple` divides width and height, and `group` the number of frames behind the first one.
    """

    def __init__(
        self,
        pipelines: dict[TaskName, Any],
        own: DiffusionOptions,
        *,
        name: str,
        found: str,
        weights: WeightSize,
    ) -> None:
        self._pipelines = pipelines
        self._own = own
        first = next(iter(pipelines.values()))
        self.multiple = max(_SIDE_MULTIPLE, int(first.vae_spatial_compression_ratio))
        self.group = int(first.vae_temporal_compression_ratio)
        if self.multiple**2 > own.max_pixels:
            raise ModelFormatError(
                f"max_pixels: expected at least {self.multiple**2}, which are the fewest that this "
                f"model can make, got {own.max_pixels}."
            )
        self.spec = TaskRunnerSpec(
            "diffusion",
            name,
            found=found,
            max_batch=1,
            tasks=tuple(pipelines),
            trial=MakeVideo(
                "a",
                seed=0,
                width=self.multiple,
                height=self.multiple,
                num_frames=1 + self.group,
                num_inference_steps=1,
            ),
            weights=weights,
        )

    def read(self, task: Task, files: Files) -> VideoItem:
        if not isinstance(task, VideoTask) or name_of(task) not in self._pipelines:
            raise InvalidRequest(f"This model does not serve {name_of(task)!r}.", field="model")
        pipeline = self._pipelines[name_of(task)]
        usual = parameters_of(pipeline)
        image = None
        usual_size = (usual["width"].default, usual["height"].default)
        if isinstance(task, AnimatePicture):
            data = files.read(task.image, max_bytes=MAX_IMAGE_BYTES)
            image = decode_image(data, max_pixels=MAX_GIVEN_PIXELS)
            usual_size = rounded_size(image, self.multiple)
        width, height = self._size_of(task, usual_size)
        if image is not None and image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        guidance_scale = task.guidance_scale
        if guidance_scale is None:
            guidance_scale = default_of("guidance_scale", pipeline, self._own)
        return VideoItem(
            task,
            seed=task.seed & SEED_MASK,
            width=width,
            height=height,
            num_frames=self._frames_of(task, usual["num_frames"].default),
            fps=task.fps or usual["frame_rate"].default,
            steps=steps_of(task.num_inference_steps, pipeline, self._own),
            guidance_scale=guidance_scale,
            image=image,
        )

    def _size_of(self, task: VideoTask, usual_size: tuple[int, int]) -> tuple[int, int]:
        """Return width and height. Raise InvalidRequest for what the networks cannot make."""
        for name, side in (("width", task.width), ("height", task.height)):
            if side is not None and (side < self.multiple or side % self.multiple):
                raise refusal(name, f"a multiple of {self.multiple}", side)
        width = task.width or usual_size[0]
        height = task.height or usual_size[1]
        if width * height > self._own.max_pixels:
            most = f"width x height of at most {self._own.max_pixels} pixels"
            raise refusal("width", most, f"{width} x {height}")
        return width, height

    def _frames_of(self, task: VideoTask, usual: int) -> int:
        """Return the number of frames. Raise InvalidRequest for what the networks cannot make."""
        most = self._own.max_frames
        num_frames = task.num_frames
        if num_frames is None:
            num_frames = min(usual, most)
            return num_frames - (num_frames - 1) % self.group
        if num_frames > most:
            raise refusal("num_frames", f"at most {most}", num_frames)
        if (num_frames - 1) % self.group:
            raise refusal("num_frames", f"1 more than a multiple of {self.group}", num_frames)
        return num_frames

    def group_key(self, item: VideoItem) -> Hashable:
        return object()

    @tells_out_of_memory
    def run(
        self, items: Sequence[VideoItem], progress: BatchProgress
    ) -> list[TaskOutput | FleetError]:
        [item] = items
        pipeline = self._pipelines[name_of(item.task)]

        def after_step(
            running: Any, step: int, timestep: Any, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            if not progress.is_wanted(0):
                raise NobodyWaits
            progress.report(0, step + 1, running.num_timesteps)
            return tensors

        given: dict[str, Any] = {}
        if item.image is not None:
            given["image"] = item.image
        if item.task.negative_prompt:
            given["negative_prompt"] = item.task.negative_prompt
        try:
            made = pipeline(
                prompt=item.task.prompt,
                generator=torch.Generator("cpu").manual_seed(item.seed),
                num_inference_steps=item.steps,
                guidance_scale=item.guidance_scale,
                width=item.width,
                height=item.height,
                num_frames=item.num_frames,
                frame_rate=item.fps,
                output_type="pt",
                callback_on_step_end=after_step,
                **given,
            )
        except NobodyWaits:
            return [ClientGone("Nobody waits for the video any more.")]
        # [frames, 3, height, width], from 0 to 1.
        [pixels] = made.frames
        if not bool(torch.isfinite(pixels).all()):
            return [broken(self.spec.name)]
        return [_output(item, pixels, progress)]


def _output(item: VideoItem, pixels: torch.Tensor, progress: BatchProgress) -> TaskOutput:
    levels = (pixels.float() * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
    frames = [Image.fromarray(level) for level in levels]
    progress.heartbeat()
    data = encode_video(frames, rate=item.fps)
    width, height = frames[0].size
    result = Video(item.seed, width, height, len(frames), item.fps)
    return TaskOutput(result, (NewFile(data, MP4, "video.mp4"),))
