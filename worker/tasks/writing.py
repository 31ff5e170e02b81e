"""The tasks whose answer a network writes, done by pipelines."""

from typing import Any

from shared.errors import InvalidRequest
from shared.tasks.writing import DescribeImage, Summarize, Translate, Written
from worker.engine.task_runner import Files, TaskOutput
from worker.media.images import MAX_IMAGE_BYTES, decode_image
from worker.tasks.one_shot import Decoded, Loaded, OneShot, Trial, trial_of
from worker.tasks.own_pipelines import Captioner, TextWriter
from worker.tasks.vision import GREY

_TRIAL_TOKENS = 2
_PAIR = "translation_"
"""The beginning of T5's names for translations, such as translation_en_to_de."""


def _read_text(task: Summarize | Translate, files: Files, loaded: Loaded) -> Decoded:
    return Decoded(task.text)


def _read_image(task: DescribeImage, files: Files, loaded: Loaded) -> Decoded:
    data = files.read(task.image, max_bytes=MAX_IMAGE_BYTES)
    return Decoded(decode_image(data, max_pixels=loaded.max_pixels))


def _own_settings(loaded: Loaded) -> dict[str, Any]:
    """Return what a network's config says of its tasks, such as T5's prefixes."""
    settings: dict[str, Any] = getattr(loaded.pipe.model.config, "task_specific_params", None) or {}
    return settings


def _summary_options(task: Summarize, decoded: Decoded, loaded: Loaded) -> dict[str, Any]:
    prefix = _own_settings(loaded).get("summarization", {}).get("prefix", "")
    return {"prefix": prefix, "max_tokens": task.max_tokens}


def _pairs(loaded: Loaded) -> dict[str, str]:
    """Return the prefix of each pair of languages, such as en_to_de, that the config names."""
    pairs: dict[str, str] = {}
    for name, own in _own_settings(loaded).items():
        if name.startswith(_PAIR):
            pairs[name.removeprefix(_PAIR)] = own.get("prefix", "")
    return pairs


def _translation_options(task: Translate, decoded: Decoded, loaded: Loaded) -> dict[str, Any]:
    """Return the options of the pipeline.

    Raise InvalidRequest for languages that the network does not know, or knows but was not told.
    """
    options: dict[str, Any] = {"max_tokens": task.max_tokens}
    pairs = _pairs(loaded)
    if loaded.pipe.is_multilingual:
        if task.target is None:
            raise InvalidRequest(
                "target: this model translates into several languages; name one.", field="target"
            )
        return options | {"source": task.source, "target": task.target}
    if pairs:
        pair = f"{task.source}_to_{task.target}"
        if pair not in pairs:
            raise InvalidRequest(
                f"source, target: this model translates {', '.join(pairs)}.", field="target"
            )
        return options | {"prefix": pairs[pair]}
    if task.source is not None or task.target is not None:
        raise InvalidRequest(
            "source, target: this model has one pair of languages, which is not asked for.",
            field="target",
        )
    return options


def _translation_trial(loaded: Loaded) -> Trial:
    source = None
    target = None
    if loaded.pipe.is_multilingual:
        target = next(iter(loaded.pipe.languages))
    for pair in _pairs(loaded):
        source, target = pair.split("_to_")
    return Translate("a", source, target, _TRIAL_TOKENS), {}


def _caption_options(task: DescribeImage, decoded: Decoded, loaded: Loaded) -> dict[str, Any]:
    return {"prompt": task.prompt, "max_tokens": task.max_tokens}


def _written(task: Any, text: str, seconds: float) -> TaskOutput:
    return TaskOutput(Written(text))


WRITING = {
    "summarization": OneShot(
        parts=("tokenizer",),
        read=_read_text,
        options=_summary_options,
        output=_written,
        trial=(Summarize("a", _TRIAL_TOKENS), {}),
        pipeline=TextWriter,
    ),
    "translation": OneShot(
        parts=("tokenizer",),
        read=_read_text,
        options=_translation_options,
        output=_written,
        trial=_translation_trial,
        pipeline=TextWriter,
    ),
    "image-to-text": OneShot(
        parts=("image_processor", "tokenizer"),
        read=_read_image,
        options=_caption_options,
        output=_written,
        trial=trial_of(lambda image: DescribeImage(image, max_tokens=_TRIAL_TOKENS), GREY),
        pipeline=Captioner,
    ),
}
