"""Answers of routes besides their own bodies, for the OpenAPI document: errors, `202`, streams.

`api/http/errors.py` writes the errors. The range `4XX` stands for invalid bodies too, so FastAPI
does not add its own 422 to the document.
"""

from functools import reduce
from operator import or_
from typing import Any, Literal

from pydantic import BaseModel, Field

from api.schemas.q_values import is_absent

Responses = dict[int | str, dict[str, Any]]

_REFUSED = (
    "The request is refused: 400 wrong input, 401 and 403 no key or a key that is not for this, "
    "404 unknown model or job, 409 an idempotency key of another body, 413 too large, 415 a "
    "Content-Encoding that is not understood, 429 too much or too often (`Retry-After`)."
)
_FAILED = (
    "The fleet cannot do it: 503 no worker, no room before the deadline, or Redis is away "
    "(`Retry-After`); 504 the deadline has passed; 500 anything else. `X-Reject-Reason` has the "
    "code of what was not begun."
)
JobId = Field(None, exclude_if=is_absent, description="Of work that goes on and can be asked for.")


class PlainError(BaseModel):
    """An error. `field` is the input at fault."""

    code: str
    message: str
    field: str | None


class PlainErrorBody(BaseModel):
    error: PlainError
    id: str | None = JobId


class OpenAIError(BaseModel):
    """An error. `param` is the input at fault."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIErrorBody(BaseModel):
    error: OpenAIError
    id: str | None = JobId


class ApiError(BaseModel):
    """An error. `details` has the `field` at fault, if there is one."""

    code: str
    message: str
    details: dict[str, str]


class ApiErrorBody(BaseModel):
    error: ApiError
    id: str | None = JobId


class TgiErrorBody(BaseModel):
    error: str
    error_type: Literal["validation", "overloaded", "generation"]


class Accepted(BaseModel):
    """A request that nobody waits for. `GET /v1/jobs/{id}` tells more."""

    id: str
    state: str


def errors_of(*bodies: type[BaseModel]) -> Responses:
    """Return the responses of a route whose errors have one of these bodies."""
    body: Any = reduce(or_, bodies)
    return {
        "4XX": {"model": body, "description": _REFUSED},
        "5XX": {"model": body, "description": _FAILED},
    }


_JOB = {
    "job": "job_v1_jobs__id__get",
    "events": "events_v1_jobs__id__events_get",
    "cancel": "cancel_v1_jobs__id__delete",
}
JOB_LINKS = {
    name: {"operationId": operation, "parameters": {"id": "$response.body#/id"}}
    for name, operation in _JOB.items()
}
LATER: Responses = {
    202: {
        "model": Accepted,
        "description": "The caller did not want to wait: `Prefer`.",
        "links": JOB_LINKS,
    }
}
EVENTS: dict[str, Any] = {"text/event-stream": {}}
STREAM: Responses = {
    200: {"description": "The answer; with `stream` in events as it comes.", "content": EVENTS}
}
STREAM_OR_TEXT: Responses = {
    200: {
        "description": (
            "The answer; with `stream` as bare text as it comes, or in events for who accepts "
            "those."
        ),
        "content": EVENTS | {"text/plain": {}},
    }
}
FILE: Responses = {
    200: {"description": "The bytes of the file that was made.", "content": {"*/*": {}}}
}
PLAIN_TEXT: Responses = {
    200: {
        "description": "The answer; as plain text where the body asks for it.",
        "content": {"text/plain": {}},
    }
}
STREAM_OR_PLAIN_TEXT: Responses = {
    200: {
        "description": "The answer; as plain text or in events where the body asks for it.",
        "content": EVENTS | {"text/plain": {}},
    }
}
STREAM_ALONE: Responses = {
    200: {"description": "The answer in events as it comes.", "content": EVENTS}
}
