"""The tasks that make 3D meshes, and their result. An `image` is the id of an artifact."""

from shared.tasks.results import OtherResult
from shared.tasks.specs import OtherTask


class MakeMesh(OtherTask, frozen=True, omit_defaults=True, tag="text-to-3d"):
    """Make a 3D mesh of a prompt. What is None is the model's own."""

    prompt: str
    seed: int
    guidance_scale: float | None = None
    num_inference_steps: int | None = None


class MeshOfPicture(OtherTask, frozen=True, omit_defaults=True, tag="image-to-3d"):
    """Make a 3D mesh of what a picture shows. What is None is the model's own."""

    image: str
    seed: int
    guidance_scale: float | None = None
    num_inference_steps: int | None = None


class Mesh(OtherResult, frozen=True, tag="text-to-3d"):
    """The mesh of triangles that was made. The same task with this seed makes it again.

    The answer's artifact is a PLY, whose vertices have colours. It is empty where the model made
    nothing with a surface.
    """

    seed: int
    num_vertices: int
    num_faces: int
