"""Pictures of a pipeline of diffusers are those of the library's own call on the same weights.

They do not depend on the batch in which they are made.
"""

import base64
import gc
import io
import json
import shutil
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
)
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image
from redis.asyncio import Redis
from safetensors.torch import load_file, save_file

from shared.errors import ArtifactNotFound, InvalidRequest, WorkerFailed
from shared.messages import Done, Embed, Task, decode_event, encode
from shared.settings.settings import ModelEntry, Settings
from shared.tasks.pictures import ChangePicture, MakePictures, Picture, Pictures
from shared.tasks.runner_options import DiffusionOptions
from tests.fixtures.pictures import encoded, picture
from tests.fixtures.polling import until
from tests.fixtures.tiny_diffusion import SCHEDULERS, SIDE, Kind, change_index, write_pipeline
from tests.fixtures.worker.fleets import fleet
from worker.engine.request import Emission
from worker.engine.runner import RunnerOptions
from worker.engine.take import Take
from worker.engine.task_engine import TaskEngine
from worker.engine.task_runner import NO_FILES, FilesAtHand, TaskOutput
from worker.host.facts import facts_of
from worker.host.loading import warm_up
from worker.models.errors import ModelFormatError
from worker.runners import diffusion
from worker.runners.diffusion import DiffusionRunner, Item
from worker.runners.registry import load_runner

PROMPT = "a red cup on a table"
OTHERS = ("two cats", "the sea at night, seen from a train", "a")
Pixels = NDArray[np.uint8]
OF_NOISE: list[tuple[Kind, str]] = [
    *(("1", name) for name in SCHEDULERS if name != "flow"),
    *(("xl", name) for name in SCHEDULERS if name != "flow"),
]
"""Pipelines that take noise away, each with every scheduler for that."""


class Watched:
    """A batch whose reports are recorded. `is_wanted` is asked after each step, of each task."""

    def __init__(self, *, wanted: Callable[[int, int], bool] = lambda index, step: True) -> None:
        self.reports: list[tuple[int, int, int | None]] = []
        self.previews: dict[tuple[int, int], bytes] = {}
        self.num_asked: dict[int, int] = {}
        self._wanted = wanted

    def heartbeat(self) -> None:
        return

    def report(
        self,
        index: int,
        done: int,
        total: int | None = None,
        note: str = "",
        *,
        preview: bytes = b"",
    ) -> None:
        self.reports.append((index, done, total))
        if preview:
            self.previews[index, done] = preview

    def is_wanted(self, index: int) -> bool:
        self.num_asked[index] = self.num_asked.get(index, 0) + 1
        return self._wanted(index, self.num_asked[index])


def load(path: Path, device: str = "cpu", **own: Any) -> DiffusionRunner:
    options = RunnerOptions(str(path), name="m", device=device, own=DiffusionOptions(**own))
    runner = load_runner("auto", options)
    assert isinstance(runner, DiffusionRunner)
    return runner


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def runner(path: Path) -> DiffusionRunner:
    return load(path)


def make(prompt: str = PROMPT, seed: int = 1, **more: Any) -> MakePictures:
    return MakePictures(prompt, seed, **({"num_inference_steps": 4} | more))


def read(runner: DiffusionRunner, *tasks: Task, **files: bytes) -> list[Item]:
    return [runner.read(task, FilesAtHand(files)) for task in tasks]


def run(runner: DiffusionRunner, *items: Item) -> list[TaskOutput]:
    outputs = []
    for output in runner.run(items, Watched()):
        assert isinstance(output, TaskOutput), output
        done: Done = Done("stop", 0, 0, result=output.result)
        assert decode_event(encode(done)) == done, "it can be sent"
        outputs.append(output)
    return outputs


def pixels_of(output: TaskOutput) -> list[Pixels]:
    """Return the pixels of a result's files, which must be as large as the result says."""
    assert isinstance(output.result, Pictures)
    found = []
    for told, file in zip(output.result.pictures, output.files, strict=True):
        assert file.media_type == "image/png"
        image = Image.open(io.BytesIO(file.data))
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (told.width, told.height))
        found.append(np.asarray(image))
    return found


def seeds_of(output: TaskOutput) -> list[int]:
    assert isinstance(output.result, Pictures)
    return [one.seed for one in output.result.pictures]


def library(path: Path, kind: type[Any] = DiffusionPipeline, **parts: Any) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(path, local_files_only=True, **parts)
    pipeline.set_progress_bar_config(disable=True)
    if kind is not DiffusionPipeline:
        pipeline = kind.from_pipe(pipeline)
        pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_by(pipeline: Any, prompt: str, seed: int, **options: Any) -> Pixels:
    """Return what the library makes of one prompt."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return np.asarray(pipeline(prompt, generator=generator, **options).images[0])


def assert_same(actual: Pixels, expected: Pixels) -> None:
    """Assert that pixels are equal, but for one of 255 levels where a number was between two."""
    assert actual.shape == expected.shape
    difference = np.abs(actual.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01
    assert expected.std() > 10, "there is something to see"


@pytest.mark.parametrize(("kind", "scheduler"), [*OF_NOISE, ("3", "flow")])
def test_pictures_are_those_of_diffusers(
    tmp_path: Path, scheduler: str, kind: Kind, device: str
) -> None:
    """With each scheduler, alone and in a batch, with a negative prompt and without."""
    write_pipeline(tmp_path, scheduler, kind=kind)
    runner = load(tmp_path, device)
    pipeline = library(tmp_path).to(device)
    shown = []
    for negative in ("", "blue"):
        tasks = [make(prompt, seed, negative_prompt=negative) for seed, prompt in enumerate(OTHERS)]
        items = read(runner, *tasks)
        together = run(runner, *items)
        for task, item, output in zip(tasks, items, together, strict=True):
            expected = drawn_by(
                pipeline,
                task.prompt,
                task.seed,
                num_inference_steps=4,
                negative_prompt=negative or None,
            )
            [pixels] = pixels_of(output)
            assert_same(pixels, expected)
            [alone] = run(runner, item)
            assert output == alone, "bit for bit"
            shown.append(pixels.tobytes())
    assert len(set(shown)) == len(shown), "each is another picture"


@pytest.mark.parametrize(
    ("kind", "scheduler"),
    [
        ("1", "ddim"),
        ("1", "euler-ancestral"),
        ("1", "pndm"),
        ("xl", "ddim"),
        ("xl", "euler-ancestral"),
        ("3", "flow"),
    ],
)
def test_changed_pictures_are_those_of_diffusers(
    tmp_path: Path, scheduler: str, kind: Kind
) -> None:
    """The size is any: it is rounded down to what the networks can make."""
    write_pipeline(tmp_path, scheduler, kind=kind)
    runner = load(tmp_path)
    pipeline = library(tmp_path, AutoPipelineForImage2Image)
    given = [picture(53, 34, seed=1), picture(48, 32, seed=2)]
    files = {f"p{number}": encoded(image) for number, image in enumerate(given)}
    tasks = []
    for number, name in enumerate(files):
        tasks.append(ChangePicture(name, PROMPT, seed=number, strength=0.5, num_inference_steps=6))
    items = read(runner, *tasks, **files)
    assert runner.group_key(items[0]) == runner.group_key(items[1])

    # The third generation scales pictures to its own size unless it is told another.
    size = {"width": 48, "height": 32} if kind == "3" else {}
    together = run(runner, *items)
    for number, (item, output) in enumerate(zip(items, together, strict=True)):
        resized = given[number].resize((48, 32), Image.Resampling.LANCZOS)
        expected = drawn_by(
            pipeline,
            PROMPT,
            number,
            image=resized,
            strength=0.5,
            num_inference_steps=6,
            **size,
        )
        [pixels] = pixels_of(output)
        assert pixels.shape == (32, 48, 3)
        assert_same(pixels, expected)
        assert run(runner, item) == [output]


def test_no_bit_depends_on_the_batch(
    runner: DiffusionRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen before numbers are rounded to 255 levels, which hides most differences."""
    seen: list[torch.Tensor] = []
    output = diffusion._output

    def recorded(item: Item, pixels: torch.Tensor, blocked: Sequence[bool]) -> TaskOutput:
        seen.append(pixels.clone())
        return output(item, pixels, blocked)

    monkeypatch.setattr(diffusion, "_output", recorded)
    tasks = [make(prompt, seed, num_images=2) for seed, prompt in enumerate(OTHERS)]
    items = read(runner, *tasks)
    run(runner, *items)
    together = list(seen)
    seen.clear()
    for item in items:
        run(runner, item)
    for one, other in zip(together, seen, strict=True):
        assert torch.equal(one, other)


def test_a_seed_is_a_picture_in_any_batch(runner: DiffusionRunner) -> None:
    """Several pictures of a request have seeds of their own, by which each comes back alone."""
    several = make(seed=2**63 - 2, num_images=4)
    [together, other] = run(runner, *read(runner, several, make(OTHERS[0], 7)))
    assert seeds_of(together) == [2**63 - 2, 2**63 - 1, 0, 1]
    found = pixels_of(together)
    for seed, pixels, file in zip(seeds_of(together), found, together.files, strict=True):
        [alone] = run(runner, *read(runner, make(seed=seed)))
        assert [one.data for one in alone.files] == [file.data]
        assert pixels_of(alone)[0].tobytes() == pixels.tobytes()
    assert len({pixels.tobytes() for pixels in found}) == 4
    assert [file.name for file in together.files] == [f"picture-{n}.png" for n in range(4)]
    assert run(runner, *read(runner, make(OTHERS[0], 7))) == [other]


def test_what_differs_is_not_made_together(runner: DiffusionRunner) -> None:
    usual = make()
    groups = set()
    for task in (
        usual,
        make(width=64),
        make(height=64),
        make(num_inference_steps=5),
        make(guidance_scale=1.0),
        make(negative_prompt="blue"),
    ):
        [item] = read(runner, task)
        groups.add(runner.group_key(item))
    assert len(groups) == 6
    [item] = read(runner, make(OTHERS[0], 99, num_images=3, width=SIDE, height=SIDE))
    assert runner.group_key(item) in groups


def test_what_a_request_leaves_open_is_as_in_diffusers(runner: DiffusionRunner) -> None:
    [item] = read(runner, MakePictures(PROMPT, 1))
    assert (item.width, item.height) == (SIDE, SIDE)
    assert (item.steps, item.guidance_scale) == (50, 7.5)


def test_a_model_has_defaults_of_its_own(path: Path) -> None:
    turbo = load(path, num_inference_steps=2, guidance_scale=0.0)
    [item, other] = read(turbo, MakePictures(PROMPT, 1), make(guidance_scale=2.0))
    assert (item.steps, item.guidance_scale) == (2, 0.0)
    assert (other.steps, other.guidance_scale) == (4, 2.0)
    [output] = run(turbo, item)
    expected = drawn_by(library(path), PROMPT, 1, num_inference_steps=2, guidance_scale=0.0)
    assert_same(pixels_of(output)[0], expected)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_guidance_and_size_are_obeyed(
    runner: DiffusionRunner, path: Path, guidance_scale: float
) -> None:
    task = make(guidance_scale=guidance_scale, width=48, height=24)
    [output] = run(runner, *read(runner, task))
    expected = drawn_by(
        library(path),
        PROMPT,
        task.seed,
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        width=48,
        height=24,
    )
    assert_same(pixels_of(output)[0], expected)


def test_rows_may_be_computed_together(path: Path, runner: DiffusionRunner) -> None:
    """It is a choice: pictures are then equal but for the last digits of numbers."""
    together = load(path, batch_invariant=False)
    tasks = [make(prompt, seed) for seed, prompt in enumerate(OTHERS)]
    found = run(together, *read(together, *tasks))
    expected = run(runner, *read(runner, *tasks))
    for one, other in zip(found, expected, strict=True):
        assert_same(pixels_of(one)[0], pixels_of(other)[0])


@pytest.mark.parametrize(
    ("scheduler", "total"),
    [("ddim", 4), ("euler", 4), ("pndm", 5), ("heun", 7)],
)
def test_each_step_is_reported_to_each_caller(tmp_path: Path, scheduler: str, total: int) -> None:
    """Some schedulers take more steps than are asked for."""
    runner = load(write_pipeline(tmp_path, scheduler))
    watched = Watched()
    runner.run(read(runner, make(num_images=2), make(seed=5)), watched)
    expected = []
    for step in range(1, total + 1):
        expected += [(0, step, total), (1, step, total)]
    assert watched.reports == expected


@pytest.mark.parametrize("kind", ["1", "3"])
def test_previews_show_what_there_is_so_far(tmp_path: Path, kind: Kind) -> None:
    """They are the library's own latents, decoded coarsely, and change no picture."""
    runner = load(write_pipeline(tmp_path, "flow" if kind == "3" else "ddim", kind=kind))
    shown = make(num_inference_steps=5, preview_every=2, num_images=2, width=64, height=32)
    other = make(OTHERS[0], 8, num_inference_steps=5, width=64, height=32)
    watched = Watched()
    outputs = runner.run(read(runner, shown, other), watched)
    assert sorted(watched.previews) == [(0, 2), (0, 4)]
    [plain] = run(runner, *read(runner, replace(shown, preview_every=0)))
    assert outputs[0] == plain

    pipeline = library(tmp_path)
    latents: dict[int, torch.Tensor] = {}

    def record(running: Any, step: int, timestep: Any, tensors: Any) -> dict[str, Any]:
        latents[step + 1] = tensors["latents"]
        return {}

    size = {"width": 64, "height": 32}
    drawn_by(pipeline, PROMPT, 1, num_inference_steps=5, callback_on_step_end=record, **size)
    for step in (2, 4):
        image = Image.open(io.BytesIO(watched.previews[0, step]))
        assert (image.format, image.size) == ("JPEG", (32, 16))
        # Half of 32 x 16 latents each way: the mean of four.
        coarse = latents[step].unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
        config = pipeline.vae.config
        coarse = coarse / config.scaling_factor + (config.shift_factor or 0.0)
        with torch.no_grad():
            pixels = pipeline.vae.decode(coarse).sample[0].permute(1, 2, 0).numpy()
        levels = ((pixels / 2 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)
        assert levels.std() > 10, "there is something to see"
        # A JPEG of noise is far from exact: it is compared with another one.
        expected = Image.open(io.BytesIO(encoded(Image.fromarray(levels), "JPEG", quality=70)))
        difference = np.abs(np.asarray(image).astype(int) - np.asarray(expected).astype(int))
        assert difference.mean() < 1


def test_a_batch_that_nobody_waits_for_ends_at_the_next_step(runner: DiffusionRunner) -> None:
    watched = Watched(wanted=lambda index, step: step < 2)
    outputs = runner.run(read(runner, make(num_inference_steps=50)), watched)
    assert watched.num_asked == {0: 2}, "of 50 steps two were taken"
    assert [type(output).__name__ for output in outputs] == ["ClientGone"]

    # Nothing is left behind of a batch that was broken off.
    [again] = run(runner, *read(runner, make()))
    assert seeds_of(again) == [1]


@pytest.mark.parametrize("scheduler", ["pndm", "dpm", "euler-ancestral"])
def test_pictures_after_a_cancelled_batch_are_the_same(tmp_path: Path, scheduler: str) -> None:
    """Schedulers keep states between steps."""
    runner = load(write_pipeline(tmp_path, scheduler))
    before = run(runner, *read(runner, make()))
    runner.run(read(runner, make(OTHERS[0])), Watched(wanted=lambda index, step: step < 3))
    assert run(runner, *read(runner, make())) == before


def test_who_leaves_holds_nobody_up(
    runner: DiffusionRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of a cancelled task are computed no more; the other's picture stays the same."""
    [alone] = run(runner, *read(runner, make(OTHERS[1], 3)))
    unet = runner._pipelines["text-to-image"].unet
    sizes: list[int] = []
    unet.conv_in.register_forward_hook(lambda layer, inputs, output: sizes.append(len(output)))
    watched = Watched(wanted=lambda index, step: index == 1 or step < 2)
    gone, kept = runner.run(read(runner, make(num_images=2), make(OTHERS[1], 3)), watched)
    assert type(gone).__name__ == "ClientGone"
    assert kept == alone
    # With and without the prompt: two steps of three pictures, two of one, and each row alone.
    assert sizes == [1] * (2 * (2 * 3) + 2 * (2 * 1))


def test_a_cancelled_task_ends_within_a_step_in_the_engine(runner: DiffusionRunner) -> None:
    """The engine is told while the batch runs, and both tasks of it leave."""
    emissions: list[Emission] = []
    engine: TaskEngine

    def emit(emitted: list[Emission]) -> None:
        emissions.extend(emitted)
        for emission in emitted:
            assert emission.progress is not None
            engine.abort("a")
            engine.abort("b")

    engine = TaskEngine(runner, emit)
    for key in ("a", "b"):
        engine.submit(engine.prepare(Take(key, make(num_inference_steps=80))))
    while engine.has_work:
        engine.step()
    assert [emission.key for emission in emissions] == ["a", "b"], "the first step's reports"
    assert all(emission.ended is None for emission in emissions)
    assert engine.stats.num_failures == 0


@pytest.mark.parametrize(
    ("task", "field", "words"),
    [
        (make(num_inference_steps=21), "num_inference_steps", "1 to 20, got 21"),
        (make(num_inference_steps=0), "num_inference_steps", "1 to 20, got 0"),
        (make(num_images=3), "num_images", "1 to 2, got 3"),
        (make(num_images=0), "num_images", "1 to 2, got 0"),
        (make(width=72, height=64), "width", "at most 4096 pixels, got 72 x 64"),
        (make(width=4096 * 8), "width", "at most 4096 pixels"),
        (make(width=33), "width", "a multiple of 8, got 33"),
        (make(height=0), "height", "a multiple of 8, got 0"),
        (make(height=-8), "height", "a multiple of 8, got -8"),
        (
            ChangePicture("large", "a", 1, num_inference_steps=4),
            "width",
            "at most 4096 pixels, got 96 x 96",
        ),
        (ChangePicture("small", "a", 1, 0.2, num_inference_steps=4), "strength", "got 0.2"),
        (ChangePicture("small", "a", 1, 1.5, num_inference_steps=4), "strength", "got 1.5"),
        (ChangePicture("none", "a", 1, num_inference_steps=4), "image", "expected a picture"),
    ],
)
def test_what_exceeds_a_limit_is_refused_by_name(
    path: Path, task: Task, field: str, words: str
) -> None:
    runner = load(path, max_steps=20, max_images=2, max_pixels=4096)
    files = {
        "large": encoded(picture(100, 100)),
        "small": encoded(picture(16, 16)),
        "none": b"no picture",
    }
    with pytest.raises(InvalidRequest, match=words) as refused:
        read(runner, task, **files)
    assert refused.value.field == field


def test_a_large_picture_is_scaled_to_a_size_that_is_asked_for(runner: DiffusionRunner) -> None:
    task = ChangePicture("p", PROMPT, 1, width=32, height=24, num_inference_steps=4)
    [output] = run(runner, *read(runner, task, p=encoded(picture(2000, 1200))))
    assert pixels_of(output)[0].shape == (24, 32, 3)


def test_there_are_no_more_steps_than_in_training(path: Path) -> None:
    runner = load(path, max_steps=1000)
    [item] = read(runner, make(num_inference_steps=999, width=8, height=8))
    watched = Watched(wanted=lambda index, step: step < 2)
    runner.run([item], watched)
    assert watched.reports == [(0, 1, 999)]
    with pytest.raises(InvalidRequest, match="1 to 999, got 1000"):
        read(runner, make(num_inference_steps=1000))


def test_limits_do_not_keep_requests_out_that_name_nothing(path: Path) -> None:
    [item] = read(load(path, max_steps=3), MakePictures(PROMPT, 1))
    assert item.steps == 3


def test_other_tasks_and_missing_files_are_refused(runner: DiffusionRunner) -> None:
    with pytest.raises(InvalidRequest, match="does not serve 'embed'"):
        runner.read(Embed("a"), NO_FILES)
    with pytest.raises(ArtifactNotFound):
        runner.read(ChangePicture("p", "a", 1), NO_FILES)


def test_a_batch_without_memory_is_made_in_halves(path: Path) -> None:
    runner = load(path)
    pipeline = runner._pipelines["text-to-image"]
    sizes: list[int] = []

    def cramped(**inputs: Any) -> Any:
        sizes.append(len(inputs["prompt"]))
        if sizes[-1] > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")
        return pipeline(**inputs)

    emissions: list[Emission] = []
    engine = TaskEngine(runner, emissions.extend)
    tasks = {f"k{seed}": make(seed=seed) for seed in range(4)}
    for key, task in tasks.items():
        engine.submit(engine.prepare(Take(key, task)))
    runner._pipelines["text-to-image"] = cramped
    while engine.has_work:
        engine.step()
    runner._pipelines["text-to-image"] = pipeline

    assert sizes == [4, 2, 2]
    files = {emission.key: emission.files for emission in emissions if emission.ended}
    for key, task in tasks.items():
        [alone] = run(runner, *read(runner, task))
        assert files[key] == alone.files


def test_so_many_tasks_take_their_steps_together(path: Path) -> None:
    """As many as the worker's own limit allows, and the model's."""
    for most, expected in ((2, 2), (None, 4), (9, 9), (20, 16)):
        own = DiffusionOptions() if most is None else DiffusionOptions(max_batch=most)
        options = RunnerOptions(str(path), name="m", max_batch=16, own=own)
        assert load_runner("auto", options).spec.max_batch == expected


def test_an_unloaded_pipeline_leaves_nothing_behind(path: Path) -> None:
    """Its networks' calls are wrapped, and the wraps must not keep them."""
    runner = load(path)
    run(runner, *read(runner, make()))
    unet = weakref.ref(runner._pipelines["text-to-image"].unet)
    del runner
    gc.collect()
    assert unet() is None


def test_numbers_that_are_none_are_an_error(runner: DiffusionRunner) -> None:
    """It fails its own request alone. Weights can be broken where a trial does not show it."""
    good, bad = read(runner, make(), make(guidance_scale=7.5, seed=2))
    pipeline = runner._pipelines["text-to-image"]
    decode = pipeline.vae.decode

    def broken(latents: torch.Tensor, **options: Any) -> Any:
        latents = latents.clone()
        latents[1] = float("nan")
        return decode(latents, **options)

    pipeline.vae.decode = broken
    try:
        first, second = runner.run([good, bad], Watched())
    finally:
        pipeline.vae.decode = decode
    assert isinstance(first, TaskOutput)
    assert isinstance(second, WorkerFailed)


def test_a_checker_of_contents_is_obeyed(tmp_path: Path) -> None:
    """Its directory has one, to which nothing is fit to be seen."""
    runner = load(write_pipeline(tmp_path, has_checker=True))
    [output] = run(runner, *read(runner, make()))
    assert output.result == Pictures((Picture(1, SIDE, SIDE, is_blocked=True),))
    assert pixels_of(output)[0].max() == 0


def test_a_trial_shows_that_it_works(runner: DiffusionRunner, path: Path) -> None:
    assert warm_up(runner) == "did a text-to-image task"
    assert "StableDiffusionPipeline" in runner.spec.found
    assert "DDIMScheduler" in runner.spec.found
    assert warm_up(load(path, max_pixels=300)) == "did a text-to-image task"
    with pytest.raises(ModelFormatError, match="max_pixels: expected at least 64"):
        load(path, max_pixels=63)


@pytest.mark.parametrize(("quantize", "most"), [("none", 0.01), ("int8", 8)])
def test_large_layers_are_packed_or_rounded(tmp_path: Path, quantize: str, most: float) -> None:
    """Pictures are the library's, or close to them, and still the same in any batch."""
    write_pipeline(tmp_path, width=192)
    options = RunnerOptions(str(tmp_path), name="m", quantize=quantize, own=DiffusionOptions())
    runner = load_runner("diffusion", options)
    assert isinstance(runner, DiffusionRunner)
    layers = {type(layer).__name__ for layer in runner._pipelines["text-to-image"].unet.modules()}
    expected_layers = {
        "none": {"PackedLinear", "PanelLinear"},
        "int8": {"Int8Linear", "Int8PanelLinear"},
    }
    assert layers & expected_layers[quantize]

    items = read(runner, make(), make(OTHERS[0], 2))
    together = run(runner, *items)
    assert together == [run(runner, item)[0] for item in items]
    [pixels] = pixels_of(together[0])
    expected = drawn_by(library(tmp_path), PROMPT, 1, num_inference_steps=4)
    assert np.abs(pixels.astype(float) - expected).mean() < most


def test_facts_are_known_before_it_is_loaded(path: Path) -> None:
    entry = ModelEntry(id="m", path=str(path))
    facts = facts_of(entry, Settings(models=(entry,)))
    num_parameters = 0
    for network in library(path).components.values():
        if isinstance(network, torch.nn.Module):
            num_parameters += sum(parameter.numel() for parameter in network.parameters())
    assert facts.info.runner == "diffusion"
    assert facts.info.tasks == ("text-to-image", "image-to-image")
    # Buffers, such as numbers of positions, lie in the files, too.
    assert num_parameters <= facts.num_bytes / 4 < 1.01 * num_parameters


def test_directories_of_older_versions_are_served(tmp_path: Path, runner: DiffusionRunner) -> None:
    """Those of Stable Diffusion 1 have other names of tensors and classes."""
    write_pipeline(tmp_path)
    encoder = tmp_path / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{name}": tensor for name, tensor in load_file(encoder).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, encoder, metadata={"format": "pt"})

    autoencoder = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    renamed = {}
    for name, tensor in load_file(autoencoder).items():
        renamed[old_name_of(name)] = tensor
    assert any("query" in name for name in renamed)
    save_file(renamed, autoencoder, metadata={"format": "pt"})
    change_index(tmp_path, feature_extractor=["transformers", "CLIPFeatureExtractor"])

    older = load(tmp_path)
    assert run(older, *read(older, make())) == run(runner, *read(runner, make()))


def test_a_third_encoder_may_be_missing(tmp_path: Path) -> None:
    """That of Stable Diffusion 3 is larger than all the rest."""
    write_pipeline(tmp_path, "flow", kind="3")
    runner = load(tmp_path)
    [output] = run(runner, *read(runner, make()))
    nothing = [None, None]
    change_index(tmp_path, text_encoder_3=nothing, tokenizer_3=nothing)
    smaller = load(tmp_path)
    [other] = run(smaller, *read(smaller, make()))
    pipeline = library(tmp_path, text_encoder_3=None, tokenizer_3=None)
    assert_same(pixels_of(other)[0], drawn_by(pipeline, PROMPT, 1, num_inference_steps=4))
    assert other != output


def old_name_of(name: str) -> str:
    """Return the name that a tensor of an attention once had."""
    pairs = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]
    if "attentions" in name:
        for new, old in pairs:
            name = name.replace(new, old)
    return name


class Damage(NamedTuple):
    """Changes to a directory, and words of the error."""

    done: Callable[[Path], Any]
    words: str


def rename_a_tensor(path: Path) -> None:
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.other"] = tensors.pop("conv_in.weight")
    save_file(tensors, file)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def add_code(path: Path) -> None:
    """Name code that lies in the directory, as diffusers would run it."""
    (path / "unet" / "own.py").write_text("raise SystemExit('this was run')")
    change_index(path, unet=["own", "Net"])


def add_noise(path: Path) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    scheduler.save_pretrained(path / "scheduler")
    change_index(path, scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])


DAMAGES = {
    "pipeline": Damage(
        lambda path: change_index(path, _class_name="FluxPipeline"), "names the pipeline"
    ),
    "pipeline of its own": Damage(
        lambda path: change_index(path, _class_name=["pipeline", "Own"]), "names the pipeline"
    ),
    "code": Damage(add_code, "takes unet from 'own'.* other code is not run"),
    "module": Damage(
        lambda path: change_index(path, unet=["os", "system"]), "takes unet from 'os'"
    ),
    "class": Damage(
        lambda path: change_index(path, unet=["diffusers", "Nothing"]), "does not have"
    ),
    "function": Damage(
        lambda path: change_index(path, scheduler=["diffusers", "utils"]), "does not have"
    ),
    "scheduler": Damage(
        lambda path: change_index(path, scheduler=["diffusers", "DPMSolverSDEScheduler"]),
        "whose noise a picture's seed does not decide",
    ),
    "noise": Damage(add_noise, "asks for stochastic_sampling of its scheduler"),
    "other class": Damage(
        lambda path: change_index(path, unet=["diffusers", "AutoencoderKL"]), "unet"
    ),
    "index": Damage(lambda path: cut(path / "model_index.json"), "is not valid JSON"),
    "folder": Damage(
        lambda path: shutil.rmtree(path / "text_encoder"), "text_encoder.* is not there"
    ),
    "part": Damage(
        lambda path: change_index(path, unet=[None, None]), "names no unet, which a picture needs"
    ),
    "config": Damage(lambda path: (path / "vae" / "config.json").unlink(), "vae"),
    "vocabulary": Damage(
        lambda path: (path / "tokenizer" / "tokenizer.json").unlink(), "no tokenizer"
    ),
    "weights": Damage(
        lambda path: (path / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
        "unet has no weights in safetensors",
    ),
    "pickle": Damage(
        lambda path: (path / "unet" / "diffusion_pytorch_model.safetensors").rename(
            path / "unet" / "diffusion_pytorch_model.bin"
        ),
        "unet has no weights in safetensors",
    ),
    "cut weights": Damage(
        lambda path: cut(path / "vae" / "diffusion_pytorch_model.safetensors"), "vae"
    ),
    "tensor": Damage(rename_a_tensor, "missing or left over: conv_in.other, conv_in.weight"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_directories_that_cannot_be_served_are_refused(
    tmp_path: Path, path: Path, name: str
) -> None:
    damage = DAMAGES[name]
    copied = tmp_path / "copy"
    shutil.copytree(path, copied)
    damage.done(copied)
    with pytest.raises(ModelFormatError, match=damage.words) as refused:
        load_runner("auto", RunnerOptions(str(copied), name="m"))
    assert str(copied) in str(refused.value)


def test_without_diffusers_the_error_says_what_to_install(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ModelFormatError, match=r"pip install 'aios-hrm-fleet\[diffusion\]'"):
        load_runner("auto", RunnerOptions(str(path), name="m"))


async def png_of(client: httpx.AsyncClient, image: dict[str, Any]) -> Pixels:
    """Return the pixels of a picture of an answer."""
    answer = await client.get(f"/v1/artifacts/{image['image']['id']}")
    assert answer.headers["content-type"] == "image/png"
    decoded = Image.open(io.BytesIO(answer.content))
    assert decoded.size == (image["width"], image["height"])
    return np.asarray(decoded)


async def test_a_picture_is_made_over_http(redis: Redis, path: Path) -> None:
    """As events of each step, and then again as one answer, from the seed that the first told."""
    runner = load(path, max_steps=20)
    body = {
        "task": "text-to-image",
        "inputs": PROMPT,
        "model_id": "t",
        "options": {"num_inference_steps": 6, "preview_every": 4},
    }
    async with fleet(redis, runner) as client:
        streamed = await client.post("/api/inference/stream", json=body)
        events = events_of(streamed.text)
        assert [name for name, _ in events if name != "progress"] == ["done"]
        # Steps that take less than REPORT_EVERY_S, or that wait for Redis, are told together. The
        # last is always told.
        steps = [event["done"] for name, event in events if name == "progress"]
        assert steps == sorted(set(steps))
        assert steps[0] >= 1
        assert steps[-1] == 6
        assert {event["total"] for name, event in events if name == "progress"} == {6}

        # The preview of step 4 may come with a later step, when they are told together.
        [preview] = [event for name, event in events if "preview" in event]
        assert 4 <= preview["done"] <= 6
        head, data = preview["preview"].split(",")
        assert head == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (SIDE, SIDE)

        [image] = events[-1][1]["result"]["images"]
        first = await png_of(client, image)
        body["options"] = {"num_inference_steps": 6, "seed": image["seed"]}
        answer = await client.post("/api/inference", json=body)
        [again] = answer.json()["result"]["images"]
        assert again["seed"] == image["seed"]
        assert (await png_of(client, again)).tobytes() == first.tobytes()

        data = base64.b64encode(encoded(picture(40, 30))).decode()
        body = {
            "task": "image-to-image",
            "inputs": data,
            "model_id": "t",
            "options": {"prompt": PROMPT, "num_inference_steps": 4, "num_images": 2, "seed": 3},
        }
        changed = (await client.post("/api/inference", json=body)).json()["result"]["images"]
        assert [(one["seed"], one["width"], one["height"]) for one in changed] == [
            (3, 40, 24),
            (4, 40, 24),
        ]
        one, other = [await png_of(client, image) for image in changed]
        assert one.tobytes() != other.tobytes()

        by_form = await client.post(
            "/api/inference",
            files={"image": ("a.png", encoded(picture(40, 30)), "image/png")},
            data={
                "task": "image-to-image",
                "model_id": "t",
                "options": json.dumps(body["options"]),
            },
        )
        [same, _] = by_form.json()["result"]["images"]
        assert (await png_of(client, same)).tobytes() == one.tobytes()

        body["options"] = {"prompt": PROMPT, "num_inference_steps": 21}
        refused = await client.post("/api/inference", json=body)
        assert refused.status_code == 400
        assert refused.json()["error"]["details"]["field"] == "num_inference_steps"
    expected = drawn_by(library(path), PROMPT, image["seed"], num_inference_steps=6)
    assert_same(first, expected)


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the names and bodies of server-sent events."""
    events = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "event" in lines:
            events.append((lines["event"], json.loads(lines["data"])))
    return events


async def test_a_cancelled_picture_ends_soon(redis: Redis, path: Path) -> None:
    """The steps that are left are not taken: the next picture does not wait for them."""
    runner = load(path, max_steps=1000)
    unet = runner._pipelines["text-to-image"].unet
    num_calls = 0

    def count(layer: Any, inputs: Any, output: Any) -> None:
        nonlocal num_calls
        num_calls += 1

    unet.conv_in.register_forward_hook(count)
    body = {
        "task": "text-to-image",
        "inputs": PROMPT,
        "model_id": "t",
        "options": {"num_inference_steps": 900},
    }
    async with fleet(redis, runner) as client:
        headers = {"Prefer": "respond-async"}
        asked = await client.post("/api/inference", json=body, headers=headers)
        assert asked.status_code == 202, asked.text
        job = f"/v1/jobs/{asked.json()['id']}"

        async def has_begun() -> bool:
            return num_calls > 4

        await until(has_begun, "the first steps are done")
        assert (await client.delete(job)).status_code in (200, 204)
        body["options"] = {"num_inference_steps": 2}
        answer = await client.post("/api/inference", json=body)
        assert answer.status_code == 200
    assert num_calls < 900, "of 1800 rows"
