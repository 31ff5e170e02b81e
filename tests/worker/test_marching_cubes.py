"""Marching cubes in little memory: the same mesh as the library's, to the last bit."""

import subprocess
import sys

import pytest
import torch
from diffusers.pipelines.shap_e.renderer import MeshDecoder

from worker.models.marching_cubes import SparseMeshDecoder


def decoder_with_tables() -> MeshDecoder:
    """Return the library's decoder with random tables: its real ones come with a model."""
    generator = torch.Generator().manual_seed(1)
    decoder = MeshDecoder()
    decoder.cases.copy_(torch.randint(0, 12, (256, 5, 3), generator=generator))
    decoder.masks.copy_(torch.rand(256, 5, generator=generator) < 0.5)
    # Cubes that are all inside, or all outside, have no triangles.
    decoder.masks[[0, 255]] = False
    return decoder


def sphere(sides: tuple[int, int, int]) -> torch.Tensor:
    axes = [torch.linspace(-1, 1, side) for side in sides]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    return 0.5 - (x**2 + y**2 + z**2).sqrt()


@pytest.mark.parametrize("kind", ["sphere", "noise", "nothing"])
def test_the_mesh_is_the_librarys(kind: str) -> None:
    """Vertices and faces are equal in their numbers, their order and all bits.

    The sides of the grid differ, so that no axis is taken for another.
    """
    sides = (9, 11, 14)
    field = sphere(sides)
    if kind == "noise":
        field = torch.randn(sides, generator=torch.Generator().manual_seed(2))
    elif kind == "nothing":
        field = torch.full(sides, -1.0)
    library = decoder_with_tables()
    place = (torch.tensor([-1.0, -0.5, 0.25]), torch.tensor([2.0, 1.5, 3.0]))

    expected = library(field, *place)
    mesh = SparseMeshDecoder(library)(field, *place)

    assert (len(expected.faces) == 0) == (kind == "nothing")
    assert torch.equal(mesh.faces, expected.faces)
    # An edge whose ends are on one side has no point of the surface: random tables name such edges.
    assert torch.equal(mesh.verts.nan_to_num(), expected.verts.nan_to_num())


def test_a_large_grid_takes_little_memory() -> None:
    """130 points a side take less than 200 MB, where the library takes more than a gigabyte."""
    code = (
        "import re, torch\n"
        "from pathlib import Path\n"
        "from tests.worker.test_marching_cubes import decoder_with_tables, sphere\n"
        "from worker.models.marching_cubes import SparseMeshDecoder\n"
        "def peak():\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    return int(re.search(r'VmHWM:\\s+(\\d+)', status)[1])\n"
        "decoder = SparseMeshDecoder(decoder_with_tables())\n"
        "field = sphere((130, 130, 130))\n"
        "place = (torch.zeros(3), torch.ones(3))\n"
        "decoder(field[:9, :9, :9], *place)\n"
        "before = peak()\n"
        "mesh = decoder(field, *place)\n"
        "print(len(mesh.faces), peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    num_faces, growth = map(int, done.stdout.split())
    assert num_faces > 10_000
    assert growth < 200 * 1024
