"""The options that runners declare: name, type, default and help.

A new option is a field here, and its runner's use of it. Nothing here needs torch: `--option`, a
model's entry in YAML, the chart's schema, docs/settings.md and workers read the same declarations.
A setting of the same name gives an option its value where the model's entry does not.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from shared.settings.text import plain
from shared.settings.types import Text
from shared.tasks.specs import EFFORTS, Depth, Effort

Scoring = Literal["strict", "aios_compat"]
Segments = Literal["compat", "max", "q_halt"]
Attention = Literal["bidirectional", "causal"]
OneShotTask = Literal[
    "summarization",
    "translation",
    "question-answering",
    "token-classification",
    "zero-shot-classification",
    "fill-mask",
    "image-to-text",
    "image-classification",
    "zero-shot-image-classification",
    "video-classification",
    "visual-question-answering",
    "object-detection",
    "zero-shot-object-detection",
    "image-segmentation",
    "depth-estimation",
    "image-to-image",
    "text-to-speech",
    "audio-classification",
    "automatic-speech-recognition",
    "time-series-forecasting",
]
KVDtype = Literal["auto", "bfloat16", "int8"]
Dialect = Literal["openai", "tgi"]
CYCLES = r"[1-9]\d?x[1-9]\d?"
"""The pattern of numbers of H and L cycles, such as 2x3."""

_STEPS = r"[1-9]\d{0,3}"


def _as_cycles(value: str) -> str:
    """Return a text as 2x3. Raise ValueError for any other."""
    if not re.fullmatch(CYCLES, value):
        raise ValueError("expected H and L cycles as 2x3, each from 1 to 99")
    return value


def _as_cycle_efforts(value: str) -> str:
    return _as_efforts(value, CYCLES, example="low=2x1,medium=2x2,high=2x3")


def _as_step_efforts(value: str) -> str:
    return _as_efforts(value, _STEPS, example="low=2,medium=8,high=16")


def _as_efforts(value: str, pattern: str, example: str) -> str:
    """Return a text that names a depth of this pattern for each effort, and for nothing else."""
    levels = _levels(value)
    fits = [re.fullmatch(pattern, depth) is not None for depth in levels.values()]
    if levels.keys() != set(EFFORTS) or not all(fits):
        raise ValueError(f"expected {example}")
    return value


def _levels(value: str) -> dict[str, str]:
    """Return the text behind the `=` of each name."""
    levels: dict[str, str] = {}
    for part in value.split(","):
        name, _, depth = part.strip().partition("=")
        levels[name] = depth
    return levels


Cycles = Annotated[str, AfterValidator(_as_cycles)]
"""The numbers of H and L cycles, as 2x3."""

CycleEfforts = Annotated[str, AfterValidator(_as_cycle_efforts)]
"""The cycles of each effort, as low=2x1,medium=2x2,high=2x3."""

StepEfforts = Annotated[str, AfterValidator(_as_step_efforts)]
"""The most ACT segments of each effort, as low=2,medium=8,high=16."""


class OptionError(ValueError):
    """An option that a runner does not have, or a value that it cannot take."""


class Options(BaseModel):
    """Base of all declarations, and the one of a runner without options.

    `files` are the options that name a file. The contents of such a file decide what a model
    answers; its name does not. `harmless` are the options that change no answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    files: ClassVar[tuple[str, ...]] = ()
    harmless: ClassVar[tuple[str, ...]] = ()

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        return plain(value, field)


class TextOptions(Options):
    """Options of every model that reads prompts."""

    files: ClassVar[tuple[str, ...]] = ("chat_template",)

    chat_template: Text | None = Field(
        default=None,
        description="Jinja file for dialogues (none: the tokenizer's own, else Llama 3's marks)",
    )


class PagedOptions(TextOptions):
    """Options of every model with keys and values."""

    kv_dtype: KVDtype = Field(
        default="auto",
        description="keys and values in fewer bits, on a CPU (auto: the model's dtype)",
    )
    flash_attention: bool = Field(
        default=True,
        description="attend by a flash attention kernel on cuda, if one fits",
    )
    cuda_graphs: bool = Field(
        default=True,
        description="replay decoding steps as CUDA graphs where attention allows",
    )


class HrmTextOptions(PagedOptions):
    """Options of HRM-Text models."""

    harmless: ClassVar[tuple[str, ...]] = ("draft_tokens", "draft_cycles")

    condition: Text | None = Field(
        default=None,
        description=(
            "HRM-Text condition of a prompt that names none (none: direct, or raw without it)"
        ),
    )
    use_ema: bool = Field(
        default=True,
        description="averaged weights (EMA) of raw HRM-Text checkpoints",
    )
    compile_layers: bool = Field(
        default=True,
        description="compile HRM-Text's layers on cuda (needs a C compiler)",
    )
    cycles: Cycles | None = Field(
        default=None,
        description="H and L cycles of HRM-Text as 2x3 (none: those of its training)",
    )
    efforts: CycleEfforts | None = Field(
        default=None,
        description="cycles by effort, as low=2x1,medium=2x2,high=2x3 (none: 1, half, all L cycles)",
    )
    draft_tokens: int = Field(
        default=7,
        ge=0,
        le=7,
        description="most tokens that fewer L cycles draft for all to verify (0: none)",
    )
    draft_cycles: int = Field(
        default=1,
        ge=1,
        description="L cycles of a draft, over all H cycles",
    )

    @property
    def depths_by_effort(self) -> dict[Effort, Depth] | None:
        """Return the depth of each effort, None where the model's own cycles decide."""
        if self.efforts is None:
            return None
        levels = _levels(self.efforts)
        return {effort: Depth(cycles=levels[effort]) for effort in EFFORTS}


_STEP_EFFORTS = Field(
    default=None,
    description="most ACT segments by effort, as low=2,medium=8,high=16 (none: 1, half, all)",
)


def _step_depths(efforts: str | None) -> dict[Effort, Depth] | None:
    if efforts is None:
        return None
    levels = _levels(efforts)
    return {effort: Depth(max_steps=int(levels[effort])) for effort in EFFORTS}


class HrmActOptions(PagedOptions):
    """Options of AI-OS ACTv1 brains."""

    scoring: Scoring = Field(default="strict", description="how log-likelihoods are computed")
    segments: Segments = Field(default="compat", description="how ACT segments halt")
    efforts: StepEfforts | None = _STEP_EFFORTS
    attention: Attention | None = Field(default=None, description="override of the model's own")

    @property
    def depths_by_effort(self) -> dict[Effort, Depth] | None:
        """Return the depth of each effort, None where the model's own segments decide."""
        return _step_depths(self.efforts)


class PuzzleOptions(Options):
    """Options of Sapient's puzzle HRMs."""

    segments: Segments = Field(default="compat", description="how ACT segments halt")
    efforts: StepEfforts | None = _STEP_EFFORTS

    @property
    def depths_by_effort(self) -> dict[Effort, Depth] | None:
        """Return the depth of each effort, None where the model's own segments decide."""
        return _step_depths(self.efforts)


class MediaOptions(Options):
    """Options of models that look at pictures or listen to sounds."""

    harmless: ClassVar[tuple[str, ...]] = ("max_pixels", "max_seconds")

    max_pixels: int = Field(
        default=50_000_000,
        ge=1,
        description="most pixels of a picture",
    )
    max_seconds: float = Field(
        default=3600.0,
        gt=0,
        allow_inf_nan=False,
        description="most seconds of a sound",
    )


class MultimodalOptions(PagedOptions):
    """Options of language models that see pictures or hear sounds, too."""

    harmless: ClassVar[tuple[str, ...]] = ("max_pixels", "max_seconds")

    max_pixels: int = Field(
        default=50_000_000,
        ge=1,
        description="most pixels of a picture",
    )
    max_seconds: float = Field(
        default=3600.0,
        gt=0,
        allow_inf_nan=False,
        description="most seconds of a sound",
    )


class OneShotOptions(MediaOptions):
    """Options of networks of transformers that do a task in one call."""

    harmless: ClassVar[tuple[str, ...]] = ("max_pixels", "max_seconds", "max_frames")

    task: OneShotTask | None = Field(
        default=None,
        description="task of a network (none: that of its architecture)",
    )
    max_frames: int = Field(
        default=10_000,
        ge=1,
        description="most frames of a video",
    )


class DiffusionOptions(Options):
    """Options of diffusers' pipelines, which make pictures, videos and 3D meshes."""

    harmless: ClassVar[tuple[str, ...]] = (
        "max_pixels",
        "max_steps",
        "max_images",
        "max_frames",
        "max_batch",
    )

    max_pixels: int = Field(
        default=1024 * 1024,
        ge=1,
        description="most pixels, width x height, of a picture that is made",
    )
    max_steps: int = Field(
        default=100,
        ge=1,
        le=1000,
        description="most denoising steps of a picture",
    )
    max_images: int = Field(
        default=4,
        ge=1,
        le=64,
        description="most pictures of a request",
    )
    max_frames: int = Field(
        default=161,
        ge=1,
        description="most frames of a video that is made",
    )
    grid_size: int = Field(
        default=128,
        ge=2,
        le=512,
        description="points a side of the grid that a 3D mesh is read from",
    )
    max_batch: int = Field(
        default=4,
        ge=1,
        description="most requests whose pictures take their steps, and end, together",
    )
    num_inference_steps: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="denoising steps of a request that names none (none: the library's default)",
    )
    guidance_scale: float | None = Field(
        default=None,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="guidance of a request that names none (none: the library's default)",
    )
    batch_invariant: bool = Field(
        default=True,
        description="compute each picture by itself, so that its batch does not change it",
    )


class ProxyOptions(Options):
    """Options of engines elsewhere, which are asked over HTTP.

    A key is named by its file or by its variable, so that it stands in no settings, log or record.
    """

    harmless: ClassVar[tuple[str, ...]] = (
        "api_key_file",
        "api_key_env",
        "concurrency",
        "connect_timeout_s",
        "silence_timeout_s",
        "retries",
    )

    dialect: Dialect | None = Field(
        default=None,
        description="what the engine at the URL speaks (none: it is asked)",
    )
    upstream_model: Text | None = Field(
        default=None,
        description="the engine's own name of the model (none: the only one that it lists)",
    )
    api_key_file: Text | None = Field(
        default=None,
        description="file that holds the key for the engine",
    )
    api_key_env: Text | None = Field(
        default=None,
        description="environment variable that holds the key for the engine",
    )
    concurrency: int = Field(
        default=32,
        ge=1,
        description="most requests that the engine is asked at once",
    )
    connect_timeout_s: float = Field(
        default=5.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds for a connection to the engine",
    )
    silence_timeout_s: float = Field(
        default=120.0,
        gt=0,
        allow_inf_nan=False,
        description="longest silence of the engine, before the first token and between two",
    )
    retries: int = Field(
        default=5,
        ge=0,
        description="most repetitions of a request of which no token has come yet",
    )


def setting_of(declared: type[Options], name: str) -> Any:
    """Return the field of a setting for all models, with the default and the help of the option."""
    field = declared.model_fields[name]
    return Field(default=field.default, description=field.description)


def validated(declared: type[Options], values: Mapping[str, Any]) -> Options:
    """Return the options with these values.

    Raise OptionError for the first that cannot be used; it names the option and what is expected.
    """
    for name in values:
        if name not in declared.model_fields:
            known = ", ".join(declared.model_fields)
            expected = f"one of {known}" if known else "none at all"
            raise OptionError(f"option {name!r}: there is none of that name; expected {expected}")
    try:
        return declared(**values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    message = re.sub(r"^\w+ should (be|have) ", "expected ", message)
    raise OptionError(f"option {name!r}: {message}, got {problem['input']!r}")
