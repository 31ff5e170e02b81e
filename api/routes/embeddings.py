"""`/v1/embeddings` as the OpenAI clients expect it."""

from collections.abc import Sequence

from api.endpoints.dialect import Dialect
from api.endpoints.endpoint import Endpoint, Post, TaskPlan
from api.http.error_format import OPENAI
from api.schemas.embeddings import Embeddings, EmbeddingsRequest, embeddings
from api.stream.request_events import Outcome
from api.submit.limits import Limits
from api.submit.request_record import SubmittedWork
from shared.messages import ModelInfo


def _plan(body: EmbeddingsRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    limits.check_count("input", len(body.input))
    return TaskPlan(body.tasks(), notes={"encoding_format": body.encoding_format})


def _whole(work: SubmittedWork, outcomes: Sequence[Outcome]) -> Embeddings:
    return embeddings(work.record.model, outcomes, work.record.notes["encoding_format"])


EMBEDDINGS = Endpoint(
    name="embeddings",
    task="embed",
    body=EmbeddingsRequest,
    answer=Embeddings,
    plan=_plan,
    render=_whole,
    errors=OPENAI,
)
DIALECT = Dialect(
    (
        Post(
            "/v1/embeddings",
            "create_embeddings",
            "One vector for each text: the mean of its tokens' last states.",
            (EMBEDDINGS,),
            tag="openai",
            job_task="embed",
        ),
    )
)
