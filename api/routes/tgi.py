"""text-generation-inference's way to ask: `inputs` and `parameters`, at `/` and at the paths that dialects share."""

from collections.abc import Sequence

import msgspec
from fastapi import APIRouter, Response

from api.ask import Ask, AskDep, Plan
from api.framing import EVENTS
from api.kinds import Dialect, Kind
from api.record import Work
from api.routes.tgi_frames import TgiFrames
from api.run import Outcome
from api.schemas.errors import LATER, STREAM, TGI_ERRORS
from api.schemas.tgi import DEFAULT_MAX_TOKENS, TgiNotes, TgiRequest, TgiResponse, TgiResponses, notes_of, response
from shared.messages import ModelInfo

router = APIRouter(tags=["tgi"])


@router.post("/", response_model=TgiResponses, responses=TGI_ERRORS | LATER | STREAM)
async def root(body: TgiRequest, ask: AskDep) -> Response:
    """The completion in a list, or with `stream` token by token: what clients do with the bare address of a server."""
    return await _answer(LISTED, body, ask, is_streamed=body.stream)


async def generate(body: TgiRequest, ask: Ask, *, is_streamed: bool) -> Response:
    return await _answer(ONE, body, ask, is_streamed=is_streamed or body.stream)


async def _answer(kind: Kind, body: TgiRequest, ask: Ask, *, is_streamed: bool) -> Response:
    notes = notes_of(body)

    def plan(model: ModelInfo) -> Plan:
        budget = ask.front.admission.budget(body.parameters.max_tokens, DEFAULT_MAX_TOKENS, model)
        task = body.task(budget.max_tokens, with_tokens=is_streamed or notes.has_details)
        return Plan([task], budget, notes=msgspec.structs.asdict(notes))

    return await ask.answer(kind, body.model or body.parameters.model, plan, is_streamed=is_streamed)


def _notes(work: Work) -> TgiNotes:
    return msgspec.convert(work.record.notes, TgiNotes)


def _one(work: Work, outcomes: Sequence[Outcome]) -> TgiResponse:
    return response(outcomes[0], _notes(work))


def _listed(work: Work, outcomes: Sequence[Outcome]) -> TgiResponses:
    return TgiResponses([_one(work, outcomes)])


def _frames(work: Work) -> TgiFrames:
    return TgiFrames(_notes(work))


ONE = Kind("tgi", "generate", _one, _frames, EVENTS)
LISTED = Kind("tgi_list", "generate", _listed, _frames, EVENTS)
DIALECT = Dialect(router, (ONE, LISTED))
