"""Bodies of tasks that make videos: inputs, options and the result."""

from typing import Annotated

from pydantic import AliasChoices, BaseModel, Field

from api.schemas.fields import AnyText, Seed, shown
from api.schemas.files import PIXEL, MadeFile
from api.schemas.inference import InferenceRequest, Options, options_field
from api.schemas.one_shots import ImageRequest
from api.schemas.pictures import Guidance, Side, Steps

_IMAGE = f"data:image/gif;base64,{PIXEL}"


class VideoOptions(Options):
    """The options of all tasks that make videos. What is left open is the model's own."""

    negative_prompt: AnyText = ""
    width: Side | None = None
    height: Side | None = None
    num_frames: Annotated[int, Field(strict=True, ge=1, le=10_000)] | None = None
    fps: Annotated[int, Field(strict=True, ge=1, le=120)] | None = Field(
        None,
        validation_alias=AliasChoices("fps", "frame_rate"),
        description="Frames shown a second.",
    )
    guidance_scale: Guidance | None = None
    num_inference_steps: Steps | None = None
    seed: Seed | None = None


class TextToVideoRequest(InferenceRequest):
    model_config = shown(
        {
            "task": "text-to-video",
            "inputs": "a red cup falls",
            "model_id": "filmer",
            "options": {
                "num_inference_steps": 2,
                "width": 32,
                "height": 32,
                "num_frames": 5,
                "seed": 7,
            },
        }
    )

    options: VideoOptions = options_field(VideoOptions)


class ImageToVideoOptions(VideoOptions):
    prompt: AnyText = ""


class ImageToVideoRequest(ImageRequest):
    model_config = shown(
        {
            "task": "image-to-video",
            "inputs": _IMAGE,
            "model_id": "filmer",
            "options": {"prompt": "it falls", "num_inference_steps": 2, "num_frames": 5, "seed": 7},
        }
    )

    options: ImageToVideoOptions = options_field(ImageToVideoOptions)


class VideoResult(BaseModel):
    """A video as an MP4. The same request with its seed makes it again."""

    seed: int
    width: int
    height: int
    num_frames: int
    fps: int
    video: MadeFile
