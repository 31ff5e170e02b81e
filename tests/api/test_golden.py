"""Golden pairs of a request and its answer, as each dialect's specification has them, for every
route that creates work."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from api.routes.inference_tasks import BODIES, name_of
from tests.api.golden import REQUEST_ID, Pair, comparable, media_type, pairs
from tests.fixtures.api.frames import frames
from tests.fixtures.api.standing import JobSnapshot, standing
from tests.fixtures.posts import NOT_JSON, creating
from tests.fixtures.redis_server import RedisServer

PAIRS = pairs()
JSON = "application/json"
EVENTS = "text/event-stream"
OPENAI_TYPES: dict[tuple[str, str], type[BaseModel]] = {
    ("/v1/completions", JSON): Completion,
    ("/v1/chat/completions", JSON): ChatCompletion,
    ("/v1/chat/completions", EVENTS): ChatCompletionChunk,
}
"""OpenAI's types where they are as the wire is. Its type of a completion's chunk is left out: it
forbids the null that OpenAI sends."""


@pytest.fixture(scope="module")
def fleet(redis_server: RedisServer) -> Iterator[JobSnapshot]:
    with standing(redis_server) as fleet:
        yield fleet


def payloads_of(answer: httpx.Response) -> list[Any]:
    """Return the JSON of a whole answer, or of each event before a stream's [DONE]."""
    if media_type(answer) == JSON:
        return [answer.json()]
    *chunks, _done = frames(answer)
    return [chunk.json for chunk in chunks]


def bodies_of(path: str, form: str) -> list[dict[str, Any]]:
    """Return the bodies of all pairs of a path that are answered well, in this media type."""
    bodies = []
    for pair in PAIRS:
        if pair.status == 200 and pair.path == path and pair.media_type == form:
            bodies.append(pair.body)
    return bodies


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_request_and_its_answer(fleet: JobSnapshot, pair: Pair) -> None:
    headers = {"X-Request-Id": REQUEST_ID} | pair.headers
    answer = fleet.request(pair.method, pair.path, json=pair.body, headers=headers)

    assert (answer.status_code, media_type(answer)) == (pair.status, pair.media_type), answer.text
    assert comparable(answer) == pair.expected

    openai_type = OPENAI_TYPES.get((pair.path, pair.media_type))
    if openai_type is not None and answer.status_code == 200:
        for payload in payloads_of(answer):
            openai_type.model_validate(payload, strict=True)


def test_every_form_of_every_answer_has_a_pair(fleet: JobSnapshot) -> None:
    """The app's route table has the routes, and its document the media types of their answers:
    JSON, events, bare text."""
    document = fleet.request("GET", "/openapi.json").json()

    for route in creating():
        if route.path in NOT_JSON:
            # What it sends is compared in tests/worker/test_audio_endpoints.py.
            continue
        content = document["paths"][route.path]["post"]["responses"]["200"]["content"]
        for form in content:
            assert bodies_of(route.path, form), f"{route.path} as {form} has no golden pair"


def test_every_shape_and_task_has_a_pair() -> None:
    """Paths that take several kinds of body have a pair for each kind."""
    for path, form in (("/generate", JSON), ("/generate_stream", EVENTS)):
        fields: set[str] = set()
        for body in bodies_of(path, form):
            fields.update(body)
        assert {"prompts", "prompt", "inputs"} <= fields

    tasks = set()
    for body in bodies_of("/api/inference", JSON):
        tasks.add(name_of(body.get("task"), body.get("pipeline_tag")))
    assert tasks == set(BODIES)
