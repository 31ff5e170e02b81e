"""`/tokenize` and `/detokenize`: a model's token ids, without running it."""

from collections.abc import Sequence

from fastapi import APIRouter, Response

from api.ask import AskDep, Plan
from api.kinds import Dialect, Kind
from api.record import Work
from api.run import Outcome
from api.schemas.errors import LATER
from api.schemas.tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    detokenize_response,
    detokenize_task,
    tokenize_response,
)
from shared.messages import ModelInfo

router = APIRouter(tags=["tokens"], responses=LATER)


@router.post("/tokenize", response_model=TokenizeResponse)
async def tokenize(body: TokenizeRequest, ask: AskDep) -> Response:
    """The ids that the model would read for a prompt or a dialogue."""

    def plan(model: ModelInfo) -> Plan:
        return Plan([body.task()], notes={"window": model.context_window, "with_texts": body.return_token_strs})

    return await ask.answer(TOKENIZE, body.model, plan)


@router.post("/detokenize", response_model=DetokenizeResponse)
async def detokenize(body: DetokenizeRequest, ask: AskDep) -> Response:
    """The text of token ids."""
    plan = Plan([detokenize_task(body)])
    return await ask.answer(DETOKENIZE, body.model, lambda _: plan)


def _tokens(work: Work, outcomes: Sequence[Outcome]) -> TokenizeResponse:
    notes = work.record.notes
    return tokenize_response(outcomes[0], notes["window"], with_texts=notes["with_texts"])


def _text(work: Work, outcomes: Sequence[Outcome]) -> DetokenizeResponse:
    return detokenize_response(outcomes[0])


TOKENIZE = Kind("tokenize", "tokenize", _tokens)
DETOKENIZE = Kind("detokenize", "detokenize", _text)
DIALECT = Dialect(router, (TOKENIZE, DETOKENIZE))
