"""3D meshes as files."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

PLY = "model/ply"


def ply_of(vertices: NDArray[Any], faces: NDArray[Any], colours: NDArray[Any]) -> bytes:
    """Return a binary PLY of triangles.

    vertices [n, 3] are points; faces [m, 3] are numbers of vertices; colours [n, 3] are red, green
    and blue of the vertices, from 0 to 1.
    """
    header = (
        "ply\n"
        "format binary_little_endian 1.0\n"
        f"element vertex {len(vertices)}\n"
        "property float x\n"
        "property float y\n"
        "property float z\n"
        "property uchar red\n"
        "property uchar green\n"
        "property uchar blue\n"
        f"element face {len(faces)}\n"
        "property list uchar int vertex_index\n"
        "end_header\n"
    )
    vertex_rows = np.zeros(len(vertices), dtype=[("point", "<f4", 3), ("colour", "u1", 3)])
    vertex_rows["point"] = vertices
    vertex_rows["colour"] = (np.clip(colours, 0, 1) * 255).round()
    face_rows = np.zeros(len(faces), dtype=[("count", "u1"), ("vertices", "<i4", 3)])
    face_rows["count"] = 3
    face_rows["vertices"] = faces
    return header.encode("ascii") + vertex_rows.tobytes() + face_rows.tobytes()
