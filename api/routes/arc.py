"""`/v1/puzzles/arc`: the test inputs of an ARC task in, attempts at their outputs out.

Each input is a job for each augmentation, all of one request, so that they are spread over workers
and end together.
"""

from collections.abc import Sequence

from api.endpoints.endpoint import Endpoint, Post, TaskPlan
from api.schemas.arc import ArcRequest, ArcResponse, arc_response
from api.stream.request_events import Outcome
from api.submit.limits import Limits
from api.submit.request_record import SubmittedWork
from shared.messages import ModelInfo


def _plan(body: ArcRequest, model: ModelInfo, limits: Limits) -> TaskPlan:
    limits.check_count("test", len(body.test), "pairs")
    limits.check_count("train", len(body.checked), "pairs")
    limits.check_places("augmentations", body.num_jobs)
    return TaskPlan(body.tasks(), notes=body.notes())


def _whole(work: SubmittedWork, outcomes: Sequence[Outcome]) -> ArcResponse:
    return arc_response(work.record.model, work.record.notes, outcomes)


ARC = Endpoint(
    name="arc",
    task="solve",
    body=ArcRequest,
    answer=ArcResponse,
    plan=_plan,
    render=_whole,
)
POST = Post(
    "/v1/puzzles/arc",
    "solve_arc",
    "Attempts at the test inputs of an ARC task, by a vote over its augmentations.",
    (ARC,),
    tag="puzzles",
    job_task="arc",
)
