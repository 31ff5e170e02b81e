"""`/v1/models` and `/v1/completions` as the OpenAI clients expect them."""

from collections.abc import Sequence

from fastapi import APIRouter

from api.access.caller import CallerDep
from api.deps import FrontDep
from api.endpoints.dialect import Dialect
from api.endpoints.endpoint import Endpoint, Post, StreamRenderer, TaskPlan, WholeAnswerStream
from api.endpoints.plans import text_plan
from api.http.error_format import OPENAI
from api.routes.chunks import Chunks
from api.schemas.echo import echo_notes, echo_tasks, echoed
from api.schemas.errors import OpenAIErrorBody, errors_of
from api.schemas.openai import (
    DEFAULT_MAX_TOKENS,
    Completion,
    CompletionRequest,
    Heading,
    Model,
    ModelList,
    completion,
    experiment_body,
    model_body,
)
from api.stream.request_events import Outcome
from api.submit.limits import Limits
from api.submit.request_record import SubmittedWork
from shared.messages import ModelInfo

router = APIRouter(prefix="/v1", tags=["openai"], responses=errors_of(OpenAIErrorBody))


@router.get("/models")
async def models(front: FrontDep, caller: CallerDep) -> ModelList:
    """List the models that a ready worker serves and the caller may use.

    Experiments follow, if that holds for all their arms.
    """
    fleet = await front.fleet.now()
    bodies = []
    for name in sorted(fleet.models):
        is_hidden = name in front.admission.experiments
        if fleet.serves(name) and caller.may_use(name) and not is_hidden:
            bodies.append(model_body(fleet.models[name]))
    for experiment in front.admission.experiments.values():
        names = [arm.model for arm in experiment.arms]
        if all(fleet.serves(name) and caller.may_use(name) for name in names):
            infos = [fleet.models[name] for name in names]
            bodies.append(experiment_body(experiment, infos))
    return ModelList(data=bodies)


@router.get("/models/{id:path}")
async def model(id: str, front: FrontDep, caller: CallerDep) -> Model:
    experiment = front.admission.experiments.get(id)
    if experiment is not None:
        infos = []
        for arm in experiment.arms:
            infos.append(await front.admission.find(arm.model))
            caller.check_model(arm.model)
        return experiment_body(experiment, infos)
    info = await front.admission.find(id)
    caller.check_model(info.id)
    return model_body(info)


def _plan(body: CompletionRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    limits.check_count("prompt", len(body.prompt))
    if body.echo:
        budget = limits.budget(body.max_tokens, DEFAULT_MAX_TOKENS, model)
        return TaskPlan(
            echo_tasks(body, budget.max_tokens), budget, notes=echo_notes(body, budget.max_tokens)
        )
    notes = {"with_usage": body.stream_options.include_usage}
    return text_plan(body, body.prompt, DEFAULT_MAX_TOKENS, model, limits, notes=notes)


def _whole(work: SubmittedWork, outcomes: Sequence[Outcome]) -> Completion:
    notes = work.record.notes
    # Only a request with `echo` has the notes of `echo_notes`.
    if "texts" in notes:
        return echoed(_heading(work), outcomes, notes)
    return completion(_heading(work), outcomes)


def _stream(work: SubmittedWork) -> StreamRenderer:
    notes = work.record.notes
    if "texts" in notes:
        return WholeAnswerStream(COMPLETIONS, work)
    return Chunks(_heading(work), work.record.n, with_usage=notes["with_usage"])


def _heading(work: SubmittedWork) -> Heading:
    return Heading(f"cmpl-{work.id}", work.record.created, work.record.model)


COMPLETIONS = Endpoint(
    name="completions",
    task="generate",
    body=CompletionRequest,
    answer=Completion,
    plan=_plan,
    render=_whole,
    stream=_stream,
    errors=OPENAI,
)
DIALECT = Dialect(
    (
        Post(
            "/v1/completions",
            "completions",
            "Complete each prompt; `stream` sends the text as it comes.",
            (COMPLETIONS,),
            tag="openai",
            job_task="completions",
        ),
    ),
    router,
    prefix="/v1/",
    errors=OPENAI,
)
