"""`POST /v1/echo-task`: a task without a model.

It takes as long as it is told to, and makes a file of a text.
"""

from collections.abc import Sequence

from pydantic import BaseModel, Field

from api.endpoints.dialect import Dialect
from api.endpoints.endpoint import Endpoint, Post, TaskPlan
from api.schemas.fields import NonEmpty, RequestBody, shown
from api.schemas.files import MadeFile, made_file
from api.stream.request_events import Outcome
from api.submit.limits import Limits
from api.submit.request_record import SubmittedWork
from shared.messages import ModelInfo
from shared.tasks.echo_task import EchoedTask, EchoTask


class EchoTaskRequest(RequestBody):
    model_config = shown({"model": "tasks", "text": "tick ", "steps": 3, "step_ms": 10})

    text: NonEmpty
    steps: int = Field(1, ge=1, strict=True)
    step_ms: int = Field(0, ge=0, strict=True, description="Milliseconds that each step takes.")
    stream: bool = Field(False, strict=True, description="Tell of each step as it is done.")
    model: str | None = None


class EchoTaskResponse(BaseModel):
    """The answer: the file has the text once for each step."""

    steps: int
    file: MadeFile


def _plan(body: EchoTaskRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    return TaskPlan([EchoTask(body.text, body.steps, body.step_ms)])


def _render(work: SubmittedWork, outcomes: Sequence[Outcome]) -> EchoTaskResponse:
    [outcome] = outcomes
    result = outcome.as_a(EchoedTask)
    [ref] = outcome.artifacts
    return EchoTaskResponse(steps=result.steps, file=made_file(ref))


ECHO_TASK = Endpoint(
    name="echo_task",
    task="echo_task",
    body=EchoTaskRequest,
    answer=EchoTaskResponse,
    plan=_plan,
    render=_render,
)
DIALECT = Dialect(
    (
        Post(
            "/v1/echo-task",
            "echo_task",
            (
                "Make a file that repeats a text, as slowly as is asked for. Served by the "
                "`echo-task` runner."
            ),
            (ECHO_TASK,),
            tag="jobs",
            job_task="echo_task",
        ),
    )
)
