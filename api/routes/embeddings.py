"""`/v1/embeddings` as the OpenAI clients expect it."""

from collections.abc import Sequence

from fastapi import APIRouter, Response

from api.ask import AskDep, Plan
from api.kinds import Dialect, Kind
from api.record import Work
from api.run import Outcome
from api.schemas.embeddings import Embeddings, EmbeddingsRequest, embeddings
from api.schemas.errors import LATER, OPENAI_ERRORS
from shared.messages import ModelInfo

router = APIRouter(prefix="/v1", tags=["openai"], responses=OPENAI_ERRORS | LATER)


@router.post("/embeddings", response_model=Embeddings)
async def create_embeddings(body: EmbeddingsRequest, ask: AskDep) -> Response:
    """One vector for each text: the mean of its tokens' last states."""
    ask.front.admission.check_count("input", len(body.input))

    def plan(model: ModelInfo) -> Plan:
        return Plan(body.tasks(), notes={"encoding_format": body.encoding_format})

    return await ask.answer(EMBEDDINGS, body.model, plan)


def _whole(work: Work, outcomes: Sequence[Outcome]) -> Embeddings:
    return embeddings(work.record.model, outcomes, work.record.notes["encoding_format"])


EMBEDDINGS = Kind("embeddings", "embed", _whole)
DIALECT = Dialect(router, (EMBEDDINGS,))
