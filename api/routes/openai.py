"""`/v1/models` and `/v1/completions` as the OpenAI clients expect them."""

from collections.abc import Callable, Sequence

from fastapi import APIRouter, Response

from api.admission import Admission
from api.ask import AskDep, Plan, text_plan
from api.caller import CallerDep
from api.deps import FrontDep
from api.kinds import Dialect, Kind
from api.record import Work
from api.routes.chunks import Chunks
from api.run import Outcome
from api.schemas.echo import echo_notes, echo_tasks, echoed
from api.schemas.errors import LATER, OPENAI_ERRORS, STREAM
from api.schemas.openai import (
    DEFAULT_MAX_TOKENS,
    Completion,
    CompletionRequest,
    Heading,
    Model,
    ModelList,
    completion,
    model_body,
)
from shared.messages import ModelInfo

router = APIRouter(prefix="/v1", tags=["openai"], responses=OPENAI_ERRORS)


@router.get("/models")
async def models(front: FrontDep, caller: CallerDep) -> ModelList:
    """The models that a ready worker serves and the caller may use."""
    fleet = await front.fleet.now()
    names = [name for name in sorted(fleet.models) if fleet.serves(name) and caller.may_use(name)]
    return ModelList(data=[model_body(fleet.models[name]) for name in names])


@router.get("/models/{id:path}")
async def model(id: str, front: FrontDep, caller: CallerDep) -> Model:
    info = await front.admission.find(id)
    caller.check_model(info.id)
    return model_body(info)


@router.post("/completions", response_model=Completion, responses=LATER | STREAM)
async def completions(body: CompletionRequest, ask: AskDep) -> Response:
    """Complete each prompt; `stream` sends the text as it comes."""
    admission = ask.front.admission
    admission.check_count("prompt", len(body.prompt))
    if body.echo:
        plan = _echo_plan(admission, body)
    else:
        notes = {"with_usage": body.stream_options.include_usage}
        plan = text_plan(admission, body, body.prompt, DEFAULT_MAX_TOKENS, notes)
    return await ask.answer(COMPLETIONS, body.model, plan, is_streamed=body.stream)


def _echo_plan(admission: Admission, body: CompletionRequest) -> Callable[[ModelInfo], Plan]:
    def plan(model: ModelInfo) -> Plan:
        budget = admission.budget(body.max_tokens, DEFAULT_MAX_TOKENS, model)
        return Plan(echo_tasks(body, budget.max_tokens), budget, notes=echo_notes(body, budget.max_tokens))

    return plan


def _whole(work: Work, outcomes: Sequence[Outcome]) -> Completion:
    notes = work.record.notes
    return echoed(_heading(work), outcomes, notes) if "texts" in notes else completion(_heading(work), outcomes)


def _chunks(work: Work) -> Chunks:
    return Chunks(_heading(work), work.record.n, with_usage=work.record.notes["with_usage"])


def _heading(work: Work) -> Heading:
    return Heading(f"cmpl-{work.id}", work.record.created, work.record.model)


COMPLETIONS = Kind("completions", "generate", _whole, _chunks)
DIALECT = Dialect(router, (COMPLETIONS,))
