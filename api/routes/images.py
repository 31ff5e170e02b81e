"""`/v1/images` as the OpenAI clients expect it: pictures of a prompt, and of other pictures."""

from collections.abc import Sequence

from api.endpoints.dialect import Dialect
from api.endpoints.endpoint import Endpoint, Post, TaskPlan
from api.http.error_format import OPENAI
from api.schemas.images import EditRequest, GenerationRequest, Images, VariationRequest, images
from api.stream.request_events import Outcome
from api.submit.limits import Limits
from api.submit.request_record import SubmittedWork
from shared.messages import ModelInfo, TaskName

_Body = GenerationRequest | EditRequest | VariationRequest


def _plan(body: _Body, model: ModelInfo, limits: Limits) -> TaskPlan:
    return TaskPlan([body.task()])


def _whole(work: SubmittedWork, outcomes: Sequence[Outcome]) -> Images:
    return images(work.record.created, outcomes[0])


def _post(
    path: str, summary: str, task: TaskName, body: type[_Body], *, name: str, job_task: str
) -> Post:
    endpoint = Endpoint(
        name=name,
        task=task,
        body=body,
        answer=Images,
        plan=_plan,
        render=_whole,
        errors=OPENAI,
        with_file_bytes=True,
    )
    return Post(path, f"create_{name}", summary, (endpoint,), tag="openai", job_task=job_task)


DIALECT = Dialect(
    (
        _post(
            "/v1/images/generations",
            "Pictures of a prompt.",
            "text-to-image",
            GenerationRequest,
            name="image",
            job_task="make_images",
        ),
        _post(
            "/v1/images/edits",
            "Pictures of a prompt that begin with another picture.",
            "image-to-image",
            EditRequest,
            name="image_edit",
            job_task="edit_image",
        ),
        _post(
            "/v1/images/variations",
            "Pictures like another picture.",
            "image-to-image",
            VariationRequest,
            name="image_variation",
            job_task="vary_image",
        ),
    )
)
