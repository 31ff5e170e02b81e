"""`POST /v1/echo-task`: a task without a model, which takes as long as it is told and says how far it has come."""

from collections.abc import Sequence

from pydantic import BaseModel, Field

from api.dialect import Dialect
from api.endpoint import Endpoint, Post, TaskPlan
from api.limits import Limits
from api.record import Work
from api.run import Outcome
from api.schemas.fields import NonEmpty, RequestBody, shown
from shared.echo_task import EchoedTask, EchoTask
from shared.messages import ModelInfo


class EchoTaskRequest(RequestBody):
    model_config = shown({"text": "tick ", "steps": 3, "step_ms": 10})

    text: NonEmpty
    steps: int = Field(1, ge=1, strict=True)
    step_ms: int = Field(0, ge=0, strict=True, description="Milliseconds that each step takes.")
    stream: bool = Field(False, strict=True, description="Tell of each step as it is done.")
    model: str | None = None


class EchoTaskResponse(BaseModel):
    model_config = shown({"text": "tick tick tick "})

    text: str


def _plan(body: EchoTaskRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    return TaskPlan([EchoTask(body.text, body.steps, body.step_ms)])


def _render(work: Work, outcomes: Sequence[Outcome]) -> EchoTaskResponse:
    [outcome] = outcomes
    return EchoTaskResponse(text=outcome.as_a(EchoedTask).text)


ECHO_TASK = Endpoint("echo_task", "echo_task", EchoTaskRequest, EchoTaskResponse, _plan, _render)
DIALECT = Dialect(
    (
        Post(
            "/v1/echo-task",
            "echo_task",
            "Repeat a text step by step, each step as slowly as is asked for. Served by the `echo-task` runner.",
            (ECHO_TASK,),
            tag="jobs",
            job_task="echo_task",
        ),
    )
)
