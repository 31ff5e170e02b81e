"""The tasks that read a text at once, done by pipelines."""

from typing import Any

from shared.errors import InvalidRequest
from shared.messages import Label, Labelled
from shared.tasks.words import (
    ClassifyAmong,
    Fill,
    FilledMasks,
    FillMask,
    FindAnswer,
    FoundAnswer,
    FoundAnswers,
    LabelledPart,
    LabelledParts,
    LabelTokens,
)
from worker.engine.task_runner import Files, TaskOutput
from worker.tasks.labels import check_template
from worker.tasks.one_shot import Decoded, Loaded, OneShot
from worker.tasks.own_pipelines import SpanFinder

MASKS = ("[MASK]", "<mask>")
"""The marks of a mask in a text. The tokenizer's own takes their place."""


def _text(task: LabelTokens, files: Files, loaded: Loaded) -> Decoded:
    return Decoded(task.text)


def _masked_text(task: FillMask, files: Files, loaded: Loaded) -> Decoded:
    text = task.text
    for mask in MASKS:
        text = text.replace(mask, str(loaded.pipe.tokenizer.mask_token))
    if text == task.text and loaded.pipe.tokenizer.mask_token not in text:
        raise InvalidRequest(f"text: expected a mask, {MASKS[0]}, to be filled.", field="text")
    return Decoded(text)


def _text_among(task: ClassifyAmong, files: Files, loaded: Loaded) -> Decoded:
    check_template(task.template)
    return Decoded(task.text)


def _parts(task: LabelTokens, found: list[dict[str, Any]], seconds: float) -> TaskOutput:
    parts: list[LabelledPart] = []
    for one in found:
        label = one.get("entity_group") or one["entity"]
        start, end = int(one["start"]), int(one["end"])
        parts.append(LabelledPart(label, float(one["score"]), task.text[start:end], start, end))
    return TaskOutput(LabelledParts(tuple(parts)))


def _among(task: ClassifyAmong, decoded: Decoded, loaded: Loaded) -> dict[str, Any]:
    return {
        "candidate_labels": list(task.labels),
        "hypothesis_template": task.template,
        "multi_label": task.multi_label,
    }


def _among_labels(task: ClassifyAmong, found: dict[str, Any], seconds: float) -> TaskOutput:
    labels = zip(found["labels"], found["scores"], strict=True)
    return TaskOutput(Labelled(tuple(Label(name, score) for name, score in labels)))


def _fills(task: FillMask, found: Any, seconds: float) -> TaskOutput:
    # A text with one mask has a list of fills, any other a list for each mask.
    masks = found if found and isinstance(found[0], list) else [found]
    filled: list[tuple[Fill, ...]] = []
    for fills in masks:
        filled.append(
            tuple(
                Fill(one["token"], one["token_str"], one["score"], one["sequence"]) for one in fills
            )
        )
    return TaskOutput(FilledMasks(tuple(filled)))


def _fill_options(task: FillMask, decoded: Decoded, loaded: Loaded) -> dict[str, Any]:
    options: dict[str, Any] = {"top_k": task.top_k}
    if task.targets:
        options["targets"] = list(task.targets)
    return options


def _question(task: FindAnswer, files: Files, loaded: Loaded) -> Decoded:
    return Decoded({"question": task.question, "context": task.context})


def _answers(task: FindAnswer, found: list[tuple[float, int, int]], seconds: float) -> TaskOutput:
    answers = [
        FoundAnswer(task.context[start:end], score, start, end) for score, start, end in found
    ]
    return TaskOutput(FoundAnswers(tuple(answers)))


WORDS = {
    "question-answering": OneShot(
        parts=("tokenizer",),
        read=_question,
        options=lambda task, decoded, loaded: {
            "top_k": task.top_k,
            "max_length": task.max_length,
        },
        output=_answers,
        trial=(FindAnswer("a", "a b"), {}),
        pipeline=SpanFinder,
    ),
    "token-classification": OneShot(
        parts=("tokenizer",),
        read=_text,
        options=lambda task, decoded, loaded: {"aggregation_strategy": task.aggregation},
        output=_parts,
        trial=(LabelTokens("a"), {}),
    ),
    "zero-shot-classification": OneShot(
        parts=("tokenizer",),
        read=_text_among,
        options=_among,
        output=_among_labels,
        trial=(ClassifyAmong("a", ("a", "b")), {}),
    ),
    "fill-mask": OneShot(
        parts=("tokenizer",),
        read=_masked_text,
        options=_fill_options,
        output=_fills,
        trial=(FillMask(MASKS[0]), {}),
    ),
}
