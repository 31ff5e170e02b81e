"""Marching cubes for diffusers' Shap-E, in little memory.

The library computes all edges of all cubes of the grid, in more than a gigabyte for 128 points a
side, and then keeps the few at the surface. Here cubes without a triangle are left out from the
beginning. Vertices and faces are the same, in the same order.
"""

from typing import Any

import torch
from diffusers.pipelines.shap_e.renderer import MeshDecoderOutput
from torch import Tensor, nn


class SparseMeshDecoder(nn.Module):
    """Stands in for a `MeshDecoder`, whose tables of triangles it uses.

    `cases` [256, 5, 3] are the triangles of a cube by its bitmask, each as three of the cube's 12
    edges; `masks` [256, 5] tell which of the five there are.
    """

    cases: Tensor
    masks: Tensor

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.register_buffer("cases", decoder.cases)
        self.register_buffer("masks", decoder.masks)

    def forward(self, field: Tensor, min_point: Tensor, size: Tensor) -> MeshDecoderOutput:
        """Return the surface between the points of `field` [X, Y, Z] over 0 and the others.

        The first point of the grid lies at `min_point` [3], the last one by `size` [3] away.
        """
        triangles = self._triangles(field)
        edges, faces = torch.unique(triangles, return_inverse=True)
        first, second = _ends(edges, field.shape)
        scale = torch.tensor(field.shape).to(size) - 1
        start = (first.float() / scale) * size + min_point
        end = (second.float() / scale) * size + min_point
        inside = field[tuple(first.unbind(1))]
        outside = field[tuple(second.unbind(1))]
        # The share of the way at which the value is 0.
        share = (inside / (inside - outside))[:, None]
        vertices = share * end + (1 - share) * start
        return MeshDecoderOutput(verts=vertices, faces=faces, vertex_channels=None)

    def _triangles(self, field: Tensor) -> Tensor:
        """Return all triangles [N, 3], each as the numbers of three edges of the grid."""
        corners = (field > 0).to(torch.uint8)
        corners = corners[:-1] | (corners[1:] << 1)
        corners = corners[:, :-1] | (corners[:, 1:] << 2)
        corners = corners[:, :, :-1] | (corners[:, :, 1:] << 4)
        has_triangles = self.masks.any(dim=1)[corners.long()]
        cubes = has_triangles.nonzero()
        bitmasks = corners[has_triangles].long()
        edges = _edges_of(cubes, field.shape)
        triangles = torch.gather(edges, 1, self.cases[bitmasks].flatten(1)).view(-1, 3)
        return triangles[self.masks[bitmasks].flatten()]


def _edges_of(cubes: Tensor, shape: torch.Size) -> Tensor:
    """Return the numbers [N, 12] of the edges of cubes, given by their first corners [N, 3].

    Edges along x come first, then those along y and z, each in the order of their first points.
    Within a cube the four along one axis are ordered by the other two, the first of which is the
    quicker.
    """
    columns: list[Tensor] = []
    offset = 0
    for axis in range(3):
        sides = list(shape)
        sides[axis] -= 1
        quick, slow = [other for other in range(3) if other != axis]
        for slow_step in (0, 1):
            for quick_step in (0, 1):
                point = [cubes[:, 0], cubes[:, 1], cubes[:, 2]]
                point[quick] = point[quick] + quick_step
                point[slow] = point[slow] + slow_step
                number = (point[0] * sides[1] + point[1]) * sides[2] + point[2]
                columns.append(offset + number)
        offset += sides[0] * sides[1] * sides[2]
    return torch.stack(columns, dim=1)


def _ends(edges: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Return the two points, [N, 3] each, of edges that are given by their sorted numbers."""
    firsts: list[Tensor] = []
    seconds: list[Tensor] = []
    offset = 0
    for axis in range(3):
        sides = list(shape)
        sides[axis] -= 1
        count = sides[0] * sides[1] * sides[2]
        numbers = edges[(edges >= offset) & (edges < offset + count)] - offset
        first = torch.stack(torch.unravel_index(numbers, sides), dim=1)
        second = first.clone()
        second[:, axis] += 1
        firsts.append(first)
        seconds.append(second)
        offset += count
    return torch.cat(firsts), torch.cat(seconds)
