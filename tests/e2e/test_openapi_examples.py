"""Every example of the OpenAPI document is sent to a running fleet and accepted; shown answers are
those it gets."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import httpx
import pytest

from api.http.app import create_app
from shared.queue.broker import Broker, connect
from shared.settings.settings import SAMPLE_MODEL, Settings
from tests.fixtures.e2e.serving import serving
from tests.fixtures.worker.sapient_fixtures import Net, write_checkpoint

VOLATILE = {"id", "created", "generation_time", "cached_tokens"}
"""What differs from one answer to the next."""
JSON = "application/json"


class Operation(NamedTuple):
    """`answers` are the bodies shown under `status`, the one that says it went well; `bare` names
    the shapes that its body may have and of which there is no example."""

    path: str
    requests: list[Any]
    bare: list[str]
    status: int
    answers: list[Any]


@cache
def document() -> dict[str, Any]:
    broker = Broker(connect("redis://127.0.0.1:1"))  # never asked
    return create_app(Settings(), broker).openapi()


def shapes_of(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """All that it may be."""
    if "$ref" in schema:
        return shapes_of(document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    parts = schema.get("anyOf", []) + schema.get("oneOf", [])
    return [shape for part in parts for shape in shapes_of(part)] or [schema]


def examples_of(shapes: list[dict[str, Any]]) -> list[Any]:
    return [example for shape in shapes for example in shape.get("examples", [])]


def operations() -> Iterator[Operation]:
    """Those that take a body."""
    for path, methods in document()["paths"].items():
        for operation in methods.values():
            if JSON in operation.get("requestBody", {}).get("content", {}):
                status = min(int(code) for code in operation["responses"] if code.isdigit())
                status = 202 if path == "/v1/jobs" else status
                answer = (
                    operation["responses"][str(status)]
                    .get("content", {})
                    .get(JSON, {})
                    .get("schema", {})
                )
                shapes = shapes_of(operation["requestBody"]["content"][JSON]["schema"])
                bare = [str(shape) for shape in shapes if not shape.get("examples")]
                yield Operation(
                    path, examples_of(shapes), bare, status, examples_of(shapes_of(answer))
                )


OPERATIONS = list(operations())


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a fleet with the sample model, and the models that examples name."""
    sudoku = tmp_path_factory.mktemp("sudoku")
    write_checkpoint(
        sudoku,
        Net(halt_max_steps=2),
        filename="step_1",
        data_path="data/sudoku-extreme-1k-aug-1000",
    )
    models = {
        SAMPLE_MODEL.name: SAMPLE_MODEL,
        "classifier": "echo",
        "sudoku": sudoku,
        "tasks": "echo-task",
    }
    flags = [flag for name, path in models.items() for flag in ("--model", f"{name}={path}")]
    flags += ["--default-model", SAMPLE_MODEL.name, "--threads", "1", "--max-batch-size", "4"]
    flags += ["--admin-keys", "ops:boss"]
    headers = {"X-API-Key": "boss"}
    with (
        serving(*flags) as fleet,
        httpx.Client(base_url=fleet.url, timeout=60, headers=headers) as http,
    ):
        yield http


def fits(answer: Any, example: Any) -> bool:
    """Whether they are equal, apart from what is volatile. What is null may be left out."""
    if isinstance(example, dict):
        names = [name for name in answer.keys() | example.keys() if name not in VOLATILE]
        return all(fits(answer.get(name), example.get(name)) for name in names)
    if isinstance(example, list):
        return len(answer) == len(example) and all(map(fits, answer, example))
    return bool(
        answer == (pytest.approx(example, rel=1e-3) if isinstance(example, float) else example)
    )


def test_there_is_an_example_for_every_body() -> None:
    assert len(OPERATIONS) >= 15
    assert [(operation.path, operation.bare) for operation in OPERATIONS if operation.bare] == []
    assert sum(len(operation.answers) for operation in OPERATIONS) >= 10


@pytest.mark.parametrize("operation", OPERATIONS, ids=[operation.path for operation in OPERATIONS])
def test_examples_are_accepted_and_answered_as_shown(
    client: httpx.Client, operation: Operation
) -> None:
    told = []
    for body in operation.requests:
        answer = client.post(operation.path, json=body)
        assert answer.status_code == operation.status, (body, answer.text)
        if answer.headers["content-type"] == JSON:
            told.append(answer.json())
        else:
            assert '"error"' not in answer.text and "data: " in answer.text, (body, answer.text)
    for example in operation.answers:
        assert any(fits(body, example) for body in told), (json.dumps(example), told)


def test_a_job_of_every_example_is_done(client: httpx.Client) -> None:
    """What was accepted is not refused later."""
    [jobs] = [operation for operation in OPERATIONS if operation.path == "/v1/jobs"]
    for body in jobs.requests:
        answer = client.post(jobs.path, json=body, headers={"Prefer": "wait=30"})
        assert answer.status_code == 200, (body, answer.text)
