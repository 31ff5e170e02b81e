"""`/v1/rerank` as Jina's clients, and those of vLLM and Cohere, expect it."""

from collections.abc import Sequence

from api.endpoints.dialect import Dialect
from api.endpoints.endpoint import Endpoint, Post, TaskPlan
from api.schemas.rerank import Ranking, RerankRequest, ranking
from api.stream.request_events import Outcome
from api.submit.limits import Limits
from api.submit.request_record import SubmittedWork
from shared.messages import ModelInfo


def _plan(body: RerankRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    limits.check_count("documents", len(body.documents))
    return TaskPlan(body.tasks(), notes=body.notes())


def _whole(work: SubmittedWork, outcomes: Sequence[Outcome]) -> Ranking:
    return ranking(work.id, work.record.model, outcomes, dict(work.record.notes))


RERANK = Endpoint(
    name="rerank",
    task="text-ranking",
    body=RerankRequest,
    answer=Ranking,
    plan=_plan,
    render=_whole,
)
DIALECT = Dialect(
    (
        Post(
            "/v1/rerank",
            "rerank",
            "Documents in the order in which they answer a query.",
            (RERANK,),
            tag="openai",
            job_task="rerank",
        ),
    )
)
