"""The tasks of local inference, as a table: how a body becomes work, and an outcome a result.

A new task is its options and its result in `api/schemas/inference.py`, and a row here. Tasks that
are done in one call of a network have their rows in `api/routes/one_shots.py`.
"""

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from api.endpoints.endpoint import Endpoint, ImmediateEndpoint, TaskPlan
from api.endpoints.plans import text_plan
from api.http.error_format import API
from api.http.problem import Problem
from api.http.request_state import Usage
from api.routes.one_shots import ROWS as ONE_SHOTS
from api.routes.one_shots import OneShotRow, labels_result
from api.schemas.fields import refuse
from api.schemas.inference import (
    DEFAULT_MAX_TOKENS,
    ClassificationRequest,
    EchoRequest,
    EchoResult,
    FeatureRequest,
    FeatureResult,
    ImageTextRequest,
    TaskRequest,
    TextGenerationRequest,
    TextGenerationResult,
    TimesBody,
    times_body,
)
from api.schemas.inference_response import InferenceResponse
from api.schemas.usage import usage_body
from api.stream.choice_deltas import ChoiceDeltas
from api.stream.request_events import JobEvent, Outcome, OutcomeBuilder, total_usage
from api.stream.stream_format import EVENTS, NamedEvent
from api.stream.timings import Timings
from api.submit.limits import Limits
from api.submit.request_record import SubmittedWork
from shared.messages import (
    Chat,
    Classify,
    Embed,
    Embedded,
    ImagePart,
    ModelInfo,
    Progress,
    TaskName,
    TextPart,
    Turn,
)
from shared.tasks.task_table import TASKS as INFOS
from shared.tasks.vectors import unpack

Render = Callable[[Sequence[Outcome], Timings | None], BaseModel]
_PREFIX = "inference/"


class InferenceEvents:
    """Renders the events of one job: `token` and `progress`, then `done` with all, or `error`.

    `finish` makes the whole answer of its outcome and timings.
    """

    def __init__(self, correlation_id: str, finish: Render) -> None:
        self._correlation_id = correlation_id
        self._finish = finish
        self._deltas = ChoiceDeltas(1)
        self._builder = OutcomeBuilder(1)
        self._count = 0

    def opening(self) -> None:
        return None

    def of(self, job: int, event: JobEvent) -> Iterator[NamedEvent]:
        self._builder.add(event)
        if isinstance(event, Progress):
            body = {"done": event.done, "total": event.total, "note": event.note}
            if event.preview:
                picture = base64.b64encode(event.preview).decode()
                body["preview"] = f"data:image/jpeg;base64,{picture}"
            yield self._named("progress", body)
        for delta in self._deltas.of(job, event):
            if delta.text:
                yield self._named("token", {"index": self._count, "token": delta.text})
                self._count += 1

    def closing(self, usage: Usage, timings: Timings | None) -> Iterator[NamedEvent]:
        answer = self._finish([self._builder.outcome()], timings)
        yield self._named("done", answer.model_dump(mode="json"))

    def failed(self, problem: Problem) -> NamedEvent:
        return self._named("error", API.body(problem))

    def _named(self, name: str, body: dict[str, Any]) -> NamedEvent:
        return NamedEvent(name, {"correlation_id": self._correlation_id} | body)


_ECHO = "echo"


def model_of(body: TaskRequest) -> str | None:
    return body.model_id


def _is_streamed(body: Any) -> bool:
    return bool(body.stream or body.options.stream)


def _endpoint(
    task: TaskName,
    body: type[TaskRequest],
    plan: Callable[[Any, ModelInfo, Limits], TaskPlan],
    result: Callable[[Outcome], Any],
    name: str = "",
) -> Endpoint:
    """Return the endpoint of a task, whose `name` is Hugging Face's first one unless it is given."""
    name = name or INFOS[task].pipeline_tags[0]

    def render(work: SubmittedWork, outcomes: Sequence[Outcome]) -> InferenceResponse:
        return InferenceResponse(
            correlation_id=work.id,
            model_id=work.record.model,
            task=name,
            result=result(outcomes[0]),
            usage=usage_body(total_usage(outcomes)),
            metrics=times_body(work.timings),
        )

    def stream(work: SubmittedWork) -> InferenceEvents:
        def finish(outcomes: Sequence[Outcome], timings: Timings | None) -> InferenceResponse:
            return render(replace(work, timings=timings), outcomes)

        return InferenceEvents(work.id, finish)

    return Endpoint(
        name=_PREFIX + name,
        task=task,
        body=body,
        answer=InferenceResponse,
        plan=plan,
        render=render,
        stream=stream,
        stream_format=EVENTS,
        errors=API,
        is_timed=True,
        model_of=model_of,
        is_streamed=_is_streamed,
    )


def _generate(body: TextGenerationRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    return text_plan(body.options, [body.inputs], DEFAULT_MAX_TOKENS, model, limits)


def _answer_with_image(body: ImageTextRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    parts = (ImagePart(body.inputs.image), TextPart(body.inputs.text))
    chat = Chat((Turn("user", parts),))
    return text_plan(body.options, [chat], DEFAULT_MAX_TOKENS, model, limits)


def _generated(outcome: Outcome) -> TextGenerationResult:
    [choice] = outcome.choices
    return TextGenerationResult(text=choice.text, finish_reason=choice.finish_reason)


def _classify(body: ClassificationRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    return TaskPlan([Classify(body.inputs, body.options.top_k)])


def _embed(body: FeatureRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    return TaskPlan([Embed(body.inputs, body.options.normalize)])


def _embedded(outcome: Outcome) -> FeatureResult:
    vector = unpack(outcome.as_a(Embedded).vector)
    return FeatureResult(embedding=vector, dimensions=len(vector))


def _plan_of(row: OneShotRow) -> Callable[[Any, ModelInfo, Limits], TaskPlan]:
    def plan(body: Any, model: ModelInfo, limits: Limits) -> TaskPlan:
        return TaskPlan([row.plan(body)])

    return plan


def _echo(body: EchoRequest, request_id: str) -> InferenceResponse:
    """Return the inputs, without work for any model, under the request's own id."""
    return InferenceResponse(
        correlation_id=request_id,
        model_id=body.model_id,
        task=_ECHO,
        result=EchoResult(echo=body.inputs),
        usage=usage_body(Usage()),
        metrics=TimesBody(runtime_ms=0.0, first_token_latency_ms=None, tokens_per_second=None),
    )


def _stream_echo(body: EchoRequest, answer: InferenceResponse) -> Iterator[NamedEvent]:
    yield NamedEvent(
        "token", {"correlation_id": answer.correlation_id, "index": 0, "token": body.inputs}
    )
    yield NamedEvent("done", answer.model_dump(mode="json"))


_ROWS = (
    _endpoint("generate", TextGenerationRequest, _generate, _generated),
    _endpoint("classify", ClassificationRequest, _classify, labels_result),
    _endpoint("embed", FeatureRequest, _embed, _embedded),
    _endpoint(
        "generate", ImageTextRequest, _answer_with_image, _generated, name="image-text-to-text"
    ),
    *(_endpoint(row.task, row.body, _plan_of(row), row.result) for row in ONE_SHOTS),
)
TASKS = {endpoint.name.removeprefix(_PREFIX): endpoint for endpoint in _ROWS}
"""The endpoints, by Hugging Face's names of their tasks."""
ENDPOINTS: tuple[Endpoint | ImmediateEndpoint, ...] = (
    *TASKS.values(),
    ImmediateEndpoint(
        body=EchoRequest,
        answer=InferenceResponse,
        render=_echo,
        stream=_stream_echo,
        stream_format=EVENTS,
        errors=API,
        is_streamed=_is_streamed,
    ),
)
_TAGS: dict[str, str] = {}
"""The task of each pipeline tag: all of Hugging Face's names of these tasks, and ours."""
BODIES: dict[str, type[Any]] = {_ECHO: EchoRequest}
"""The body of each task."""
for _name, _row in TASKS.items():
    BODIES[_name] = _row.body
    for _tag in INFOS[_row.task].pipeline_tags:
        # Dialogues about pictures are texts that are generated, too, and come behind these.
        _TAGS.setdefault(_tag, _name)
    _TAGS[_name] = _name
_TAGS[_ECHO] = _ECHO


def name_of(task: Any, tag: Any) -> str:
    """Return the name of the task that a body asks for. Raise an error for one that is not ours."""
    if task is not None and task not in BODIES:
        raise refuse("task", f"expected one of {', '.join(BODIES)}")
    if task is None and tag is not None and tag not in _TAGS:
        raise refuse("pipeline_tag", f"expected one of {', '.join(_TAGS)}")
    return str(task or _TAGS[tag or _ECHO])


def body_type(body: dict[str, Any]) -> type[Any]:
    """Return the type of a body, by its task. Raise an error that names the field at fault."""
    task = body.get("task")
    tag = body.get("pipeline_tag")
    for name, value in (("task", task), ("pipeline_tag", tag)):
        if value is not None and not isinstance(value, str):
            raise refuse(name, "expected the name of a task")
    return BODIES[name_of(task, tag)]
