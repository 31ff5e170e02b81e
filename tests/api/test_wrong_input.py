"""Every way to be wrong, on every endpoint that creates work.

The answer has the right status and the dialect's shape. Its message names the field and says what
was expected. Wrong values of single fields are in `test_validation.py`."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.fixtures.api.errors import read_error
from tests.fixtures.api.standing import JobSnapshot, standing
from tests.fixtures.api.wrong_fields import BOTH, EMPTY, MISSING, RANGE, RIGHT, TYPE, WRONG
from tests.fixtures.posts import creating
from tests.fixtures.redis_server import RedisServer

KEY = {"Authorization": "Bearer right"}
JSON = {"Content-Type": "application/json"}
MOST_BYTES = 1 << 20
DEEP: list[Any] = []
for _ in range(300):
    DEEP = [DEEP]

ONE_WAY = RIGHT.keys() - {
    "/generate",
    "/generate_stream",
    "/tokenize",
    "/v1/puzzles/solve",
    "/v1/jobs",
}
"""Endpoints that take their input in one field only."""
MAY_BE_EMPTY = {"/detokenize"}

ROWS_OF_ALL = []
for endpoint, rows_of_kinds in WRONG.items():
    for kind, rows in rows_of_kinds.items():
        for number, (changes, named, expected) in enumerate(rows):
            case = f"{endpoint} {kind} {number}"
            ROWS_OF_ALL.append(pytest.param(endpoint, changes, named, expected, id=case))


@pytest.fixture(scope="module")
def fleet(redis_server: RedisServer) -> Iterator[JobSnapshot]:
    limits = {"max_body_bytes": MOST_BYTES, "max_inline_bytes": MOST_BYTES}
    with standing(redis_server, api_keys="right", **limits) as fleet:
        yield fleet
        assert fleet.worker.jobs == [], "something wrong became work"


def test_every_kind_is_tried_on_every_endpoint() -> None:
    """The tables have every route of the app that creates work."""
    paths = {route.path for route in creating()}
    assert RIGHT.keys() == paths
    assert WRONG.keys() == paths
    for path, kinds in WRONG.items():
        assert {MISSING, TYPE, RANGE} <= kinds.keys()
        assert (BOTH in kinds) == (path not in ONE_WAY)
        assert (EMPTY in kinds) == (path not in MAY_BE_EMPTY)


def post(
    fleet: JobSnapshot, path: str, content: bytes, key: dict[str, str] = KEY
) -> httpx.Response:
    return fleet.post(path, content=content, headers=JSON | key)


def form_of(path: str, body: Any) -> str:
    """Return the form in which a path's dialect writes its errors."""
    if path == "/" or (path.startswith("/generate") and "inputs" in (body or {})):
        return "tgi"
    if path.startswith("/api/"):
        return "inference"
    if path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/moderations"):
        return "openai"
    if path.startswith(("/v1/audio/", "/v1/images/")):
        return "openai"
    return "plain"


def message_and_field(
    path: str, answer: httpx.Response, body: Any = None
) -> tuple[str, str | None]:
    """Check that an error has the dialect's form. Return its message and the field at fault."""
    error = read_error(answer)
    assert error.form == form_of(path, body)
    if error.form == "tgi":
        assert error.code == "validation"
    return error.message, error.field


def refused(path: str) -> int:
    """Return the status code for a wrong body (X7)."""
    return 422 if path.startswith("/api/") else 400


@pytest.mark.parametrize(("path", "changes", "named", "expected"), ROWS_OF_ALL)
def test_a_wrong_field(
    fleet: JobSnapshot, path: str, changes: dict[str, Any], named: str, expected: str
) -> None:
    body = RIGHT[path] | changes
    for name, value in changes.items():
        if value is None:
            body.pop(name)

    answer = post(fleet, path, json.dumps(body).encode())

    assert answer.status_code == refused(path)
    message, field = message_and_field(path, answer, body)
    assert message.startswith(f"{named}: {expected}")
    # Only TGI's errors, which are plain text, have no field.
    if field is None:
        assert isinstance(answer.json()["error"], str)
    else:
        top_level_name = named.partition("[")[0].partition(".")[0]
        assert field == top_level_name


@pytest.mark.parametrize("path", RIGHT)
def test_a_field_that_is_nested_deeply(fleet: JobSnapshot, path: str) -> None:
    [name, *_] = RIGHT[path]
    answer = post(fleet, path, json.dumps(RIGHT[path] | {name: DEEP}).encode())

    assert answer.status_code == refused(path)
    message, _ = message_and_field(path, answer)
    assert message.startswith(name)
    assert ": expected " in message


BODIES = {
    "not UTF-8": (b'{"prompts": ["\xff"], "prompt": "\xff"}', "this is not UTF-8"),
    "deep": (b"[" * 100_000, "this is nested too deeply"),
    "deep object": (b'{"a":' * 100_000, "this is nested too deeply"),
    "long number": (b'{"seed": ' + b"1" * 5000 + b"}", "this has a number of too many digits"),
    "cut off": (
        b'{"prompts": ["a"',
        "this is not valid JSON: Expecting ',' delimiter at character 16",
    ),
    "no JSON": (b"prompts=a", "this is not valid JSON"),
    "nothing": (b"", "with Content-Type: application/json"),
    "list": (b"[1]", "with Content-Type: application/json"),
    "null": (b"null", "with Content-Type: application/json"),
}


@pytest.mark.parametrize("path", RIGHT)
@pytest.mark.parametrize("kind", BODIES)
def test_a_body_that_is_no_json_object(fleet: JobSnapshot, path: str, kind: str) -> None:
    content, reason = BODIES[kind]
    answer = post(fleet, path, content)

    assert answer.status_code == refused(path)
    message, field = message_and_field(path, answer)
    assert message.startswith("Expected a JSON object as the body")
    assert reason in message
    assert field is None


@pytest.mark.parametrize("path", RIGHT)
def test_a_body_of_another_type(fleet: JobSnapshot, path: str) -> None:
    answer = fleet.post(path, data={"prompts": "a"}, headers=KEY)
    assert answer.status_code == refused(path)
    message, _ = message_and_field(path, answer)
    assert message == "Expected a JSON object as the body, with Content-Type: application/json."


@pytest.mark.parametrize("path", RIGHT)
def test_a_body_of_ten_megabytes(fleet: JobSnapshot, path: str) -> None:
    [name, *_] = RIGHT[path]
    answer = post(fleet, path, json.dumps(RIGHT[path] | {name: "x" * 10_000_000}).encode())
    assert answer.status_code == 413
    message, _ = message_and_field(path, answer)
    assert message == f"Expected a body of at most {MOST_BYTES} bytes; this is larger."


@pytest.mark.parametrize("path", RIGHT)
def test_an_unknown_model(fleet: JobSnapshot, path: str) -> None:
    answer = post(fleet, path, json.dumps(RIGHT[path] | {"model": "nobody"}).encode())
    assert answer.status_code == 404
    message, field = message_and_field(path, answer)
    expected = "model: 'nobody' does not exist; expected one of those that GET /v1/models lists."
    assert message == expected
    if path == "/":
        assert field is None
    else:
        assert field == "model"


@pytest.mark.parametrize("path", RIGHT)
@pytest.mark.parametrize(
    ("key", "beginning"),
    [
        ({}, "Expected an API key, in Authorization: Bearer KEY or X-API-Key: KEY."),
        ({"X-API-Key": "wrong"}, "The API key is not known"),
        ({"Authorization": "Bearer wrong"}, "The API key is not known"),
    ],
)
def test_a_bad_key(fleet: JobSnapshot, path: str, key: dict[str, str], beginning: str) -> None:
    answer = post(fleet, path, json.dumps(RIGHT[path]).encode(), key)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, 'Bearer realm="aios"')
    message, _ = message_and_field(path, answer)
    assert message.startswith(beginning)
