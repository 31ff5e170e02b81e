"""Pipelines of diffusers that make 3D meshes of noise, one at a time: Shap-E.

The steps end in the weights of a small network, which tells for each point of space how far from
the surface it is, and its colour. The mesh is read from its answers on a grid.
Source: https://arxiv.org/abs/2305.02463
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from shared.errors import ClientGone, FleetError, InvalidRequest
from shared.messages import Task, TaskName, name_of
from shared.tasks.meshes import MakeMesh, Mesh, MeshOfPicture
from shared.tasks.runner_options import DiffusionOptions
from worker.engine.sampler import broken
from worker.engine.task_runner import BatchProgress, Files, NewFile, TaskOutput, TaskRunnerSpec
from worker.engine.weights import WeightSize
from worker.media.images import MAX_IMAGE_BYTES, decode_image, png_of
from worker.media.mesh import PLY, ply_of
from worker.models.marching_cubes import SparseMeshDecoder
from worker.runners.allocation import tells_out_of_memory
from worker.runners.pipeline_calls import (
    MAX_GIVEN_PIXELS,
    SEED_MASK,
    NobodyWaits,
    default_of,
    steps_of,
)

MeshTask = MakeMesh | MeshOfPicture


class NoSurface(Exception):
    """Ends the reading of a mesh where no point of the grid is inside of it."""


@dataclass(frozen=True)
class MeshItem:
    """A task that has been read. `subject` is its prompt or its picture."""

    task: MeshTask
    subject: str | Image.Image
    seed: int
    steps: int
    guidance_scale: float


class MeshRunner:
    """One pipeline, which makes meshes either of prompts or of pictures."""

    def __init__(
        self,
        pipelines: dict[TaskName, Any],
        own: DiffusionOptions,
        *,
        name: str,
        found: str,
        weights: WeightSize,
    ) -> None:
        [(self._task, self._pipeline)] = pipelines.items()
        self._own = own
        trial: MeshTask = MakeMesh("a", seed=0, num_inference_steps=1)
        trial_files = {}
        if self._task == "image-to-3d":
            trial = MeshOfPicture("picture", seed=0, num_inference_steps=1)
            trial_files["picture"] = png_of(Image.new("RGB", (8, 8)))
        renderer = self._pipeline.shap_e_renderer
        renderer.mesh_decoder = SparseMeshDecoder(renderer.mesh_decoder)
        renderer.mesh_decoder.register_forward_hook(_check_surface)
        self.spec = TaskRunnerSpec(
            "diffusion",
            name,
            found=found,
            max_batch=1,
            tasks=(self._task,),
            trial=trial,
            trial_files=trial_files,
            weights=weights,
        )

    def read(self, task: Task, files: Files) -> MeshItem:
        if not isinstance(task, MeshTask) or name_of(task) != self._task:
            raise InvalidRequest(f"This model does not serve {name_of(task)!r}.", field="model")
        if isinstance(task, MeshOfPicture):
            data = files.read(task.image, max_bytes=MAX_IMAGE_BYTES)
            subject: str | Image.Image = decode_image(data, max_pixels=MAX_GIVEN_PIXELS)
        else:
            subject = task.prompt
        guidance_scale = task.guidance_scale
        if guidance_scale is None:
            guidance_scale = default_of("guidance_scale", self._pipeline, self._own)
        return MeshItem(
            task,
            subject=subject,
            seed=task.seed & SEED_MASK,
            steps=steps_of(task.num_inference_steps, self._pipeline, self._own),
            guidance_scale=guidance_scale,
        )

    def group_key(self, item: MeshItem) -> Hashable:
        return object()

    @tells_out_of_memory
    def run(
        self, items: Sequence[MeshItem], progress: BatchProgress
    ) -> list[TaskOutput | FleetError]:
        [item] = items
        num_done = 0

        def after_step(denoiser: Any, inputs: Any, output: Any) -> None:
            nonlocal num_done
            if not progress.is_wanted(0):
                raise NobodyWaits
            num_done += 1
            progress.report(0, num_done, len(self._pipeline.scheduler.timesteps))

        # The pipelines tell of their steps to nobody, but call this network once in each.
        watch = self._pipeline.prior.register_forward_hook(after_step)
        try:
            made = self._pipeline(
                item.subject,
                generator=torch.Generator("cpu").manual_seed(item.seed),
                num_inference_steps=item.steps,
                guidance_scale=item.guidance_scale,
                output_type="latent",
            )
        except NobodyWaits:
            return [ClientGone("Nobody waits for the mesh any more.")]
        finally:
            watch.remove()
        # [1, rows of weights, width]
        latents = made.images
        if not bool(torch.isfinite(latents).all()):
            return [broken(self.spec.name)]
        try:
            mesh = self._pipeline.shap_e_renderer.decode_to_mesh(
                latents, latents.device, grid_size=self._own.grid_size
            )
        except NoSurface:
            nothing = np.zeros((0, 3))
            return [_output(item, nothing, nothing, nothing)]
        colours = torch.stack([mesh.vertex_channels[channel] for channel in "RGB"], dim=1)
        return [
            _output(
                item,
                mesh.verts.float().cpu().numpy(),
                mesh.faces.cpu().numpy(),
                colours.float().cpu().numpy(),
            )
        ]


def _check_surface(decoder: Any, inputs: Any, mesh: Any) -> None:
    if not len(mesh.faces):
        raise NoSurface


def _output(
    item: MeshItem, vertices: NDArray[Any], faces: NDArray[Any], colours: NDArray[Any]
) -> TaskOutput:
    data = ply_of(vertices, faces, colours)
    return TaskOutput(Mesh(item.seed, len(vertices), len(faces)), (NewFile(data, PLY, "mesh.ply"),))
