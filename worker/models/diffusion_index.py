"""The file `model_index.json` of diffusers' directories, read without torch."""

from pathlib import Path

from shared.messages import TaskName
from worker.models.errors import ModelFormatError
from worker.models.reading import read_json_object

INDEX = "model_index.json"
PIPELINES: dict[str, dict[TaskName, str]] = {
    "StableDiffusionPipeline": {
        "text-to-image": "StableDiffusionPipeline",
        "image-to-image": "StableDiffusionImg2ImgPipeline",
    },
    "StableDiffusionXLPipeline": {
        "text-to-image": "StableDiffusionXLPipeline",
        "image-to-image": "StableDiffusionXLImg2ImgPipeline",
    },
    "StableDiffusion3Pipeline": {
        "text-to-image": "StableDiffusion3Pipeline",
        "image-to-image": "StableDiffusion3Img2ImgPipeline",
    },
    "LTXPipeline": {
        "text-to-video": "LTXPipeline",
        "image-to-video": "LTXImageToVideoPipeline",
    },
    "ShapEPipeline": {"text-to-3d": "ShapEPipeline"},
    "ShapEImg2ImgPipeline": {"image-to-3d": "ShapEImg2ImgPipeline"},
}
"""By the class that an index names: the classes around the same networks that do each task."""


def class_of_index(path: Path) -> str:
    """Return the class of the pipeline in a directory.

    Raise ModelFormatError for one that is not among `PIPELINES`.
    """
    name = read_json_object(path / INDEX).get("_class_name")
    if not isinstance(name, str) or name not in PIPELINES:
        raise ModelFormatError(
            f"{path / INDEX} names the pipeline {name!r}; expected one of {', '.join(PIPELINES)}."
        )
    return name
