"""The body of `/v1/jobs/{id}`, as the OpenAPI document tells it; `api/routes/jobs.py` writes it."""

from typing import Any, Literal

from pydantic import BaseModel

from api.schemas.errors import EVENTS, JOB_LINKS, PlainError, Responses
from api.schemas.usage import UsageBody
from api.stream.timings import Timings


class JobProgress(BaseModel):
    """The progress of a request: `done` of the `total` steps of its only job, or of its jobs.

    `total` is null where it is not known.
    """

    done: int
    total: int | None
    note: str


class JobStatus(BaseModel):
    """The state of a request.

    One that is done has a `result`. One that has ended otherwise has an `error` and, if it was to
    generate text, the `partial` answer. `queue_position` counts from 1; it and `starts_in_s` are
    null unless the request waits. `progress` is null unless the request is open, and for a single
    job that tells of none.
    """

    id: str
    object: Literal["job"]
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    task: str
    model: str
    created: int
    queue_position: int | None
    starts_in_s: float | None
    usage: UsageBody | None
    timings: Timings
    progress: JobProgress | None
    result: Any = None
    partial: Any = None
    error: PlainError | None = None


IN_TIME: Responses = {
    202: {"links": JOB_LINKS},
    200: {
        "description": "With `Prefer: wait=N`: the endpoint's own answer.",
        "content": {"application/json": {"schema": {}}, **EVENTS},
    },
}
FOLLOWED: Responses = {200: {"description": "The request's events.", "content": EVENTS}}
