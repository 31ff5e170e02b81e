"""The formats of errors, by dialect.

A form that one dialect alone has may stand in the file of its rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from api.http.problem import Problem
from api.schemas.errors import ApiErrorBody, OpenAIErrorBody, PlainErrorBody, TgiErrorBody

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(frozen=True)
class ErrorFormat:
    """The format of a dialect's errors.

    `body` returns the JSON of an error, of type `schema`. `invalid_body` is the status of the
    answer to an invalid body.
    """

    body: Callable[[Problem], dict[str, Any]]
    schema: type[BaseModel]
    invalid_body: int = 400


def _with_job(error: dict[str, Any], problem: Problem) -> dict[str, Any]:
    body: dict[str, Any] = {"error": error}
    if problem.job_id is not None:
        body["id"] = problem.job_id
    return body


def _plain(problem: Problem) -> dict[str, Any]:
    error = {"code": problem.code, "message": problem.message, "field": problem.field}
    return _with_job(error, problem)


def _openai(problem: Problem) -> dict[str, Any]:
    if problem.status >= 500:
        kind = "server_error"
    else:
        kind = _OPENAI_TYPES.get(problem.status, "invalid_request_error")
    error = {
        "message": problem.message,
        "type": kind,
        "param": problem.field,
        "code": problem.code,
    }
    return _with_job(error, problem)


def _api(problem: Problem) -> dict[str, Any]:
    details = {}
    if problem.field:
        details["field"] = problem.field
    error = {"code": problem.code, "message": problem.message, "details": details}
    return _with_job(error, problem)


def _tgi(problem: Problem) -> dict[str, Any]:
    if problem.status in (429, 503):
        kind = "overloaded"
    elif problem.status >= 500:
        kind = "generation"
    else:
        kind = "validation"
    return {"error": problem.message, "error_type": kind}


PLAIN = ErrorFormat(_plain, PlainErrorBody)
OPENAI = ErrorFormat(_openai, OpenAIErrorBody)
API = ErrorFormat(_api, ApiErrorBody, invalid_body=422)
TGI = ErrorFormat(_tgi, TgiErrorBody)
