"""The YAML beside an ONNX file. It declares the task, what the graph takes, and what it returns.

docs/onnx.md describes the fields, with an example of each task.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from worker.models.errors import ModelFormatError
from worker.models.reading import read_json, read_yaml_mapping, unusable

GRAPHS = (".onnx",)
DECLARATIONS = (".yaml", ".yml")
MAX_SIDE = 8192

FloatType = Literal["float32", "float16"]
Apply = Literal["softmax", "sigmoid", "none"]
"""The function that makes probabilities of a graph's output. `none`: it returns probabilities."""


def _as_names(value: Any) -> Any:
    if isinstance(value, str) and value:
        if Path(value).name != value:
            raise ValueError("expected the name of a file in this directory")
        return value
    # YAML reads yes, no and numbers as other things than texts.
    is_list = isinstance(value, list) and all(isinstance(name, str) for name in value)
    if not is_list or not value:
        raise ValueError("expected a list of texts (quote yes, no and numbers), or a file's name")
    return tuple(value)


def _as_file_name(value: str) -> str:
    if Path(value).name != value:
        raise ValueError("expected the name of a file in this directory")
    return value


def _as_constants(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError("expected a mapping of names to numbers or lists of numbers")
    for name, number in value.items():
        if not isinstance(name, str) or not _is_numeric(number):
            raise ValueError(f"{name}: expected a number, or a list of numbers")
    return value


def _is_numeric(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_numeric, value))
    return isinstance(value, int | float)


def _is_ordered(value: tuple[int, int]) -> tuple[int, int]:
    if not 0 <= value[0] < value[1]:
        raise ValueError("expected the first column, and the one behind the last")
    return value


Names = Annotated[Any, BeforeValidator(_as_names)]
"""Texts in the order of their numbers: a list, or the name of a file beside the YAML."""
Name = Annotated[str, Field(min_length=1)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
ColumnRange = Annotated[tuple[int, int], AfterValidator(_is_ordered)]


class Part(BaseModel):
    """Base of the parts of a declaration."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class PixelInput(Part):
    """The conversion of pixels to the numbers of an input.

    A pixel becomes (value * `scale` - `mean`) / `std`, its value from 0 to 255. A `scale` of None
    is 1/255, or 1 for an input of whole numbers. A `dtype` of None is the graph's own, and so is a
    `name` of None, the graph's only input.
    """

    name: Name | None = None
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    colours: Literal["RGB", "BGR", "grey"] = "RGB"
    scale: Number | None = None
    mean: tuple[Number, ...] = (0.0,)
    std: tuple[Annotated[Number, Field(gt=0)], ...] = (1.0,)
    dtype: Literal["float32", "float16", "uint8"] | None = None

    @property
    def num_channels(self) -> int:
        return 1 if self.colours == "grey" else 3

    @model_validator(mode="after")
    def _has_channels(self) -> Self:
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.num_channels):
                raise ValueError(f"{name}: expected one number, or {self.num_channels}")
        return self


class PictureInput(PixelInput):
    """The conversion of a picture to an input of one `size` (height, width). None: the graph's."""

    size: tuple[Side, Side] | None = None
    resize: Literal["stretch", "crop", "letterbox"] = "stretch"
    resample: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 1.0
    align: Literal["centre", "corner"] = "centre"
    border: Annotated[int, Field(ge=0, le=255)] = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.resize != "crop" and self.crop_pct != 1:
            raise ValueError("crop_pct: expected none without resize: crop")
        return self


class PageInput(PixelInput):
    """The conversion of a picture to an input of any size.

    It is scaled in its proportions until the shorter side has at least `shortest` pixels, but the
    longer one at most `longest`, and then to sides that `multiple` divides.
    """

    shortest: Side = 736
    longest: Side = 2048
    multiple: Annotated[int, Field(ge=1, le=256)] = 32

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.multiple <= self.shortest <= self.longest:
            raise ValueError("shortest: expected at least `multiple`, and at most `longest`")
        return self


class LineInput(PixelInput):
    """The conversion of a line of text to an input: `height` pixels high, and as wide as it is.

    What is narrower than `min_width` is filled up at its end with zeros, and what is wider than
    `max_width` is squeezed.
    """

    height: Side
    min_width: Side = 320
    max_width: Side = 4096

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min_width > self.max_width:
            raise ValueError("min_width: expected at most `max_width`")
        return self


class MelFeatures(Part):
    """The logarithm of a power spectrogram in mel bands, as the features of a sound.

    `window` and `hop` are in samples, `low` and `high` in Hz. Frames begin at each `hop`, without
    padding.
    """

    bands: Annotated[int, Field(ge=1, le=1024)]
    window: Annotated[int, Field(ge=2, le=1 << 16)]
    hop: Annotated[int, Field(ge=1, le=1 << 16)]
    fft: Annotated[int, Field(ge=2, le=1 << 17)] | None = None
    low: Annotated[float, Field(ge=0)] = 0.0
    high: Annotated[float, Field(gt=0)] | None = None
    scale: Literal["htk", "slaney"] = "htk"
    normalize: bool = False
    power: Literal[1, 2] = 2
    log: Literal["natural", "log10", "decibel"] = "natural"
    floor: Annotated[Number, Field(gt=0)] = 1e-10
    layout: Literal["BTF", "BFT"] = "BFT"

    @model_validator(mode="after")
    def _fits(self) -> "MelFeatures":
        if self.fft is not None and self.fft < self.window:
            raise ValueError(f"fft: expected at least the window, {self.window}")
        return self


class SoundInput(Part):
    """The conversion of a sound to an input: `rate` samples a second, from -1 to 1.

    With `samples` it is divided into windows of so many, the last one filled up with silence. With
    `normalize` it gets mean 0 and variance 1. `log_mel` features take the place of the samples.
    """

    name: Name | None = None
    rate: Annotated[int, Field(ge=1000, le=192_000)]
    layout: Literal["BT", "BCT"] = "BT"
    samples: Annotated[int, Field(ge=1)] | None = None
    normalize: bool = False
    log_mel: MelFeatures | None = None
    dtype: FloatType | None = None


class State(Part):
    """An output that is an input of the next chunk. `shape` has `batch` where the sounds go."""

    input: Name
    output: Name
    shape: tuple[int | Literal["batch"], ...]

    @model_validator(mode="after")
    def _fits(self) -> "State":
        sizes = [size for size in self.shape if size != "batch"]
        if len(sizes) != len(self.shape) - 1 or not all(
            isinstance(s, int) and s > 0 for s in sizes
        ):
            raise ValueError("shape: expected sizes, and `batch` once")
        return self


class ChunkInput(Part):
    """The division of a sound into inputs of `chunk` samples each, one after the other.

    Before each chunk stand the last `context` samples of the input before, at first silence.
    """

    name: Name | None = None
    rate: Annotated[int, Field(ge=1000, le=192_000)]
    chunk: Annotated[int, Field(ge=1, le=1 << 20)]
    context: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    layout: Literal["BT", "BCT"] = "BT"
    dtype: FloatType | None = None
    states: tuple[State, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> "ChunkInput":
        if self.context > self.chunk:
            raise ValueError(f"context: expected at most the chunk, {self.chunk}")
        return self


class TextInput(Part):
    """The conversion of a text to inputs. `mask` and `types` are left out where the graph has none.

    Texts have at most `max_length` tokens. With `length` they are padded to it.
    """

    ids: Name = "input_ids"
    mask: Name = "attention_mask"
    types: Name = "token_type_ids"
    max_length: Annotated[int, Field(ge=8, le=1 << 20)] = 512
    length: Annotated[int, Field(ge=8, le=1 << 20)] | None = None


class Output(Part):
    """An output of the graph. A `name` of None is its only one."""

    name: Name | None = None


class ScoresOutput(Output):
    """A score for each label [B, labels]."""

    apply: Apply = "softmax"


class VectorOutput(Output):
    """States of tokens [B, T, hidden] to be pooled, or without `pooling` vectors [B, hidden]."""

    pooling: Literal["mean", "cls", "none"] = "mean"


class MaskOutput(Output):
    """A map of scores for each class, or (layout NHW) the number of each pixel's class.

    After a softmax a pixel belongs to its likeliest class, else to each above the task's
    `mask_threshold`.
    """

    layout: Literal["NCHW", "NHWC", "NHW"] = "NCHW"
    apply: Apply = "softmax"


class TokensOutput(Output):
    """The scores of tokens at each time, for connectionist temporal classification (CTC)."""

    layout: Literal["BTC", "BCT"] = "BTC"


class Columns(Output):
    """Some columns of an output that has a row for each object, or a column (layout BCN)."""

    columns: ColumnRange | None = None
    layout: Literal["BNC", "BCN"] = "BNC"


class Boxes(Columns):
    """Boxes in pixels of the network's input, or in shares of its sides."""

    format: Literal["xyxy", "yxyx", "xywh", "cxcywh"]
    units: Literal["pixels", "shares"] = "pixels"


class ObjectScores(Columns):
    apply: Apply = "none"


class ObjectsOutput(Part):
    """The outputs about objects.

    Where `classes` has their numbers, `scores` has one column. Else it has one for each class. With
    `objectness` scores are multiplied by it.
    """

    boxes: Boxes
    scores: ObjectScores
    classes: Columns | None = None
    objectness: ObjectScores | None = None


class Suppression(Part):
    """Non-maximum suppression: of boxes that overlap more than `iou` the likeliest is kept."""

    iou: Share = 0.5
    across_classes: bool = False


class Model(Part):
    """Base of declarations. `constants` are inputs that are always the same.

    With `one_by_one` nothing shares a call, for graphs whose answers depend on batch mates.
    """

    constants: Annotated[dict[str, Any], BeforeValidator(_as_constants)] = Field(
        default_factory=dict
    )
    one_by_one: bool = False

    @property
    def main_file(self) -> str | None:
        """The name of the graph's file, None for the only one."""
        return None


class ImageClassifier(Model):
    task: Literal["image-classification"]
    input: PictureInput = PictureInput()
    output: ScoresOutput = ScoresOutput()
    labels: Names


class Detector(Model):
    """A detector of objects. A class number `background` is no object."""

    task: Literal["object-detection"]
    input: PictureInput = PictureInput()
    output: ObjectsOutput
    labels: Names
    nms: Suppression | None = None
    background: Annotated[int, Field(ge=0)] | None = None
    max_objects: Annotated[int, Field(ge=1, le=10_000)] = 100


class Segmenter(Model):
    """A network that divides a picture. A class number `background` is left out."""

    task: Literal["image-segmentation"]
    input: PictureInput = PictureInput()
    output: MaskOutput = MaskOutput()
    labels: Names
    background: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Segmenter":
        if self.input.resize == "crop":
            raise ValueError("input.resize: expected stretch or letterbox for this task")
        return self


class TextClassifier(Model):
    task: Literal["classify"]
    input: TextInput = TextInput()
    output: ScoresOutput = ScoresOutput()
    labels: Names


class Embedder(Model):
    task: Literal["embed"]
    input: TextInput = TextInput()
    output: VectorOutput = VectorOutput()


class SoundClassifier(Model):
    task: Literal["audio-classification"]
    input: SoundInput
    output: ScoresOutput = ScoresOutput()
    labels: Names


class Transcriber(Model):
    """A network that writes by CTC. `space` is the token, or the part of one, for a space."""

    task: Literal["automatic-speech-recognition"]
    input: SoundInput
    output: TokensOutput = TokensOutput()
    vocabulary: Names
    blank: Annotated[int, Field(ge=0)] = 0
    space: Name = "|"


class VoiceDetector(Model):
    """A network that gives each chunk of a sound the probability of speech."""

    task: Literal["voice-activity-detection"]
    input: ChunkInput
    output: Output = Output()


FileName = Annotated[Name, AfterValidator(_as_file_name)]


class LineFinder(Part):
    """A graph that gives each pixel the probability of text [B, 1, H, W] (differentiable binarization).

    Pixels above `threshold` that touch are the core of a line, if their mean is `box_threshold` or
    more. Its box is grown at each side by `grow` times its area by its circumference, because the
    network has learnt to see cores.
    """

    file: FileName
    input: PageInput = PageInput()
    output: Output = Output()
    threshold: Share = 0.3
    box_threshold: Share = 0.5
    grow: Annotated[float, Field(ge=0, le=10)] = 1.6
    max_lines: Annotated[int, Field(ge=1, le=10_000)] = 1000


class LineReader(Part):
    """A graph that writes a line by CTC. Its outputs are probabilities unless `apply` says more."""

    file: FileName
    input: LineInput
    output: TokensOutput = TokensOutput()
    apply: Apply = "none"
    vocabulary: Names
    blank: Annotated[int, Field(ge=0)] = 0


class PageReader(Model):
    """Two graphs that read the text of a picture: one finds lines, the other reads them."""

    task: Literal["optical-character-recognition"]
    finder: LineFinder
    reader: LineReader

    @property
    def main_file(self) -> str:
        return self.finder.file


Declaration = (
    ImageClassifier
    | Detector
    | Segmenter
    | TextClassifier
    | Embedder
    | SoundClassifier
    | Transcriber
    | VoiceDetector
    | PageReader
)
_ADAPTER: TypeAdapter[Declaration] = TypeAdapter(
    Annotated[Declaration, Field(discriminator="task")]
)


def only_file(path: Path, suffixes: tuple[str, ...]) -> Path:
    """Return the only file of a directory that ends so. Raise ModelFormatError."""
    files = sorted(file for file in path.glob("*") if file.suffix in suffixes)
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise ModelFormatError(
            f"{path}: expected one file that ends in {' or '.join(suffixes)}, found {names}."
        )
    return files[0]


def read_declaration(file: Path) -> Declaration:
    """Return what a YAML declares.

    Raise ModelFormatError, which names the field at fault and what is expected.
    """
    content = read_yaml_mapping(file)
    try:
        return _ADAPTER.validate_python(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        expected = problem["ctx"].get("expected_tags", "the name of a task")
        raise wrong(file, "task", f"expected {expected}, got {content.get('task')!r}")

    # Behind the task, by which pydantic has chosen.
    names = [str(part) for part in problem["loc"][1:]]
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        message = "this field is required"
    elif problem["type"] == "extra_forbidden":
        message = "there is no field of that name"
    elif problem["type"] == "value_error" and ": " in message:
        # A check of several fields, whose message begins with the name of one.
        name, _, message = message.partition(": ")
        names.append(name)
    else:
        message = f"{_lowered(message)}, got {problem['input']!r:.100}"
    raise wrong(file, ".".join(names), message)


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]


def wrong(file: Path, field: str, problem: str) -> ModelFormatError:
    """Return the error of a field of a declaration."""
    return ModelFormatError(f"{file}: {field}: {problem}; correct it.")


def read_names(file: Path, field: str, declared: Any) -> tuple[str, ...]:
    """Return the names that a field of the YAML `file` declares, in the order of their numbers.

    They may lie in a file beside it: one a line, a JSON list, or a JSON mapping of names to
    numbers or of numbers to names. Raise ModelFormatError for a file that cannot be read.
    """
    if isinstance(declared, tuple):
        return declared
    source = file.parent / declared
    if source.suffix != ".json":
        try:
            return tuple(source.read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError) as error:
            raise unusable(source, error) from error

    names = read_json(source)
    if isinstance(names, dict):
        names = _in_order(names)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        expected = "a list of texts, or a mapping of texts to numbers from 0 on"
        raise wrong(file, field, f"expected {expected} in {source.name}")
    return tuple(names)


def _in_order(mapping: dict[str, Any]) -> Any:
    """Return the names of a mapping by number, None unless there is one for each number."""
    numbered: dict[Any, str] = {}
    for key, value in mapping.items():
        if isinstance(value, str) and key.isdecimal():
            numbered[int(key)] = value
        else:
            numbered[value] = key
    try:
        return [numbered[number] for number in range(len(mapping))]
    except KeyError:
        return None
