"""Bodies of `/v1/images` as OpenAI documents them."""

import base64
import re
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from api.schemas.fields import (
    AnyText,
    ByteInput,
    NonEmpty,
    Refused,
    RequestBody,
    refuse_unsupported,
    seed_of,
    shown,
)
from api.schemas.files import PIXEL
from api.stream.request_events import Outcome
from shared.tasks.pictures import ChangePicture, MakePictures, Pictures

_IMAGE = f"data:image/gif;base64,{PIXEL}"
_REFUSED: Refused = {
    "response_format": ["b64_json"],
    "output_format": ["png"],
    "output_compression": [100],
    "quality": ["auto", "standard"],
    "background": ["auto", "opaque"],
    "moderation": ["auto", "low"],
    "stream": [False, "false"],
    "partial_images": [0],
    "style": [],
    "mask": [],
    "markup": [],
    "input_fidelity": ["low"],
}
"""Fields for what only OpenAI's models can do, with the values that ask for nothing."""
_AUTO = "auto"
_SIZE = re.compile(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}")


def _as_size(value: str) -> str:
    if value != _AUTO and not _SIZE.fullmatch(value):
        raise ValueError("expected auto, or a width and a height such as 512x512")
    return value


def _only(value: Any) -> Any:
    """Return the picture of a list of one: OpenAI's clients can send several."""
    if isinstance(value, list) and len(value) == 1:
        return value[0]
    return value


_Image = Annotated[ByteInput, BeforeValidator(_only)]


class PicturesRequest(RequestBody):
    """The fields of every request for pictures. Those behind `size` are extras."""

    refused: ClassVar[Refused] = _REFUSED
    model: str | None = None
    # Fields of a form are text, so numbers may be text, too.
    n: Annotated[int, Field(ge=1, le=64)] = 1
    size: Annotated[str, AfterValidator(_as_size), Field(description="As 512x512.")] = _AUTO
    negative_prompt: AnyText = ""
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_served(cls, value: Any) -> Any:
        return refuse_unsupported(value, cls.refused)

    def shared_fields(self) -> dict[str, Any]:
        """Return the fields that the tasks of all these requests have."""
        width = None
        height = None
        if self.size != _AUTO:
            width, height = map(int, self.size.split("x"))
        return {
            "seed": seed_of(self.seed),
            "negative_prompt": self.negative_prompt,
            "width": width,
            "height": height,
            "guidance_scale": self.guidance_scale,
            "num_inference_steps": self.num_inference_steps,
            "num_images": self.n,
        }


class GenerationRequest(PicturesRequest):
    model_config = shown(
        {
            "prompt": "a red cup on a table",
            "model": "painter",
            "size": "64x64",
            "num_inference_steps": 4,
            "seed": 7,
        }
    )

    prompt: NonEmpty

    def task(self) -> MakePictures:
        return MakePictures(self.prompt, **self.shared_fields())


class EditRequest(PicturesRequest):
    """A picture, in a form or in JSON, and what it is to become. There are no masks."""

    model_config = shown(
        {"image": _IMAGE, "prompt": "a red cup", "model": "painter", "num_inference_steps": 4}
    )

    image: _Image
    prompt: NonEmpty
    strength: Annotated[float, Field(gt=0, le=1)] = 0.8

    def task(self) -> ChangePicture:
        fields = self.shared_fields()
        return ChangePicture(self.image, self.prompt, strength=self.strength, **fields)


class VariationRequest(PicturesRequest):
    """A picture, in a form or in JSON, to be made otherwise."""

    model_config = shown({"image": _IMAGE, "model": "painter", "num_inference_steps": 4})

    image: _Image
    strength: Annotated[float, Field(gt=0, le=1)] = 0.5

    def task(self) -> ChangePicture:
        return ChangePicture(self.image, "", strength=self.strength, **self.shared_fields())


class ImageBody(BaseModel):
    """A picture as a PNG in base64, and the seed that makes it again."""

    b64_json: str | None
    seed: int


class Images(BaseModel):
    created: int
    data: list[ImageBody]


def images(created: int, outcome: Outcome) -> Images:
    """Return the pictures of an outcome. Without the bytes of its files there are only seeds."""
    data = []
    for index, picture in enumerate(outcome.as_a(Pictures).pictures):
        text = None
        if outcome.file_bytes:
            text = base64.b64encode(outcome.file_bytes[index]).decode()
        data.append(ImageBody(b64_json=text, seed=picture.seed))
    return Images(created=created, data=data)
