"""3D meshes made by a pipeline of diffusers are those of its own call, whole and by HTTP."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ShapEImg2ImgPipeline, ShapEPipeline
from diffusers.utils import export_to_ply
from numpy.typing import NDArray
from redis.asyncio import Redis

from shared.errors import ClientGone, InvalidRequest
from shared.messages import Done, decode_event, encode
from shared.settings.settings import ModelEntry, Settings
from shared.tasks.meshes import MakeMesh, Mesh, MeshOfPicture
from shared.tasks.pictures import MakePictures
from shared.tasks.runner_options import DiffusionOptions
from tests.fixtures.pictures import encoded, picture
from tests.fixtures.tiny_diffusion import write_mesh_pipeline
from tests.fixtures.worker.callers import Caller
from tests.fixtures.worker.fleets import fleet
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import NO_FILES, FilesAtHand, TaskOutput
from worker.host.facts import facts_of, modality_of
from worker.runners.registry import load_runner
from worker.runners.shape_diffusion import MeshRunner

TASK = MakeMesh("a cup", 7, num_inference_steps=2)
GIVEN = picture(64, 32, seed=1)
GRID = 12


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mesh_pipeline(tmp_path_factory.mktemp("mesh"))


@pytest.fixture(scope="module")
def runner(path: Path) -> MeshRunner:
    return load(path)


def load(path: Path, *, grid_size: int = GRID, **own: Any) -> MeshRunner:
    options = DiffusionOptions(grid_size=grid_size, **own)
    runner = load_runner("auto", RunnerOptions(str(path), name="m", own=options))
    assert isinstance(runner, MeshRunner)
    return runner


def made(runner: MeshRunner, task: Any, caller: Caller | None = None) -> TaskOutput:
    item = runner.read(task, FilesAtHand({"x": encoded(GIVEN)}))
    [output] = runner.run([item], caller or Caller())
    assert isinstance(output, TaskOutput), output
    done: Done = Done("stop", 0, 0, result=output.result)
    assert decode_event(encode(done)) == done, "it can be sent"
    return output


def parts_of(ply: bytes) -> tuple[bytes, NDArray[Any], bytes]:
    """Return the header, the vertices (points and colours) and the faces of a file."""
    header, _, body = ply.partition(b"end_header\n")
    [count] = [int(line.split()[-1]) for line in header.split(b"\n") if b"element vertex" in line]
    dtype = np.dtype([("point", "<f4", 3), ("colour", "u1", 3)])
    end = count * dtype.itemsize
    return header, np.frombuffer(body[:end], dtype), body[end:]


@pytest.mark.parametrize("from_picture", [False, True], ids=["prompt", "picture"])
def test_a_mesh_is_that_of_the_library(from_picture: bool, tmp_path: Path) -> None:
    path = write_mesh_pipeline(tmp_path / "model", from_picture=from_picture)
    runner = load(path, grid_size=128)
    caller = Caller()
    task = MeshOfPicture("x", 7, 5.0, 2) if from_picture else MakeMesh("a cup", 7, 5.0, 2)
    output = made(runner, task, caller)
    # The second step of this scheduler comes before the first one's end.
    assert caller.steps == [(1, 3), (2, 3), (3, 3)]
    [file] = output.files
    assert (file.media_type, file.name) == ("model/ply", "mesh.ply")

    kind: Any = ShapEImg2ImgPipeline if from_picture else ShapEPipeline
    pipeline = kind.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    [mesh] = pipeline(
        GIVEN if from_picture else "a cup",
        generator=torch.Generator("cpu").manual_seed(7),
        num_inference_steps=2,
        guidance_scale=5.0,
        output_type="mesh",
    ).images
    expected_file = str(tmp_path / "expected.ply")
    export_to_ply(mesh, expected_file)
    header, vertices, faces = parts_of(file.data)
    expected = parts_of(Path(expected_file).read_bytes())
    assert output.result == Mesh(7, len(mesh.verts), len(mesh.faces))
    assert len(mesh.faces) > 100
    assert (header, faces) == (expected[0], expected[2])
    assert (vertices["point"] == expected[1]["point"]).all()
    assert np.isfinite(vertices["point"]).all()
    # The library rounds a level up that lies between two.
    assert np.abs(vertices["colour"].astype(int) - expected[1]["colour"]).max() <= 1
    assert vertices["colour"].std() > 1


def test_equal_seeds_make_equal_meshes(runner: MeshRunner) -> None:
    tasks = [TASK, MakeMesh("a cup", 8, None, 2), MakeMesh("a road", 7, None, 2)]
    files = [made(runner, task).files[0].data for task in tasks]
    assert made(runner, TASK).files[0].data == files[0]
    for one, other in itertools.combinations(files, 2):
        assert one != other
    items = [runner.read(task, NO_FILES) for task in tasks[:2]]
    assert runner.group_key(items[0]) != runner.group_key(items[1]), "one at a time"


def test_what_nobody_waits_for_ends_between_two_steps(runner: MeshRunner) -> None:
    caller = Caller(leaves_after=1)
    [output] = runner.run([runner.read(TASK, NO_FILES)], caller)
    assert isinstance(output, ClientGone)
    assert caller.steps == [(1, 3)]
    again = Caller()
    made(runner, TASK, again)
    assert again.steps == [(1, 3), (2, 3), (3, 3)], "each is watched by itself"


def test_a_shape_without_a_surface_is_an_empty_mesh(path: Path) -> None:
    runner = load(path)
    last = runner._pipeline.shap_e_renderer.mlp.mlp[-1]
    # All of space is far outside.
    last.weight.zero_()
    last.bias.fill_(-1.0)
    output = made(runner, TASK)
    assert output.result == Mesh(7, 0, 0)
    assert parts_of(output.files[0].data)[2] == b""


def test_numbers_that_are_not_finite_are_a_failure(path: Path) -> None:
    runner = load(path)
    runner._pipeline.prior.proj_to_clip_embeddings.bias.fill_(float("nan"))
    [output] = runner.run([runner.read(TASK, NO_FILES)], Caller())
    assert "not finite" in str(output)


def test_limits_and_defaults_are_the_models_own(path: Path) -> None:
    runner = load(path, max_steps=10, num_inference_steps=4, guidance_scale=3.0)
    item = runner.read(MakeMesh("a", 1), NO_FILES)
    assert (item.steps, item.guidance_scale) == (4, 3.0)
    with pytest.raises(InvalidRequest, match="num_inference_steps: expected 1 to 10, got 11"):
        runner.read(MakeMesh("a", 1, num_inference_steps=11), NO_FILES)
    for task in (MeshOfPicture("x", 1), MakePictures("a", 1)):
        with pytest.raises(InvalidRequest, match="does not serve"):
            runner.read(task, NO_FILES)
    assert load(path).read(MakeMesh("a", 1), NO_FILES).guidance_scale == 4.0, "the library's"


def test_its_tasks_are_known_before_it_is_loaded(path: Path) -> None:
    entry = ModelEntry(id="m", path=str(path))
    assert facts_of(entry, Settings(models=(entry,))).info.tasks == ("text-to-3d",)
    assert modality_of(entry, Settings(models=(entry,))) == "3d"


async def test_a_mesh_is_made_over_http(redis: Redis, runner: MeshRunner) -> None:
    async with fleet(redis, runner) as client:
        body = {
            "task": "text-to-3d",
            "inputs": "a cup",
            "model_id": "t",
            "options": {"num_inference_steps": 2, "seed": 7},
        }
        answer = await client.post("/api/inference", json=body)
        assert answer.status_code == 200, answer.text
        result = answer.json()["result"]
        expected = made(runner, TASK)
        assert isinstance(expected.result, Mesh)
        assert result["num_vertices"] == expected.result.num_vertices
        file = await client.get(f"/v1/artifacts/{result['mesh']['id']}")
        assert file.content == expected.files[0].data
        assert file.headers["content-type"] == "model/ply"
