"""A request's depth reaches the worker from every endpoint, and `usage` tells what it says."""

from typing import Any

import httpx
import pytest

from api.schemas.echo import echo_tasks
from api.schemas.openai import CompletionRequest
from shared.messages import Depth, Generate, Read, Score
from tests.fixtures.api.echo_worker import EchoWorker

MESSAGES = [{"role": "user", "content": "a b"}]
TEXT: dict[str, dict[str, Any]] = {
    "/generate": {"prompts": ["a b"]},
    "/v1/completions": {"prompt": "a b"},
    "/v1/chat/completions": {"messages": MESSAGES},
    "/solve/math": {"problem": "a b"},
    "/api/inference": {"task": "text-generation", "inputs": "a b"},
}
SCORES: dict[str, dict[str, Any]] = {
    "/loglikelihood": {"prompts": ["a"], "continuations": ["b"]},
    "/loglikelihood_rolling": {"prompts": ["a"]},
}
DEPTHS: list[tuple[dict[str, Any], Depth]] = [
    ({"cycles": "2x1"}, Depth(cycles="2x1")),
    ({"max_steps": 3}, Depth(max_steps=3)),
    ({"effort": "low"}, Depth(effort="low")),
]


def depths_of(worker: EchoWorker) -> list[Depth | None]:
    """Return the depth of each job that the worker has got."""
    depths = []
    for job in worker.jobs:
        assert isinstance(job.task, Generate | Score)
        depths.append(job.task.depth)
    return depths


@pytest.mark.parametrize(("fields", "depth"), DEPTHS)
@pytest.mark.parametrize("path", [*TEXT, *SCORES])
async def test_it_reaches_the_worker(
    client: httpx.AsyncClient,
    worker: EchoWorker,
    path: str,
    fields: dict[str, Any],
    depth: Depth,
) -> None:
    body = (TEXT | SCORES)[path]
    sent = body | fields
    if path == "/api/inference":
        sent = body | {"options": fields}
    for each in (body, sent):
        answer = await client.post(path, json=each)
        assert answer.status_code == 200, answer.text

    assert depths_of(worker) == [None, depth]


@pytest.mark.parametrize("path", [path for path in TEXT if path != "/solve/math"])
async def test_usage_tells_it(client: httpx.AsyncClient, worker: EchoWorker, path: str) -> None:
    body = TEXT[path]

    async def usage(fields: dict[str, Any]) -> dict[str, Any]:
        sent = {"options": fields} if path == "/api/inference" else fields
        answer = (await client.post(path, json=body | sent)).json()
        numbers: dict[str, Any] = answer["usage"]
        return numbers

    plain = await usage({})
    assert "cycles" not in plain
    assert "max_steps" not in plain
    assert await usage({"cycles": "2x1"}) == plain | {"cycles": "2x1"}
    assert await usage({"max_steps": 3}) == plain | {"max_steps": 3}


async def test_so_does_the_end_of_a_stream(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    body = {"prompt": "a b", "stream": True, "stream_options": {"include_usage": True}}
    text = (await client.post("/v1/completions", json=body | {"cycles": "2x2"})).text
    assert '"cycles":"2x2"' in text


async def test_openais_name_of_it(client: httpx.AsyncClient, worker: EchoWorker) -> None:
    for effort in ("high", "none", None):
        body = {"messages": MESSAGES, "reasoning_effort": effort}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200

    assert depths_of(worker) == [Depth(effort="high"), None, None]

    body = {"messages": MESSAGES, "reasoning_effort": "minimal"}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "reasoning_effort"


def test_a_prompt_that_is_read_has_the_depth_of_its_answer() -> None:
    fields = {"prompt": [[1, 2]], "echo": True, "logprobs": 1, "cycles": "2x1"}
    body = CompletionRequest.model_validate(fields)
    answered, read = echo_tasks(body, max_tokens=2)
    assert isinstance(read, Read)
    assert answered.depth == read.depth == Depth(cycles="2x1")
