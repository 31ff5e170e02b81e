"""Local inference: `/api/inference` for any task, whole or as named events, and what there is to ask."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from api.ask import Ask, AskDep
from api.deps import FrontDep
from api.framing import EVENTS, Named
from api.kinds import Dialect, Kind
from api.record import Work
from api.routes.inference_events import InferenceEvents
from api.routes.inference_tasks import BODIES, ECHO, TASKS, InferenceTask, body_type, name_of
from api.run import Outcome, total_usage
from api.schemas.errors import API_ERRORS, LATER, STREAM, STREAM_ALONE
from api.schemas.fleet import ApiHealth, ModelStatus, ModelStatuses, api_health, model_status
from api.schemas.inference import (
    ClassificationRequest,
    EchoRequest,
    EchoResult,
    FeatureRequest,
    InferenceRequest,
    InferenceResponse,
    TextGenerationRequest,
    TimesBody,
    times_body,
)
from api.schemas.usage import usage_body
from api.shapes import chosen
from api.sse import EventStream
from api.trail import Usage
from shared.errors import DeviceUnavailable, ModelNotFound

router = APIRouter(prefix="/api", tags=["inference"], responses=API_ERRORS)

Body = Annotated[
    EchoRequest | TextGenerationRequest | ClassificationRequest | FeatureRequest, chosen(body_type, BODIES.values())
]


@router.post("/inference", response_model=InferenceResponse, responses=LATER | STREAM)
async def inference(body: Body, ask: AskDep) -> Response:
    """Have a task done; without one, the inputs come back."""
    return await _answer(body, ask, is_streamed=body.stream or body.options.stream)


@router.post("/inference/stream", response_class=Response, responses=LATER | STREAM_ALONE)
async def inference_stream(body: Body, ask: AskDep) -> Response:
    """The same as events: `token` for each piece of text, then `done` or `error`."""
    return await _answer(body, ask, is_streamed=True)


@router.get("/models/status", response_model_exclude_none=True)
async def statuses(front: FrontDep) -> ModelStatuses:
    """All models that a worker has served."""
    fleet = await front.fleet.now()
    return ModelStatuses(models=[model_status(fleet, fleet.models[name]) for name in sorted(fleet.models)])


@router.get("/models/status/{model_id:path}", response_model_exclude_none=True)
async def status(model_id: str, front: FrontDep) -> ModelStatus:
    fleet = await front.fleet.now()
    if (obstacle := fleet.obstacle(model_id)) is not None:
        raise DeviceUnavailable(obstacle, field="model_id")
    if model_id not in fleet.models:
        raise ModelNotFound(f"model_id: {model_id!r} does not exist.", field="model_id")
    return model_status(fleet, fleet.models[model_id])


@router.get("/health", response_model=ApiHealth)
async def health(front: FrontDep) -> Response:
    """Counts of workers, models and requests; 503 while no worker is ready."""
    body = api_health(await front.fleet.now())
    return JSONResponse(body.model_dump(), 200 if body.status == "ok" else 503)


async def _answer(body: InferenceRequest, ask: Ask, *, is_streamed: bool) -> Response:
    name = name_of(body.task, body.pipeline_tag)
    if name == ECHO:
        return _echo(body, ask, is_streamed=is_streamed)
    plan = TASKS[name].plan(body, ask.front.admission)
    return await ask.answer(KINDS[name], body.model_id, plan, is_streamed=is_streamed)


def _echo(body: InferenceRequest, ask: Ask, *, is_streamed: bool) -> Response:
    """No work for any model: answered at once, under the request's own id."""
    answer = InferenceResponse(
        correlation_id=ask.trail.request_id,
        model_id=body.model_id,
        task=ECHO,
        result=EchoResult(echo=body.inputs),
        usage=usage_body(Usage()),
        metrics=TimesBody(runtime_ms=0.0, first_token_latency_ms=None, tokens_per_second=None),
    )
    if not is_streamed:
        return Response(answer.model_dump_json(), media_type="application/json")

    async def frames() -> AsyncGenerator[bytes, None]:
        token = {"correlation_id": answer.correlation_id, "index": 0, "token": body.inputs}
        yield EVENTS.frame(Named("token", token), "")
        yield EVENTS.frame(Named("done", answer.model_dump(mode="json")), "")

    return EventStream(frames(), EVENTS, lambda _: b"", dict)


def _response(task: InferenceTask, work: Work, outcomes: Sequence[Outcome]) -> InferenceResponse:
    return InferenceResponse(
        correlation_id=work.id,
        model_id=work.record.model,
        task=task.name,
        result=task.result(outcomes[0]),
        usage=usage_body(total_usage(outcomes)),
        metrics=times_body(work.timings),
    )


def _kind(task: InferenceTask) -> Kind:
    def render(work: Work, outcomes: Sequence[Outcome]) -> InferenceResponse:
        return _response(task, work, outcomes)

    def tell(work: Work) -> InferenceEvents:
        return InferenceEvents(
            work.id, lambda outcomes, timings: _response(task, replace(work, timings=timings), outcomes)
        )

    return Kind(f"inference/{task.name}", task.needs, render, tell, EVENTS, is_timed=True)


KINDS = {name: _kind(task) for name, task in TASKS.items()}
DIALECT = Dialect(router, tuple(KINDS.values()))
