"""Pipelines of diffusers, which make things of noise, step by step: here pictures.

The noise of a picture comes from its own seed, on the CPU, and its rows are computed by themselves
(`worker/runners/row_by_row.py`): a picture does not depend on what else is made in its batch.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from shared.errors import ClientGone, FleetError, InvalidRequest
from shared.messages import Task, TaskName, name_of
from shared.tasks.pictures import ChangePicture, MakePictures, Picture, Pictures
from shared.tasks.runner_options import DiffusionOptions
from worker.engine.runner import RunnerOptions
from worker.engine.sampler import broken
from worker.engine.task_runner import BatchProgress, Files, NewFile, TaskOutput, TaskRunnerSpec
from worker.media.images import MAX_IMAGE_BYTES, PNG, decode_image, jpeg_of, png_of
from worker.models.diffusion_directory import load_pipeline, networks_of, pipelines_of
from worker.models.errors import ModelFormatError
from worker.models.hf_directory import directory_of
from worker.models.weight_size import weight_size
from worker.runners.accelerators import prepare
from worker.runners.allocation import tells_out_of_memory
from worker.runners.layer_heartbeats import beat_by_layer
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
from worker.runners.row_by_row import RowByRow
from worker.runners.shape_diffusion import MeshRunner
from worker.runners.video_diffusion import VideoRunner

_SIDE_MULTIPLE = 8
_TRIAL_SIDE = 64
_DENOISERS = ("unet", "transformer", "prior")
_PREVIEW_LATENTS = 16
"""The longer side of the latents that are decoded for a preview: 128 pixels in most models."""

PictureTask = MakePictures | ChangePicture


@dataclass(frozen=True)
class Item:
    """A task that has been read: the seeds of its pictures, and what all of them begin with.

    Sizes are in pixels. Items with the same `group` take their steps together.
    """

    task: PictureTask
    seeds: tuple[int, ...]
    width: int
    height: int
    steps: int
    guidance_scale: float
    image: Image.Image | None

    @property
    def group(self) -> Hashable:
        strength = None
        if isinstance(self.task, ChangePicture):
            strength = self.task.strength
        return (
            name_of(self.task),
            self.width,
            self.height,
            self.steps,
            self.guidance_scale,
            strength,
            # Without any, some pipelines have an embedding of their own.
            bool(self.task.negative_prompt),
        )

    def is_shown_after(self, num_steps: int) -> bool:
        """Return whether the caller wants to see the first picture as it is after so many steps."""
        every = self.task.preview_every
        return every > 0 and num_steps % every == 0


class DiffusionRunner:
    """A pipeline for each task, all around the same networks."""

    def __init__(
        self, pipelines: dict[TaskName, Any], own: DiffusionOptions, spec: TaskRunnerSpec
    ) -> None:
        self.spec = spec
        self._own = own
        self._pipelines = pipelines
        self._rows = RowByRow()
        if own.batch_invariant:
            _compute_by_rows(pipelines[spec.tasks[0]], self._rows)

    def read(self, task: Task, files: Files) -> Item:
        if not isinstance(task, PictureTask) or name_of(task) not in self._pipelines:
            raise InvalidRequest(f"This model does not serve {name_of(task)!r}.", field="model")
        pipeline = self._pipelines[name_of(task)]
        steps = self._steps_of(task, pipeline)
        if not 1 <= task.num_images <= self._own.max_images:
            raise refusal("num_images", f"1 to {self._own.max_images}", task.num_images)

        image = None
        if isinstance(task, ChangePicture):
            data = files.read(task.image, max_bytes=MAX_IMAGE_BYTES)
            image = decode_image(data, max_pixels=MAX_GIVEN_PIXELS)
            usual_size = rounded_size(image, multiple_of(pipeline))
        else:
            usual_size = _usual_size(pipeline)
        width, height = self._size_of(task, usual_size, multiple_of(pipeline))
        if image is not None and image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.LANCZOS)

        guidance_scale = task.guidance_scale
        if guidance_scale is None:
            guidance_scale = default_of("guidance_scale", pipeline, self._own)
        return Item(
            task,
            seeds=tuple((task.seed + number) & SEED_MASK for number in range(task.num_images)),
            width=width,
            height=height,
            steps=steps,
            guidance_scale=guidance_scale,
            image=image,
        )

    def _steps_of(self, task: PictureTask, pipeline: Any) -> int:
        """Return the steps of a task. Raise InvalidRequest for none, and for too many."""
        steps = steps_of(task.num_inference_steps, pipeline, self._own)
        if isinstance(task, ChangePicture) and not 1 <= int(steps * task.strength) <= steps:
            least = f"a share of {steps} steps that is at least one of them, and at most all"
            raise refusal("strength", least, task.strength)
        return steps

    def _size_of(
        self, task: PictureTask, usual_size: tuple[int, int], multiple: int
    ) -> tuple[int, int]:
        """Return width and height of a task's pictures.

        Raise InvalidRequest for what the networks cannot make, and for too many pixels.
        """
        for name, side in (("width", task.width), ("height", task.height)):
            if side is not None and (side < multiple or side % multiple):
                raise refusal(name, f"a multiple of {multiple}", side)
        width = task.width or usual_size[0]
        height = task.height or usual_size[1]
        if width * height > self._own.max_pixels:
            most = f"width x height of at most {self._own.max_pixels} pixels"
            raise refusal("width", most, f"{width} x {height}")
        return width, height

    def group_key(self, item: Item) -> Hashable:
        return item.group

    @tells_out_of_memory
    def run(self, items: Sequence[Item], progress: BatchProgress) -> list[TaskOutput | FleetError]:
        pipeline = self._pipelines[name_of(items[0].task)]
        owners: list[int] = []
        for index, item in enumerate(items):
            owners += [index] * len(item.seeds)

        self._rows.wanted = [True] * len(owners)

        def after_step(
            running: Any, step: int, timestep: Any, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            wanted = [progress.is_wanted(index) for index in range(len(items))]
            if not any(wanted):
                raise NobodyWaits
            self._rows.wanted = [wanted[owner] for owner in owners]
            for index, item in enumerate(items):
                preview = b""
                is_last = step + 1 == running.num_timesteps
                if wanted[index] and not is_last and item.is_shown_after(step + 1):
                    first = owners.index(index)
                    preview = preview_of(tensors["latents"][first : first + 1], running)
                progress.report(index, step + 1, running.num_timesteps, preview=preview)
            return tensors

        try:
            made = pipeline(**_arguments_of(items, pipeline), callback_on_step_end=after_step)
        except NobodyWaits:
            return [_gone() for _ in items]

        blocked = getattr(made, "nsfw_content_detected", None) or [False] * len(owners)
        outputs: list[TaskOutput | FleetError] = []
        for index, item in enumerate(items):
            numbers = [number for number, owner in enumerate(owners) if owner == index]
            if not self._rows.wanted[numbers[0]]:
                outputs.append(_gone())
                continue
            pixels = made.images[numbers]
            if not bool(torch.isfinite(pixels).all()):
                outputs.append(broken(self.spec.name))
                continue
            outputs.append(_output(item, pixels, [bool(blocked[number]) for number in numbers]))
        return outputs


def preview_of(latents: Tensor, pipeline: Any) -> bytes:
    """Return a small picture of latents [1, channels, height, width], as a JPEG.

    Coarser latents are decoded, which takes little time beside a denoising step. The result is
    empty where the numbers are not finite.
    """
    scale = min(1.0, _PREVIEW_LATENTS / max(latents.shape[-2:]))
    sides = [max(1, round(side * scale)) for side in latents.shape[-2:]]
    coarse = nn.functional.interpolate(latents, size=sides, mode="area")
    config = pipeline.vae.config
    # The inverse of what pictures go through when they are encoded.
    coarse = coarse / config.scaling_factor + (config.get("shift_factor") or 0.0)
    [pixels] = pipeline.vae.decode(coarse.to(pipeline.vae.dtype), return_dict=False)
    if not bool(torch.isfinite(pixels).all()):
        return b""
    [image] = pipeline.image_processor.postprocess(pixels, output_type="pil")
    return jpeg_of(image)


def _arguments_of(items: Sequence[Item], pipeline: Any) -> dict[str, Any]:
    """Return the arguments of a pipeline's call for the pictures of all items, in order."""
    prompts: list[str] = []
    negative_prompts: list[str] = []
    images: list[Image.Image | None] = []
    generators: list[torch.Generator] = []
    for item in items:
        for seed in item.seeds:
            prompts.append(item.task.prompt)
            negative_prompts.append(item.task.negative_prompt)
            images.append(item.image)
            generators.append(torch.Generator("cpu").manual_seed(seed))

    first = items[0]
    arguments: dict[str, Any] = {
        "prompt": prompts,
        "generator": generators,
        "num_inference_steps": first.steps,
        "guidance_scale": first.guidance_scale,
        "output_type": "pt",
    }
    if first.task.negative_prompt:
        arguments["negative_prompt"] = negative_prompts
    if isinstance(first.task, ChangePicture):
        arguments["image"] = images
        arguments["strength"] = first.task.strength
    # Without a size some pipelines keep that of the picture, others scale it to their own.
    if "width" in parameters_of(pipeline):
        arguments["width"] = first.width
        arguments["height"] = first.height
    return arguments


def _output(item: Item, pixels: Tensor, blocked: Sequence[bool]) -> TaskOutput:
    """Return the result of pictures [n, 3, height, width], whose pixels are from 0 to 1."""
    levels = (pixels.float() * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
    pictures: list[Picture] = []
    files: list[NewFile] = []
    for seed, picture, is_blocked in zip(item.seeds, levels, blocked, strict=True):
        image = Image.fromarray(picture)
        pictures.append(Picture(seed, image.width, image.height, is_blocked))
        files.append(NewFile(png_of(image), PNG, f"picture-{len(files)}.png"))
    return TaskOutput(Pictures(tuple(pictures)), tuple(files))


def _gone() -> ClientGone:
    return ClientGone("Nobody waits for the picture any more.")


def _compute_by_rows(pipeline: Any, rows: RowByRow) -> None:
    """Let the networks of a pipeline that see a whole batch compute its rows by themselves."""
    for name, network in networks_of(pipeline).items():
        if name in _DENOISERS or name.startswith("text_encoder"):
            network.forward = rows.wrap(network.forward)
    # Pictures that are given are encoded one by one as it is, each with its own generator.
    pipeline.vae.decode = rows.wrap(pipeline.vae.decode)


def multiple_of(pipeline: Any) -> int:
    """Return the number of pixels whose multiples are the sides that a pipeline can make."""
    patch_size = int(getattr(pipeline, "patch_size", 1))
    return max(_SIDE_MULTIPLE, int(pipeline.vae_scale_factor) * patch_size)


def _usual_size(pipeline: Any) -> tuple[int, int]:
    """Return the width and height that a pipeline makes unless it is told otherwise."""
    [denoiser] = [pipeline.components[name] for name in _DENOISERS if name in pipeline.components]
    size: Any = denoiser.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    scale = int(pipeline.vae_scale_factor)
    return width * scale, height * scale


def load(options: RunnerOptions) -> DiffusionRunner | VideoRunner | MeshRunner:
    """Load a pipeline of diffusers. Raise ModelFormatError for one that cannot be served."""
    path = directory_of(Path(options.path))
    own = options.declared(DiffusionOptions)
    pipeline = load_pipeline(path, getattr(torch, options.dtype))
    pipeline.to(options.device)
    count = 0
    for name, network in networks_of(pipeline).items():
        count += sum(parameter.numel() for parameter in network.parameters())
        beat_by_layer(network)
        if name in _DENOISERS:
            prepare(network, options)

    weights = weight_size(*networks_of(pipeline).values())
    found = f"{type(pipeline).__name__}: {count / 1e6:.1f} M parameters, "
    found += f"{type(pipeline.scheduler).__name__}, {options.precision}"
    pipelines = pipelines_of(pipeline)
    for one in pipelines.values():
        one.set_progress_bar_config(disable=True)
    if "text-to-video" in pipelines:
        return VideoRunner(pipelines, own, name=options.name, found=found, weights=weights)
    if "text-to-image" not in pipelines:
        return MeshRunner(pipelines, own, name=options.name, found=found, weights=weights)
    side = _trial_side(multiple_of(pipeline), own.max_pixels)
    spec = TaskRunnerSpec(
        "diffusion",
        options.name,
        found=found,
        max_batch=min(options.max_batch, own.max_batch),
        tasks=tuple(pipelines),
        trial=MakePictures("a", seed=0, width=side, height=side, num_inference_steps=1),
        weights=weights,
    )
    return DiffusionRunner(pipelines, own, spec)


def _trial_side(multiple: int, max_pixels: int) -> int:
    """Return the side of a small square picture. Raise ModelFormatError where none is allowed."""
    side = multiple
    while 2 * side <= _TRIAL_SIDE and 4 * side * side <= max_pixels:
        side *= 2
    if side * side > max_pixels:
        raise ModelFormatError(
            f"max_pixels: expected at least {side * side}, which are the fewest that this model "
            f"can make, got {max_pixels}."
        )
    return side
