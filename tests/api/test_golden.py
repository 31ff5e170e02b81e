"""Each dialect to the letter: requests and their answers as its specification has them, for
whatever creates work."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from api.routes.inference_tasks import BODIES, name_of
from tests.api.golden import REQUEST_ID, Pair, media_type, pairs, told
from tests.fixtures.api.frames import frames
from tests.fixtures.api.standing import JobSnapshot, standing
from tests.fixtures.posts import creating
from tests.fixtures.redis_server import RedisServer

PAIRS = pairs()
JSON = "application/json"
EVENTS = "text/event-stream"
OPENAI_TYPES: dict[tuple[str, str], type[BaseModel]] = {
    ("/v1/completions", JSON): Completion,
    ("/v1/chat/completions", JSON): ChatCompletion,
    ("/v1/chat/completions", EVENTS): ChatCompletionChunk,
}
"""Where the official types are as the wire is; in a completion's chunks they forbid the null that
OpenAI sends."""


@pytest.fixture(scope="module")
def fleet(redis_server: RedisServer) -> Iterator[JobSnapshot]:
    with standing(redis_server) as fleet:
        yield fleet


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_request_and_its_answer(fleet: JobSnapshot, pair: Pair) -> None:
    headers = {"X-Request-Id": REQUEST_ID} | pair.headers
    answer = fleet.request(pair.method, pair.path, json=pair.body, headers=headers)
    assert (answer.status_code, media_type(answer)) == (pair.status, pair.media_type), answer.text
    assert told(answer) == pair.expected
    kind = OPENAI_TYPES.get((pair.path, pair.media_type))
    if kind is not None and answer.status_code == 200:
        payloads = (
            [answer.json()]
            if pair.media_type == JSON
            else [frame.json for frame in frames(answer)[:-1]]
        )
        for payload in payloads:
            kind.model_validate(payload, strict=True)


def test_every_form_of_every_answer_has_a_pair(fleet: JobSnapshot) -> None:
    """By the app's own route table, and by what its document says each route sends: JSON, events,
    bare text."""
    document = fleet.request("GET", "/openapi.json").json()
    found = {(pair.path, pair.media_type) for pair in PAIRS if pair.status == 200}
    for route in creating():
        promised = document["paths"][route.path]["post"]["responses"]["200"]["content"]
        assert {(route.path, form) for form in promised} <= found, (
            "a form of an answer without a golden pair"
        )


def test_every_shape_and_task_has_a_pair() -> None:
    """Where one path takes several kinds of body."""
    bodies: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for pair in PAIRS:
        if pair.status == 200:
            bodies[pair.path, pair.media_type].append(pair.body)
    for form in (("/generate", JSON), ("/generate_stream", EVENTS)):
        assert {"prompts", "prompt", "inputs"} <= {key for body in bodies[form] for key in body}
    asked = bodies["/api/inference", JSON]
    assert {name_of(body.get("task"), body.get("pipeline_tag")) for body in asked} == set(BODIES)
