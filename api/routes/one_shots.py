"""The tasks of local inference that are done whole: from body to task, from outcome to result."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from api.schemas.fields import seed_of
from api.schemas.files import made_file
from api.schemas.inference import ClassificationResult, LabelBody, TaskRequest
from api.schemas.meshes import ImageTo3DRequest, MeshResult, TextTo3DRequest
from api.schemas.one_shots import (
    AnswerBody,
    Box,
    CaptionRequest,
    DepthRequest,
    DepthResult,
    DetectionRequest,
    DetectionResult,
    EntityBody,
    FillBody,
    FillMaskRequest,
    FillMaskResult,
    ForecastRequest,
    ForecastResult,
    ImageAnswerBody,
    ImageClassificationRequest,
    ImageQuestionRequest,
    ImageQuestionResult,
    LineBody,
    ObjectBody,
    QuantileBody,
    QuestionRequest,
    QuestionResult,
    ReadingRequest,
    ReadingResult,
    SegmentationRequest,
    SegmentationResult,
    SegmentBody,
    SoundClassificationRequest,
    SpeechPartBody,
    SpeechRequest,
    SpeechResult,
    SpokenPartBody,
    SummarizationRequest,
    TokenClassificationRequest,
    TokenClassificationResult,
    TranscriptionRequest,
    TranscriptionResult,
    TranslationRequest,
    VideoClassificationRequest,
    VoiceActivityRequest,
    VoiceActivityResult,
    WrittenResult,
    ZeroShotDetectionRequest,
    ZeroShotImageRequest,
    ZeroShotRequest,
)
from api.schemas.pictures import (
    ImageToImageRequest,
    PictureBody,
    PicturesResult,
    TextToImageRequest,
)
from api.schemas.videos import ImageToVideoRequest, TextToVideoRequest, VideoResult
from api.stream.request_events import Outcome
from shared.messages import Labelled, Task, TaskName
from shared.tasks.meshes import MakeMesh, Mesh, MeshOfPicture
from shared.tasks.pictures import ChangePicture, MakePictures, Pictures
from shared.tasks.series import Forecast, Forecasted
from shared.tasks.sound import (
    ClassifySound,
    DetectedSpeech,
    DetectSpeech,
    Speak,
    Spoken,
    Timestamps,
    Transcribe,
    Transcript,
)
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
)
from shared.tasks.writing import DescribeImage, Summarize, Translate, Written


@dataclass(frozen=True)
class OneShotRow:
    """A task: its body, the function from body to task, and that from outcome to result."""

    task: TaskName
    body: type[TaskRequest]
    plan: Callable[[Any], Task]
    result: Callable[[Outcome], BaseModel]


def labels_result(outcome: Outcome) -> ClassificationResult:
    labels = outcome.as_a(Labelled).labels
    return ClassificationResult(
        labels=[LabelBody(label=label.name, score=label.score) for label in labels]
    )


def _classify_image(body: ImageClassificationRequest) -> Task:
    return ClassifyImage(body.inputs, body.options.top_k)


def _classify_video(body: VideoClassificationRequest) -> Task:
    return ClassifyVideo(body.inputs, body.options.top_k)


def _classify_image_among(body: ZeroShotImageRequest) -> Task:
    options = body.options
    return ClassifyImageAmong(
        body.inputs, tuple(options.candidate_labels), options.hypothesis_template
    )


def _detect(body: DetectionRequest) -> Task:
    return DetectObjects(body.inputs, body.options.threshold)


def _detect_among(body: ZeroShotDetectionRequest) -> Task:
    options = body.options
    return DetectObjectsAmong(body.inputs, tuple(options.candidate_labels), options.threshold)


def _objects(outcome: Outcome) -> DetectionResult:
    objects = []
    for one in outcome.as_a(DetectedObjects).objects:
        box = Box(xmin=one.xmin, ymin=one.ymin, xmax=one.xmax, ymax=one.ymax)
        objects.append(ObjectBody(label=one.label, score=one.score, box=box))
    return DetectionResult(objects=objects)


def _read_picture(body: ReadingRequest) -> Task:
    return ReadPicture(body.inputs, body.options.threshold)


def _page_text(outcome: Outcome) -> ReadingResult:
    found = outcome.as_a(PageText)
    lines = []
    for one in found.lines:
        corners = [list(corner) for corner in one.corners]
        lines.append(LineBody(text=one.text, score=one.score, corners=corners))
    return ReadingResult(text=found.text, lines=lines)


def _segment(body: SegmentationRequest) -> Task:
    return SegmentImage(body.inputs, body.options.threshold, body.options.mask_threshold)


def _segments(outcome: Outcome) -> SegmentationResult:
    segments = []
    pairs = zip(outcome.as_a(Segmented).segments, outcome.artifacts, strict=True)
    for one, mask in pairs:
        segments.append(
            SegmentBody(label=one.label, score=one.score, area=one.area, mask=made_file(mask))
        )
    return SegmentationResult(segments=segments)


def _depth(body: DepthRequest) -> Task:
    return EstimateDepth(body.inputs, body.options.with_map)


def _depths(outcome: Outcome) -> DepthResult:
    found = outcome.as_a(DepthEstimated)
    maps = [made_file(file) for file in outcome.artifacts]
    return DepthResult(
        least=found.least, most=found.most, mean=found.mean, map=maps[0] if maps else None
    )


def _summarize(body: SummarizationRequest) -> Task:
    return Summarize(body.inputs, body.options.max_new_tokens)


def _translate(body: TranslationRequest) -> Task:
    options = body.options
    return Translate(body.inputs, options.src_lang, options.tgt_lang, options.max_new_tokens)


def _describe(body: CaptionRequest) -> Task:
    return DescribeImage(body.inputs, body.options.prompt, body.options.max_new_tokens)


def _written(outcome: Outcome) -> WrittenResult:
    return WrittenResult(text=outcome.as_a(Written).text)


def _find_answer(body: QuestionRequest) -> Task:
    options = body.options
    return FindAnswer(
        body.inputs.question, body.inputs.context, options.top_k, options.max_answer_len
    )


def _answers(outcome: Outcome) -> QuestionResult:
    answers = []
    for one in outcome.as_a(FoundAnswers).answers:
        answers.append(AnswerBody(answer=one.text, score=one.score, start=one.start, end=one.end))
    return QuestionResult(answers=answers)


def _answer_about_image(body: ImageQuestionRequest) -> Task:
    return AnswerAboutImage(body.inputs.image, body.inputs.question, body.options.top_k)


def _image_answers(outcome: Outcome) -> ImageQuestionResult:
    answers = []
    for one in outcome.as_a(ImageAnswers).answers:
        answers.append(ImageAnswerBody(answer=one.text, score=one.score))
    return ImageQuestionResult(answers=answers)


def _label_tokens(body: TokenClassificationRequest) -> Task:
    return LabelTokens(body.inputs, body.options.aggregation_strategy)


def _entities(outcome: Outcome) -> TokenClassificationResult:
    entities = []
    for one in outcome.as_a(LabelledParts).parts:
        entities.append(
            EntityBody(
                label=one.label, score=one.score, text=one.text, start=one.start, end=one.end
            )
        )
    return TokenClassificationResult(entities=entities)


def _classify_among(body: ZeroShotRequest) -> Task:
    options = body.options
    return ClassifyAmong(
        body.inputs,
        tuple(options.candidate_labels),
        options.hypothesis_template,
        options.multi_label,
    )


def _fill(body: FillMaskRequest) -> Task:
    return FillMask(body.inputs, body.options.top_k, tuple(body.options.targets))


def _fills(outcome: Outcome) -> FillMaskResult:
    masks = []
    for fills in outcome.as_a(FilledMasks).masks:
        bodies = []
        for fill in fills:
            bodies.append(
                FillBody(
                    token=fill.token,
                    token_str=fill.token_text,
                    score=fill.score,
                    sequence=fill.text,
                )
            )
        masks.append(bodies)
    return FillMaskResult(masks=masks)


def _speak(body: SpeechRequest) -> Task:
    options = body.options
    return Speak(body.inputs, seed_of(options.seed), options.format, options.speed, options.speaker)


def _spoken(outcome: Outcome) -> SpeechResult:
    found = outcome.as_a(Spoken)
    [file] = outcome.artifacts
    return SpeechResult(audio=made_file(file), seconds=found.seconds, sampling_rate=found.rate)


def _forecast(body: ForecastRequest) -> Task:
    return Forecast(tuple(body.inputs), body.options.horizon)


def _forecasted(outcome: Outcome) -> ForecastResult:
    found = outcome.as_a(Forecasted)
    quantiles = []
    for one in found.quantiles:
        quantiles.append(QuantileBody(level=one.level, values=list(one.values)))
    return ForecastResult(forecast=list(found.values), quantiles=quantiles)


def _classify_sound(body: SoundClassificationRequest) -> Task:
    return ClassifySound(body.inputs, body.options.top_k)


def _transcribe(body: TranscriptionRequest) -> Task:
    options = body.options
    timestamps: Timestamps = "none"
    if options.return_timestamps == "word":
        timestamps = "word"
    elif options.return_timestamps:
        timestamps = "segment"
    return Transcribe(body.inputs, timestamps, options.language, options.translate)


def _transcript(outcome: Outcome) -> TranscriptionResult:
    found = outcome.as_a(Transcript)
    parts = []
    for one in found.parts:
        parts.append(SpokenPartBody(text=one.text, start=one.start, end=one.end))
    return TranscriptionResult(
        text=found.text, seconds=found.seconds, language=found.language, parts=parts
    )


def _detect_speech(body: VoiceActivityRequest) -> Task:
    options = body.options
    return DetectSpeech(body.inputs, options.threshold, options.min_speech_s, options.min_silence_s)


def _speech(outcome: Outcome) -> VoiceActivityResult:
    found = outcome.as_a(DetectedSpeech)
    parts = []
    for one in found.parts:
        parts.append(SpeechPartBody(start=one.start, end=one.end, score=one.score))
    return VoiceActivityResult(parts=parts, seconds=found.seconds)


def _make_pictures(body: TextToImageRequest) -> Task:
    options = body.options
    return MakePictures(
        body.inputs,
        seed_of(options.seed),
        negative_prompt=options.negative_prompt,
        width=options.width,
        height=options.height,
        guidance_scale=options.guidance_scale,
        num_inference_steps=options.num_inference_steps,
        num_images=options.num_images,
        preview_every=options.preview_every,
    )


def _change_picture(body: ImageToImageRequest) -> Task:
    options = body.options
    return ChangePicture(
        body.inputs,
        options.prompt,
        seed_of(options.seed),
        strength=options.strength,
        negative_prompt=options.negative_prompt,
        width=options.width,
        height=options.height,
        guidance_scale=options.guidance_scale,
        num_inference_steps=options.num_inference_steps,
        num_images=options.num_images,
        preview_every=options.preview_every,
    )


def _pictures(outcome: Outcome) -> PicturesResult:
    bodies = []
    pairs = zip(outcome.as_a(Pictures).pictures, outcome.artifacts, strict=True)
    for one, file in pairs:
        bodies.append(
            PictureBody(
                seed=one.seed,
                width=one.width,
                height=one.height,
                is_blocked=one.is_blocked,
                image=made_file(file),
            )
        )
    return PicturesResult(images=bodies)


def _make_video(body: TextToVideoRequest) -> Task:
    options = body.options
    return MakeVideo(
        body.inputs,
        seed_of(options.seed),
        negative_prompt=options.negative_prompt,
        width=options.width,
        height=options.height,
        num_frames=options.num_frames,
        fps=options.fps,
        guidance_scale=options.guidance_scale,
        num_inference_steps=options.num_inference_steps,
    )


def _animate(body: ImageToVideoRequest) -> Task:
    options = body.options
    return AnimatePicture(
        body.inputs,
        options.prompt,
        seed_of(options.seed),
        negative_prompt=options.negative_prompt,
        width=options.width,
        height=options.height,
        num_frames=options.num_frames,
        fps=options.fps,
        guidance_scale=options.guidance_scale,
        num_inference_steps=options.num_inference_steps,
    )


def _video(outcome: Outcome) -> VideoResult:
    found = outcome.as_a(Video)
    [file] = outcome.artifacts
    return VideoResult(
        seed=found.seed,
        width=found.width,
        height=found.height,
        num_frames=found.num_frames,
        fps=found.fps,
        video=made_file(file),
    )


def _make_mesh(body: TextTo3DRequest) -> Task:
    options = body.options
    return MakeMesh(
        body.inputs, seed_of(options.seed), options.guidance_scale, options.num_inference_steps
    )


def _mesh_of_picture(body: ImageTo3DRequest) -> Task:
    options = body.options
    return MeshOfPicture(
        body.inputs, seed_of(options.seed), options.guidance_scale, options.num_inference_steps
    )


def _mesh(outcome: Outcome) -> MeshResult:
    found = outcome.as_a(Mesh)
    [file] = outcome.artifacts
    return MeshResult(
        seed=found.seed,
        num_vertices=found.num_vertices,
        num_faces=found.num_faces,
        mesh=made_file(file),
    )


ROWS = (
    OneShotRow("summarization", SummarizationRequest, _summarize, _written),
    OneShotRow("translation", TranslationRequest, _translate, _written),
    OneShotRow("question-answering", QuestionRequest, _find_answer, _answers),
    OneShotRow("image-to-text", CaptionRequest, _describe, _written),
    OneShotRow(
        "visual-question-answering", ImageQuestionRequest, _answer_about_image, _image_answers
    ),
    OneShotRow("token-classification", TokenClassificationRequest, _label_tokens, _entities),
    OneShotRow("zero-shot-classification", ZeroShotRequest, _classify_among, labels_result),
    OneShotRow("fill-mask", FillMaskRequest, _fill, _fills),
    OneShotRow("image-classification", ImageClassificationRequest, _classify_image, labels_result),
    OneShotRow(
        "zero-shot-image-classification",
        ZeroShotImageRequest,
        _classify_image_among,
        labels_result,
    ),
    OneShotRow("video-classification", VideoClassificationRequest, _classify_video, labels_result),
    OneShotRow("object-detection", DetectionRequest, _detect, _objects),
    OneShotRow("zero-shot-object-detection", ZeroShotDetectionRequest, _detect_among, _objects),
    OneShotRow("optical-character-recognition", ReadingRequest, _read_picture, _page_text),
    OneShotRow("image-segmentation", SegmentationRequest, _segment, _segments),
    OneShotRow("depth-estimation", DepthRequest, _depth, _depths),
    OneShotRow("text-to-speech", SpeechRequest, _speak, _spoken),
    OneShotRow("audio-classification", SoundClassificationRequest, _classify_sound, labels_result),
    OneShotRow("automatic-speech-recognition", TranscriptionRequest, _transcribe, _transcript),
    OneShotRow("voice-activity-detection", VoiceActivityRequest, _detect_speech, _speech),
    OneShotRow("time-series-forecasting", ForecastRequest, _forecast, _forecasted),
    OneShotRow("text-to-image", TextToImageRequest, _make_pictures, _pictures),
    OneShotRow("image-to-image", ImageToImageRequest, _change_picture, _pictures),
    OneShotRow("text-to-video", TextToVideoRequest, _make_video, _video),
    OneShotRow("image-to-video", ImageToVideoRequest, _animate, _video),
    OneShotRow("text-to-3d", TextTo3DRequest, _make_mesh, _mesh),
    OneShotRow("image-to-3d", ImageTo3DRequest, _mesh_of_picture, _mesh),
)
