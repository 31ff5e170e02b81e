"""The table of tasks, with all that fronts and workers must know about each.

Endpoints ask for tasks, and runners do them. A new task is its structs and a row here.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from shared import plugins
from shared.messages import (
    Chat,
    Classify,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    Generate,
    Generated,
    ImagePart,
    Labelled,
    Prompt,
    Read,
    Result,
    Score,
    Scored,
    Solution,
    Solve,
    Task,
    TaskName,
    TextPart,
    Tokenize,
    Tokenized,
    Turn,
    name_of,
    register_task,
)
from shared.plugins import PluginError
from shared.tasks.echo_task import EchoedTask, EchoTask
from shared.tasks.meshes import MakeMesh, Mesh, MeshOfPicture
from shared.tasks.pictures import ChangePicture, MakePictures, Pictures
from shared.tasks.series import Forecast, Forecasted
from shared.tasks.sound import (
    ClassifySound,
    DetectedSpeech,
    DetectSpeech,
    Speak,
    Spoken,
    Transcribe,
    Transcript,
)
from shared.tasks.specs import Modality
from shared.tasks.videos import AnimatePicture, MakeVideo, Video
from shared.tasks.vision import (
    AnswerAboutImage,
    ClassifyImage,
    ClassifyImageAmong,
    ClassifyVideo,
    DepthEstimated,
    DetectedObjects,
    DetectObjects,
    DetectObjectsAmong,
    EstimateDepth,
    ImageAnswers,
    PageText,
    ReadPicture,
    Segmented,
    SegmentImage,
)
from shared.tasks.words import (
    ClassifyAmong,
    FilledMasks,
    FillMask,
    FindAnswer,
    FoundAnswers,
    LabelledParts,
    LabelTokens,
    RankText,
)
from shared.tasks.writing import DescribeImage, Summarize, Translate, Written

# Rough costs are enough: tenants share by them, and a worker corrects them when a job ends.
_CHARACTERS_A_TOKEN = 4
_PUZZLE_COST = 256
_NO_STEP_COST = 1
_IMAGE_COST = 256
_SOUND_COST = 512
_VIDEO_COST = 2048
_NUMBERS_A_PATCH = 32
_DENOISING_COST = 64
_USUAL_STEPS = 50
_USUAL_FRAMES = 100
_FRAMES_A_PICTURE = 8
"""Networks for videos see so many frames as one."""

AnyTask = TypeVar("AnyTask", bound=Task)


def _one(task: Task) -> int:
    return 1


def _itself(task: AnyTask) -> AnyTask:
    return task


@dataclass(frozen=True)
class TaskInfo:
    """One task. `spec` is the struct of its inputs and options, `result` that of its result.

    A task without a `result` yields tokens only. `cost` estimates its tokens before a tokenizer has
    seen it: tenants share by it, and waits are estimated from it. `slots` is the number of rows
    that it takes in a worker's batch. `modality` chooses the workers that do it, where kinds of
    models have workers of their own; making pictures counts as `image`.

    `pipeline_tags` are Hugging Face's names of the task, and `heads` are ends of the names of the
    architectures of transformers that do it in one call.

    `repeated` is for the response cache. It returns the task without the options that make no
    difference to its answer, or None if two runs may answer differently.
    """

    spec: type[Task]
    result: type[Result] | None
    cost: Callable[[Any], int]
    modality: Modality = "text"
    slots: Callable[[Any], int] = _one
    repeated: Callable[[Any], Task | None] = _itself
    pipeline_tags: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()


def _length(text: Prompt) -> int:
    """Return the tokens of a prompt, estimated where it is text."""
    if isinstance(text, Chat):
        return sum(_length_of_turn(turn) for turn in text.messages)
    if isinstance(text, str):
        return len(text) // _CHARACTERS_A_TOKEN + 1
    return len(text)


def _length_of_turn(turn: Turn) -> int:
    if isinstance(turn.content, str):
        return _length(turn.content)
    length = 0
    for part in turn.content:
        if isinstance(part, TextPart):
            length += _length(part.text)
        else:
            length += _IMAGE_COST if isinstance(part, ImagePart) else _SOUND_COST
    return length


def _cost_of_answer(task: Generate) -> int:
    return _length(task.prompt) + task.sampling.max_tokens * task.sampling.n


def _cost_of_scores(task: Score) -> int:
    return _length(task.context) + sum(_length(text) for text in task.continuations)


def _cost_of_prompt(task: Read) -> int:
    return _length(task.prompt)


def _cost_of_text(task: Embed | Classify | LabelTokens | FillMask) -> int:
    return _length(task.text)


def _cost_of_writing(task: Summarize | Translate) -> int:
    # A summary is shorter than its text, and a translation about as long.
    return 2 * _length(task.text)


def _cost_of_question(task: FindAnswer) -> int:
    return _length(task.question) + _length(task.context)


def _cost_of_speech(task: Speak) -> int:
    # A token is about a third of a second.
    return 10 * _length(task.text)


def _cost_of_series(task: Forecast) -> int:
    # Networks read and write patches of some tens of numbers.
    return (len(task.values) + task.horizon) // _NUMBERS_A_PATCH + 1


def _cost_of_pair(task: RankText) -> int:
    return _length(task.query) + _length(task.text)


def _cost_of_labels(task: ClassifyAmong) -> int:
    return _length(task.text) * len(task.labels)


def _cost_without_steps(task: Task) -> int:
    return _NO_STEP_COST


def _cost_of_puzzle(task: Solve) -> int:
    return _PUZZLE_COST


def _cost_of_steps(task: EchoTask) -> int:
    return task.steps


def _cost_of_image(task: Task) -> int:
    return _IMAGE_COST


def _cost_of_video(task: Task) -> int:
    return _VIDEO_COST


def _cost_of_sound(task: Task) -> int:
    return _SOUND_COST


def _cost_of_pictures(task: MakePictures | ChangePicture) -> int:
    steps = task.num_inference_steps or _USUAL_STEPS
    return task.num_images * steps * _DENOISING_COST


def _cost_of_frames(task: MakeVideo | AnimatePicture) -> int:
    steps = task.num_inference_steps or _USUAL_STEPS
    return (task.num_frames or _USUAL_FRAMES) * steps * _DENOISING_COST // _FRAMES_A_PICTURE


def _cost_of_mesh(task: MakeMesh | MeshOfPicture) -> int:
    return (task.num_inference_steps or _USUAL_STEPS) * _DENOISING_COST


def _num_choices(task: Generate) -> int:
    return task.sampling.n


def _greedy(task: Generate) -> Generate | None:
    """Return the task with seed 0 if it is greedy, else None."""
    if task.sampling.temperature != 0:
        return None
    # A request that names no seed gets a random one, which makes no difference to a greedy answer.
    sampling = msgspec.structs.replace(task.sampling, seed=0)
    return msgspec.structs.replace(task, sampling=sampling)


def _never(task: Task) -> None:
    """Return None: what is drawn at random is drawn anew, and differs between kinds of machines."""
    return None


TASKS: dict[TaskName, TaskInfo] = {
    "generate": TaskInfo(
        Generate,
        Generated,
        cost=_cost_of_answer,
        slots=_num_choices,
        repeated=_greedy,
        pipeline_tags=("text-generation", "text2text-generation", "conversational"),
    ),
    "score": TaskInfo(Score, Scored, cost=_cost_of_scores),
    "read": TaskInfo(Read, None, cost=_cost_of_prompt),
    "solve": TaskInfo(Solve, Solution, cost=_cost_of_puzzle),
    "tokenize": TaskInfo(Tokenize, Tokenized, cost=_cost_without_steps),
    "detokenize": TaskInfo(Detokenize, Detokenized, cost=_cost_without_steps),
    "embed": TaskInfo(
        Embed,
        Embedded,
        cost=_cost_of_text,
        pipeline_tags=("feature-extraction", "sentence-similarity"),
    ),
    "classify": TaskInfo(
        Classify,
        Labelled,
        cost=_cost_of_text,
        pipeline_tags=("text-classification", "sentiment-analysis"),
    ),
    "text-ranking": TaskInfo(
        RankText,
        Labelled,
        cost=_cost_of_pair,
        pipeline_tags=("text-ranking",),
    ),
    "summarization": TaskInfo(
        Summarize,
        Written,
        cost=_cost_of_writing,
        pipeline_tags=("summarization",),
        heads=("PegasusForConditionalGeneration", "BartForConditionalGeneration"),
    ),
    "translation": TaskInfo(
        Translate,
        Written,
        cost=_cost_of_writing,
        pipeline_tags=("translation",),
        heads=(
            "MarianMTModel",
            "M2M100ForConditionalGeneration",
            "MBartForConditionalGeneration",
            "FSMTForConditionalGeneration",
        ),
    ),
    "question-answering": TaskInfo(
        FindAnswer,
        FoundAnswers,
        cost=_cost_of_question,
        pipeline_tags=("question-answering",),
        heads=("ForQuestionAnswering",),
    ),
    "token-classification": TaskInfo(
        LabelTokens,
        LabelledParts,
        cost=_cost_of_text,
        pipeline_tags=("token-classification", "ner"),
        heads=("ForTokenClassification",),
    ),
    "zero-shot-classification": TaskInfo(
        ClassifyAmong,
        Labelled,
        cost=_cost_of_labels,
        pipeline_tags=("zero-shot-classification",),
    ),
    "fill-mask": TaskInfo(FillMask, FilledMasks, cost=_cost_of_text, pipeline_tags=("fill-mask",)),
    "image-to-text": TaskInfo(
        DescribeImage,
        Written,
        cost=_cost_of_image,
        modality="image",
        pipeline_tags=("image-to-text",),
        heads=("VisionEncoderDecoderModel", "BlipForConditionalGeneration"),
    ),
    "image-classification": TaskInfo(
        ClassifyImage,
        Labelled,
        cost=_cost_of_image,
        modality="image",
        pipeline_tags=("image-classification",),
        heads=("ForImageClassification",),
    ),
    "zero-shot-image-classification": TaskInfo(
        ClassifyImageAmong,
        Labelled,
        cost=_cost_of_image,
        modality="image",
        pipeline_tags=("zero-shot-image-classification",),
        heads=("CLIPModel", "SiglipModel", "Siglip2Model"),
    ),
    "video-classification": TaskInfo(
        ClassifyVideo,
        Labelled,
        cost=_cost_of_video,
        modality="video",
        pipeline_tags=("video-classification",),
        heads=("ForVideoClassification",),
    ),
    "visual-question-answering": TaskInfo(
        AnswerAboutImage,
        ImageAnswers,
        cost=_cost_of_image,
        modality="image",
        pipeline_tags=("visual-question-answering",),
        heads=("ViltForQuestionAnswering", "BlipForQuestionAnswering"),
    ),
    "object-detection": TaskInfo(
        DetectObjects,
        DetectedObjects,
        cost=_cost_of_image,
        modality="image",
        pipeline_tags=("object-detection",),
        heads=("ForObjectDetection",),
    ),
    "zero-shot-object-detection": TaskInfo(
        DetectObjectsAmong,
        DetectedObjects,
        cost=_cost_of_image,
        modality="image",
        pipeline_tags=("zero-shot-object-detection",),
        heads=("OwlViTForObjectDetection", "Owlv2ForObjectDetection"),
    ),
    "optical-character-recognition": TaskInfo(
        ReadPicture,
        PageText,
        cost=_cost_of_image,
        modality="image",
        pipeline_tags=("optical-character-recognition", "ocr"),
    ),
    "image-segmentation": TaskInfo(
        SegmentImage,
        Segmented,
        cost=_cost_of_image,
        modality="image",
        pipeline_tags=("image-segmentation",),
        heads=("ForSemanticSegmentation", "ForUniversalSegmentation", "ForInstanceSegmentation"),
    ),
    "depth-estimation": TaskInfo(
        EstimateDepth,
        DepthEstimated,
        cost=_cost_of_image,
        modality="image",
        pipeline_tags=("depth-estimation",),
        heads=("ForDepthEstimation",),
    ),
    "text-to-speech": TaskInfo(
        Speak,
        Spoken,
        cost=_cost_of_speech,
        modality="audio",
        pipeline_tags=("text-to-speech", "text-to-audio"),
        heads=("VitsModel",),
    ),
    "audio-classification": TaskInfo(
        ClassifySound,
        Labelled,
        cost=_cost_of_sound,
        modality="audio",
        pipeline_tags=("audio-classification",),
        heads=(
            "ForAudioClassification",
            "Wav2Vec2ForSequenceClassification",
            "HubertForSequenceClassification",
            "WavLMForSequenceClassification",
        ),
    ),
    "automatic-speech-recognition": TaskInfo(
        Transcribe,
        Transcript,
        cost=_cost_of_sound,
        modality="audio",
        pipeline_tags=("automatic-speech-recognition",),
        heads=("ForCTC", "WhisperForConditionalGeneration", "Speech2TextForConditionalGeneration"),
    ),
    "voice-activity-detection": TaskInfo(
        DetectSpeech,
        DetectedSpeech,
        cost=_cost_of_sound,
        modality="audio",
        pipeline_tags=("voice-activity-detection",),
    ),
    "time-series-forecasting": TaskInfo(
        Forecast,
        Forecasted,
        cost=_cost_of_series,
        modality="series",
        pipeline_tags=("time-series-forecasting",),
        heads=("TimesFmModelForPrediction", "TimesFm2_5ModelForPrediction"),
    ),
    "text-to-image": TaskInfo(
        MakePictures,
        Pictures,
        cost=_cost_of_pictures,
        modality="image",
        repeated=_never,
        pipeline_tags=("text-to-image",),
    ),
    "image-to-image": TaskInfo(
        ChangePicture,
        Pictures,
        cost=_cost_of_pictures,
        modality="image",
        repeated=_never,
        pipeline_tags=("image-to-image",),
        heads=("ForImageSuperResolution",),
    ),
    "text-to-video": TaskInfo(
        MakeVideo,
        Video,
        cost=_cost_of_frames,
        modality="video",
        repeated=_never,
        pipeline_tags=("text-to-video",),
    ),
    "image-to-video": TaskInfo(
        AnimatePicture,
        Video,
        cost=_cost_of_frames,
        modality="video",
        repeated=_never,
        pipeline_tags=("image-to-video",),
    ),
    "text-to-3d": TaskInfo(
        MakeMesh,
        Mesh,
        cost=_cost_of_mesh,
        modality="3d",
        repeated=_never,
        pipeline_tags=("text-to-3d",),
    ),
    "image-to-3d": TaskInfo(
        MeshOfPicture,
        Mesh,
        cost=_cost_of_mesh,
        modality="3d",
        repeated=_never,
        pipeline_tags=("image-to-3d",),
    ),
    "echo_task": TaskInfo(EchoTask, EchoedTask, cost=_cost_of_steps),
}
for _info in TASKS.values():
    register_task(_info.spec, _info.result)


def _add(name: TaskName, info: TaskInfo) -> None:
    """Add the row of a plugin.

    Raise PluginError if the name is taken, or is not the tag of its struct.
    """
    if name in TASKS or info.spec.__struct_config__.tag != name:
        raise PluginError(f"aios.tasks: {name!r} is taken, or is not the tag of its own task.")
    TASKS[name] = info
    register_task(info.spec, info.result)


for _name, _info in plugins.load("aios.tasks").items():
    _add(_name, _info)


def task_of(architectures: Iterable[str]) -> TaskName | None:
    """Return the task that networks of these architectures do in one call, by their `heads`."""
    names = tuple(architectures)
    fitting: dict[str, TaskName] = {}
    for task, info in TASKS.items():
        for head in info.heads:
            if any(name.endswith(head) for name in names):
                fitting[head] = task
    if not fitting:
        return None
    # Of ...ForQuestionAnswering and ViltForQuestionAnswering the longer one tells more.
    return fitting[max(fitting, key=len)]


def info_of(task: Task) -> TaskInfo:
    """Return the row of a task."""
    return TASKS[name_of(task)]


def cost_of(task: Task) -> int:
    """Return the cost of a task, in tokens, as it is estimated before it runs."""
    return info_of(task).cost(task)


def slots_of(task: Task) -> int:
    """Return the number of rows that a task takes in a worker's batch."""
    return info_of(task).slots(task)
