"""Read the body of a batch's line as its endpoint reads that of a POST."""

import json
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from api.endpoints.endpoint import Post
from api.http.error_format import ErrorFormat
from api.http.errors import invalid_request
from shared.errors import FleetError, InvalidRequest


class InvalidBody(Exception):
    """A body that its endpoint cannot read. Its status is that of the dialect of `errors`."""

    def __init__(self, refusal: FleetError, errors: ErrorFormat) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.errors = errors


def read_body(post: Post, body: bytes) -> Any:
    """Return a body in JSON, parsed as that of a path's endpoint. Raise InvalidBody."""
    errors = post.errors
    try:
        fields = json.loads(body)
        if isinstance(fields, dict):
            errors = post.errors_of(fields)
        return _adapter(post.path, post.body_type).validate_python(fields)
    except ValidationError as error:
        raise InvalidBody(invalid_request(error.errors()), errors) from None
    except (ValueError, RecursionError) as error:
        refusal = InvalidRequest("body: expected an object in JSON.", field="body")
        raise InvalidBody(refusal, errors) from error


@cache
def _adapter(path: str, body_type: Any) -> TypeAdapter[Any]:
    """Return the reader of a path's bodies, which is slow to make."""
    return TypeAdapter(body_type)
