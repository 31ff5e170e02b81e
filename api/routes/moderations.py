"""`/v1/moderations` as the OpenAI clients expect it."""

from collections.abc import Sequence

from api.endpoints.dialect import Dialect
from api.endpoints.endpoint import Endpoint, Post, TaskPlan
from api.http.error_format import OPENAI
from api.schemas.moderations import Moderation, ModerationRequest, moderation
from api.stream.request_events import Outcome
from api.submit.limits import Limits
from api.submit.request_record import SubmittedWork
from shared.messages import ModelInfo


def _plan(body: ModerationRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    limits.check_count("input", len(body.input))
    return TaskPlan(body.tasks())


def _whole(work: SubmittedWork, outcomes: Sequence[Outcome]) -> Moderation:
    return moderation(f"modr-{work.id}", work.record.model, outcomes)


DIALECT = Dialect(
    (
        Post(
            "/v1/moderations",
            "create_moderation",
            "What a classifier finds wrong with texts.",
            (
                Endpoint(
                    name="moderations",
                    task="classify",
                    body=ModerationRequest,
                    answer=Moderation,
                    plan=_plan,
                    render=_whole,
                    errors=OPENAI,
                ),
            ),
            tag="openai",
            job_task="moderate",
        ),
    )
)
