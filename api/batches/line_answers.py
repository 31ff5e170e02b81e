"""The lines of a batch's files of answers and of errors, in OpenAI's form.

Beside OpenAI's fields, each has the number of the line in the input.
"""

import json
from dataclasses import replace
from typing import Any

from api.batches.lines import BatchLine, LineFault
from api.http.error_format import ErrorFormat
from api.http.problem import problem_of
from shared.errors import FleetError
from shared.queue.batches import BatchEnding, LineAnswer, LineTokens

_NOT_RUN = {
    "cancelled": ("batch_cancelled", "The batch was cancelled before this line was run."),
    "expired": (
        "batch_expired",
        "The completion window of the batch was over before this line was run.",
    ),
    "failed": ("batch_failed", "The batch failed before this line was run."),
}


def completed_answer(
    batch_id: str,
    line: int,
    custom_id: str,
    *,
    request_id: str,
    body: bytes,
    tokens: LineTokens,
) -> LineAnswer:
    """Return the answer of a line that was done. `body` is JSON."""
    # The body is long, and JSON already.
    head = json.dumps(_head(batch_id, line, custom_id))[:-1]
    response = json.dumps({"status_code": 200, "request_id": request_id})[:-1]
    text = f'{head}, "response": {response}, "body": '.encode() + body + b'}, "error": null}'
    return LineAnswer(line, "completed", text, tokens)


def refused_answer(
    batch_id: str,
    line: BatchLine,
    *,
    request_id: str,
    error: FleetError,
    errors: ErrorFormat,
    status: int | None = None,
) -> LineAnswer:
    """Return the answer of a line whose request was refused or failed.

    `status` is in place of the error's own.
    """
    problem = problem_of(error)
    if status is not None:
        problem = replace(problem, status=status)
    return failed_answer(
        batch_id,
        line.number,
        line.custom_id,
        request_id=request_id,
        status=problem.status,
        body=errors.body(problem),
        error={"code": problem.code, "message": problem.message},
    )


def failed_answer(
    batch_id: str,
    line: int,
    custom_id: str,
    *,
    request_id: str,
    status: int,
    body: Any,
    error: dict[str, str],
) -> LineAnswer:
    """Return the answer of a line that got this status and body. `error` has a code and a message."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    whole = {**_head(batch_id, line, custom_id), "response": response, "error": error}
    return LineAnswer(line, "failed", json.dumps(whole).encode())


def fault_answer(batch_id: str, fault: LineFault) -> LineAnswer:
    """Return the answer of a line that is no request."""
    error = {"code": fault.code, "message": fault.message}
    head = _head(batch_id, fault.number, fault.custom_id)
    whole = {**head, "response": None, "error": error}
    return LineAnswer(fault.number, "failed", json.dumps(whole).encode())


def not_run(batch_id: str, line: int, custom_id: str | None, ending: BatchEnding) -> bytes:
    """Return what the file of errors tells of a line that was not run, as the batch ended so."""
    code, message = _NOT_RUN[ending]
    error = {"code": code, "message": message}
    whole = {**_head(batch_id, line, custom_id), "response": None, "error": error}
    return json.dumps(whole).encode()


def _head(batch_id: str, line: int, custom_id: str | None) -> dict[str, Any]:
    digits = batch_id.rpartition("_")[2]
    return {"id": f"batch_req_{digits}_{line}", "custom_id": custom_id, "line": line}
