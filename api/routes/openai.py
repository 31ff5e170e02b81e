"""`/v1/models` and `/v1/completions` as the OpenAI clients expect them."""

from collections.abc import Sequence

from fastapi import APIRouter, Response

from api.ask import AskDep, text_plan
from api.deps import FrontDep
from api.kinds import Dialect, Kind
from api.record import Work
from api.routes.chunks import Chunks
from api.run import Outcome
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
from api.sse import EVENT_STREAM

router = APIRouter(prefix="/v1", tags=["openai"])


@router.get("/models")
async def models(front: FrontDep) -> ModelList:
    """The models that a ready worker serves."""
    fleet = await front.fleet.now()
    return ModelList(data=[model_body(fleet.models[name]) for name in sorted(fleet.models) if fleet.serves(name)])


@router.get("/models/{id:path}")
async def model(id: str, front: FrontDep) -> Model:
    return model_body(await front.admission.find(id))


@router.post("/completions", response_model=Completion, responses=EVENT_STREAM)
async def completions(body: CompletionRequest, ask: AskDep) -> Response:
    """Complete each prompt; `stream` sends the text as it comes."""
    admission = ask.front.admission
    admission.check_count("prompt", len(body.prompt))
    notes = {"with_usage": body.stream_options.include_usage}
    plan = text_plan(admission, body, body.prompt, DEFAULT_MAX_TOKENS, notes)
    return await ask.answer(COMPLETIONS, body.model, plan, is_streamed=body.stream)


def _whole(work: Work, outcomes: Sequence[Outcome]) -> Completion:
    return completion(_heading(work), outcomes)


def _chunks(work: Work) -> Chunks:
    return Chunks(_heading(work), work.record.n, with_usage=work.record.notes["with_usage"])


def _heading(work: Work) -> Heading:
    return Heading(f"cmpl-{work.id}", work.record.created, work.record.model)


COMPLETIONS = Kind("completions", "generate", _whole, _chunks)
DIALECT = Dialect(router, (COMPLETIONS,))
