"""Turn an error into an answer: status, headers, and a body in the dialect of the path.

The one place that knows how FastAPI, Starlette and Redis report trouble. Bodies say which field was
wrong and what was expected. They never carry a stack or a prompt.
"""

import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.http.problem import Problem, problem_of
from api.http.request_state import RequestState, request_state_of
from shared.errors import BrokerUnavailable, ClientGone, FleetError, InvalidRequest
from shared.queue.broker import UNAVAILABLE

_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 400: "invalid_request"}
_SHOWN_PROBLEMS = 3
_EXPECTED_BODY = "Expected a JSON object as the body"
_UNREADABLE: dict[type, str] = {
    UnicodeDecodeError: "this is not UTF-8",
    RecursionError: "this is nested too deeply",
    ValueError: "this has a number of too many digits",
}
"""Messages for bodies that cannot be read, by the cause of FastAPI's error, which tells no more."""
_EXPECTED = {
    "missing": "this field is required",
    "bool_parsing": "expected a boolean",
    "model_type": "expected an object",
    "model_attributes_type": "expected an object",
    "dict_type": "expected an object",
}
"""Messages by pydantic's type of error, where its own words are about Python."""
_NO_OBJECT = ("missing", "model_attributes_type", "dict_type")
"""pydantic's types of error for a whole body that is absent, or no JSON object."""


class ClientDisconnected(ClientGone):
    """The caller has closed the connection; nobody is left to be told."""


def render(problem: Problem, request_state: RequestState) -> JSONResponse:
    """Render a problem in the format of the path's dialect.

    Where dialects share a path, it is that of the body's dialect.
    """
    return JSONResponse(request_state.errors.body(problem), problem.status, dict(problem.headers))


def invalid_request(errors: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """Return an error that tells pydantic's errors as `field: what was expected`.

    They are joined by semicolons. The `field` is that of the first.
    """
    first = errors[0]
    if first["type"] == "json_invalid":
        where = f"{first['ctx']['error']} at character {first['loc'][-1]}"
        return InvalidRequest(f"{_EXPECTED_BODY}; this is not valid JSON: {where}.")
    if first["loc"] == ("body",) and first["type"] in _NO_OBJECT:
        return InvalidRequest(f"{_EXPECTED_BODY}, with Content-Type: application/json.")
    problems = []
    for error in errors[:_SHOWN_PROBLEMS]:
        path = _path_of(error)
        problem = _expectation(error)
        problems.append(f"{path}: {problem}" if path else problem)
    field = first.get("ctx", {}).get("field")
    if not field:
        field = re.split(r"[.\[]", _path_of(first), maxsplit=1)[0]
    return InvalidRequest("; ".join(problems), field=field or None)


def _path_of(error: Mapping[str, Any]) -> str:
    """Return the path of a field in a body: `messages[0].content`."""
    path = ""
    for part in error["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != "body":
            path += f".{part}"
    return path.removeprefix(".")


def _expectation(error: Mapping[str, Any]) -> str:
    """Return what was expected: in our own words, or in pydantic's."""
    if error["type"] in _EXPECTED:
        return _EXPECTED[error["type"]]
    message: str = error["msg"]
    message = message.removeprefix("Value error, ")
    message = message.removesuffix(" after validation, not 0")
    return re.sub(r"^\w+ should (?:be|have) ", "expected ", message)


def _answer(request: Request, problem: Problem) -> Response:
    request_state = request_state_of(request.scope)
    request_state.error = problem.code
    return render(problem, request_state)


async def _on_fleet_error(request: Request, error: FleetError) -> Response:
    return _answer(request, problem_of(error))


async def _on_invalid_body(request: Request, error: RequestValidationError) -> Response:
    return _refused(request, invalid_request(error.errors()))


def _refused(request: Request, error: InvalidRequest) -> Response:
    """Answer with the status that the dialect has for an invalid body."""
    status = request_state_of(request.scope).errors.invalid_body
    return _answer(request, replace(problem_of(error), status=status))


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    reason = _UNREADABLE.get(type(error.__cause__))
    if reason is not None:
        return _refused(request, InvalidRequest(f"{_EXPECTED_BODY}; {reason}."))
    code = "http_error"
    if error.status_code in _HTTP_CODES:
        code = _HTTP_CODES[error.status_code]
    elif error.status_code >= FleetError.status:
        code = FleetError.code
    problem = Problem(error.status_code, code, str(error.detail), None, error.headers or {})
    return _answer(request, problem)


async def _on_redis_away(request: Request, error: Exception) -> Response:
    return _answer(
        request, problem_of(BrokerUnavailable("Redis is not reachable.", retry_after_s=1))
    )


Handler = Callable[[Request, Any], Coroutine[Any, Any, Response]]

HANDLERS: dict[int | type[Exception], Handler] = {
    FleetError: _on_fleet_error,
    RequestValidationError: _on_invalid_body,
    HTTPException: _on_http_exception,
}
for _kind in UNAVAILABLE:
    HANDLERS[_kind] = _on_redis_away
