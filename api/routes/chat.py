"""`/v1/chat/completions` as the OpenAI clients expect it."""

from collections.abc import Sequence

from fastapi import APIRouter, Response

from api.ask import AskDep, Plan
from api.kinds import Dialect, Kind
from api.record import Work
from api.routes.chunks import ChatChunks
from api.run import Outcome
from api.schemas.chat import ChatCompletion, ChatRequest, chat_completion
from api.schemas.errors import LATER, OPENAI_ERRORS, STREAM
from api.schemas.openai import Heading
from shared.messages import ModelInfo

router = APIRouter(prefix="/v1", tags=["openai"], responses=OPENAI_ERRORS)


@router.post("/chat/completions", response_model=ChatCompletion, responses=LATER | STREAM)
async def chat_completions(body: ChatRequest, ask: AskDep) -> Response:
    """Answer a dialogue; `stream` sends the text as it comes."""
    admission = ask.front.admission
    admission.check_count("n", body.n, "completions")

    def plan(model: ModelInfo) -> Plan:
        budget = admission.budget(body.max_tokens, model.max_new_tokens, model)
        notes = {"with_usage": body.stream_options.include_usage}
        return Plan([body.chat_task(budget.max_tokens)], budget, body.n, notes)

    return await ask.answer(CHAT, body.model, plan, is_streamed=body.stream)


def _whole(work: Work, outcomes: Sequence[Outcome]) -> ChatCompletion:
    [outcome] = outcomes
    return chat_completion(_heading(work), outcome)


def _chunks(work: Work) -> ChatChunks:
    return ChatChunks(_heading(work), work.record.n, with_usage=work.record.notes["with_usage"])


def _heading(work: Work) -> Heading:
    return Heading(f"chatcmpl-{work.id}", work.record.created, work.record.model)


CHAT = Kind("chat", "generate", _whole, _chunks)
DIALECT = Dialect(router, (CHAT,))
