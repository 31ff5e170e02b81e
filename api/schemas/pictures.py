"""Bodies of tasks that make pictures: inputs, options and results."""

from typing import Annotated

from pydantic import AliasChoices, BaseModel, Field

from api.schemas.fields import AnyText, Seed, shown
from api.schemas.files import PIXEL, MadeFile
from api.schemas.inference import InferenceRequest, Options, options_field
from api.schemas.one_shots import ImageRequest

_IMAGE = f"data:image/gif;base64,{PIXEL}"

Side = Annotated[int, Field(strict=True, ge=1, le=1 << 15, description="In pixels.")]
Guidance = Annotated[
    float,
    Field(
        strict=True, ge=0, le=100, description="How closely to follow the prompt; up to 1: freely."
    ),
]
Steps = Annotated[
    int, Field(strict=True, ge=1, le=1000, description="Denoising steps; subject to the cap.")
]
Strength = Annotated[
    float, Field(strict=True, gt=0, le=1, description="The share of the steps that is done.")
]
NumImages = Annotated[int, Field(strict=True, ge=1, le=64)]


class PictureOptions(Options):
    """The options of all tasks that make pictures. What is left open is the model's own."""

    negative_prompt: AnyText = ""
    width: Side | None = None
    height: Side | None = None
    guidance_scale: Guidance | None = None
    num_inference_steps: Steps | None = None
    num_images: NumImages = Field(
        1,
        validation_alias=AliasChoices("num_images", "num_images_per_prompt"),
        description="Pictures, whose seeds follow each other.",
    )
    seed: Seed | None = None
    preview_every: Annotated[
        int,
        Field(
            strict=True, ge=0, le=1000, description="Steps between previews in a stream; 0: none."
        ),
    ] = 0


class TextToImageRequest(InferenceRequest):
    model_config = shown(
        {
            "task": "text-to-image",
            "inputs": "a red cup on a table",
            "model_id": "painter",
            "options": {"num_inference_steps": 4, "width": 64, "height": 64, "seed": 7},
        }
    )

    options: PictureOptions = options_field(PictureOptions)


class ImageToImageOptions(PictureOptions):
    prompt: Annotated[
        AnyText, Field(description="Models of super-resolution take none, and no other options.")
    ] = ""
    strength: Strength = 0.8


class ImageToImageRequest(ImageRequest):
    model_config = shown(
        {
            "task": "image-to-image",
            "inputs": _IMAGE,
            "model_id": "painter",
            "options": {"prompt": "a red cup", "num_inference_steps": 4, "seed": 7},
        },
        {"task": "image-to-image", "inputs": _IMAGE, "model_id": "upscaler"},
    )

    options: ImageToImageOptions = options_field(ImageToImageOptions)


class PictureBody(BaseModel):
    """A picture as a PNG. The same request with its seed makes it again, alone.

    It is black if the model's own checker of contents has blocked it.
    """

    seed: int
    width: int
    height: int
    is_blocked: bool
    image: MadeFile


class PicturesResult(BaseModel):
    images: list[PictureBody]
