"""Errors as values: status, code, message and headers, before a dialect formats them."""

from collections.abc import Mapping
from dataclasses import dataclass

from api.http.encodings import ACCEPTED
from shared.errors import FleetError, Unauthorized, UnsupportedEncoding

_REJECTED = (409, 429, 503)


@dataclass(frozen=True)
class Problem:
    """An error as a client will see it.

    `field` is the input at fault. `job_id` is that of a request which goes on all the same.
    """

    status: int
    code: str
    message: str
    field: str | None
    headers: Mapping[str, str]
    job_id: str | None = None


def problem_of(error: FleetError) -> Problem:
    """Return the error as a value, with the headers that belong to it."""
    headers = {}
    if error.retry_after_s:
        headers["Retry-After"] = str(error.retry_after_s)
    elif error.status in (429, 503):
        headers["Retry-After"] = "1"
    if error.status == Unauthorized.status:
        headers["WWW-Authenticate"] = 'Bearer realm="aios"'
    if isinstance(error, UnsupportedEncoding):
        headers["Accept-Encoding"] = ACCEPTED
    if error.status in _REJECTED:
        headers["X-Reject-Reason"] = error.code
    if error.job_id is not None:
        headers["Location"] = f"/v1/jobs/{error.job_id}"
    return Problem(error.status, error.code, error.message, error.field, headers, error.job_id)
