"""The tasks of local inference, as a table: how a body becomes work, and what comes of it a result.

A new task is its options and result in `schemas/inference.py`, and a row here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from api.admission import Admission
from api.ask import Plan, text_plan
from api.run import Outcome
from api.schemas.fields import refuse
from api.schemas.inference import (
    DEFAULT_MAX_TOKENS,
    ClassificationRequest,
    ClassificationResult,
    EchoRequest,
    FeatureRequest,
    FeatureResult,
    InferenceRequest,
    LabelBody,
    Result,
    TextGenerationRequest,
    TextGenerationResult,
)
from shared.messages import Classify, Embed, ModelInfo, TaskName
from shared.vectors import unpack

ECHO = "echo"


@dataclass(frozen=True)
class InferenceTask:
    """`needs` is what a model must serve. `plan` is given the body and admission."""

    name: str
    body: type[InferenceRequest]
    needs: TaskName
    plan: Callable[[Any, Admission], Callable[[ModelInfo], Plan]]
    result: Callable[[Outcome], Result]


def _generate(body: TextGenerationRequest, admission: Admission) -> Callable[[ModelInfo], Plan]:
    return text_plan(admission, body.options, [body.inputs], DEFAULT_MAX_TOKENS)


def _generated(outcome: Outcome) -> TextGenerationResult:
    [choice] = outcome.choices
    return TextGenerationResult(text=choice.text, finish_reason=choice.finish_reason)


def _classify(body: ClassificationRequest, admission: Admission) -> Callable[[ModelInfo], Plan]:
    plan = Plan([Classify(body.inputs, body.options.top_k)])
    return lambda _: plan


def _classified(outcome: Outcome) -> ClassificationResult:
    return ClassificationResult(labels=[LabelBody(label=label.name, score=label.score) for label in outcome.labels])


def _embed(body: FeatureRequest, admission: Admission) -> Callable[[ModelInfo], Plan]:
    plan = Plan([Embed(body.inputs, body.options.normalize)])
    return lambda _: plan


def _embedded(outcome: Outcome) -> FeatureResult:
    vector = unpack(outcome.embedding or b"")
    return FeatureResult(embedding=vector, dimensions=len(vector))


_ROWS = (
    InferenceTask("text-generation", TextGenerationRequest, "generate", _generate, _generated),
    InferenceTask("text-classification", ClassificationRequest, "classify", _classify, _classified),
    InferenceTask("feature-extraction", FeatureRequest, "embed", _embed, _embedded),
)
TASKS = {task.name: task for task in _ROWS}
_TAGS = {name: name for name in (*TASKS, ECHO)} | {
    "text2text-generation": "text-generation",
    "conversational": "text-generation",
    "sentiment-analysis": "text-classification",
    "sentence-similarity": "feature-extraction",
}
"""Hugging Face's names of tasks, and ours."""

BODIES: dict[str, type[InferenceRequest]] = {ECHO: EchoRequest} | {task.name: task.body for task in _ROWS}


def name_of(task: Any, tag: Any) -> str:
    """The task that a body asks for. Raises the error of the field that names none of ours."""
    if task is not None and task not in BODIES:
        raise refuse("task", f"expected one of {', '.join(BODIES)}")
    if task is None and tag is not None and tag not in _TAGS:
        raise refuse("pipeline_tag", f"expected one of {', '.join(_TAGS)}")
    return str(task or _TAGS[tag or ECHO])


def body_type(body: dict[str, Any]) -> type[InferenceRequest]:
    task, tag = body.get("task"), body.get("pipeline_tag")
    for name, value in (("task", task), ("pipeline_tag", tag)):
        if value is not None and not isinstance(value, str):
            raise refuse(name, "expected the name of a task")
    return BODIES[name_of(task, tag)]
