"""Bodies of tasks that make 3D meshes: inputs, options and the result."""

from pydantic import BaseModel

from api.schemas.fields import Seed, shown
from api.schemas.files import PIXEL, MadeFile
from api.schemas.inference import InferenceRequest, Options, options_field
from api.schemas.one_shots import ImageRequest
from api.schemas.pictures import Guidance, Steps

_IMAGE = f"data:image/gif;base64,{PIXEL}"


class MeshOptions(Options):
    """The options of all tasks that make meshes. What is left open is the model's own."""

    guidance_scale: Guidance | None = None
    num_inference_steps: Steps | None = None
    seed: Seed | None = None


class TextTo3DRequest(InferenceRequest):
    model_config = shown(
        {
            "task": "text-to-3d",
            "inputs": "a red cup",
            "model_id": "sculptor",
            "options": {"num_inference_steps": 2, "seed": 7},
        }
    )

    options: MeshOptions = options_field(MeshOptions)


class ImageTo3DRequest(ImageRequest):
    model_config = shown(
        {
            "task": "image-to-3d",
            "inputs": _IMAGE,
            "model_id": "modeller",
            "options": {"num_inference_steps": 2, "seed": 7},
        }
    )

    options: MeshOptions = options_field(MeshOptions)


class MeshResult(BaseModel):
    """A mesh of triangles as a PLY. The same request with its seed makes it again."""

    seed: int
    num_vertices: int
    num_faces: int
    mesh: MadeFile
