"""text-generation-inference's way to ask: `inputs` and `parameters`, at `/` and at the paths that
dialects share."""

from collections.abc import Sequence

import msgspec

from api.endpoints.dialect import Dialect
from api.endpoints.endpoint import Endpoint, Post, TaskPlan
from api.http.error_format import TGI
from api.routes.tgi_frames import TgiFrames
from api.schemas.tgi import (
    DEFAULT_MAX_TOKENS,
    TgiNotes,
    TgiRequest,
    TgiResponse,
    TgiResponses,
    notes_of,
    response,
)
from api.stream.request_events import Outcome
from api.stream.stream_format import EVENTS
from api.submit.limits import Limits
from api.submit.request_record import SubmittedWork
from shared.messages import ModelInfo


def _plan(body: TgiRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    notes = notes_of(body)
    budget = limits.budget(body.parameters.max_tokens, DEFAULT_MAX_TOKENS, model)
    task = body.task(budget.max_tokens, with_tokens=body.stream or notes.has_details)
    return TaskPlan([task], budget, notes=msgspec.structs.asdict(notes))


def _model(body: TgiRequest) -> str | None:
    return body.model or body.parameters.model


def _notes(work: SubmittedWork) -> TgiNotes:
    return msgspec.convert(work.record.notes, TgiNotes)


def _one(work: SubmittedWork, outcomes: Sequence[Outcome]) -> TgiResponse:
    return response(outcomes[0], _notes(work))


def _listed(work: SubmittedWork, outcomes: Sequence[Outcome]) -> TgiResponses:
    return TgiResponses([_one(work, outcomes)])


def _frames(work: SubmittedWork) -> TgiFrames:
    return TgiFrames(_notes(work))


ONE = Endpoint(
    "tgi",
    "generate",
    TgiRequest,
    TgiResponse,
    _plan,
    _one,
    _frames,
    EVENTS,
    errors=TGI,
    model_of=_model,
)
LISTED = Endpoint(
    "tgi_list",
    "generate",
    TgiRequest,
    TgiResponses,
    _plan,
    _listed,
    _frames,
    EVENTS,
    errors=TGI,
    model_of=_model,
)
DIALECT = Dialect(
    (
        Post(
            "/",
            "root",
            (
                "The completion in a list, or with `stream` token by token: asked at the bare "
                "address of a server."
            ),
            (LISTED,),
            tag="tgi",
        ),
    )
)
