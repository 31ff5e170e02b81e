"""A running fleet accepts every example of the OpenAPI document.

Its answers are those that the document shows.
"""

import json
import subprocess
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from api.batches.batch_posts import BATCH_POSTS
from scripts.tools.api_page import openapi
from tests.fixtures.e2e.example_fleet import EXPERIMENT, example_flags, serving_examples
from tests.fixtures.e2e.serving import AIOS

VOLATILE = {"id", "created", "generation_time", "cached_tokens"}
"""Fields that differ from one answer to the next."""
OF_THE_RUN = {"correlation_id", "metrics"}
"""Fields that differ between two answers, though an example may show them."""
JSON = "application/json"


class Operation(NamedTuple):
    """An operation that takes a body, with its examples.

    `bare` names the shapes of its body without an example. `answers` are the bodies shown under
    `status`, the status of success.
    """

    path: str
    requests: list[Any]
    bare: list[str]
    status: int
    answers: list[Any]


def shapes_of(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the schemas that a value may have, without references and unions."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return shapes_of(openapi()["components"]["schemas"][name])

    shapes = []
    for part in schema.get("anyOf", []) + schema.get("oneOf", []):
        shapes += shapes_of(part)
    return shapes or [schema]


def examples_of(shapes: list[dict[str, Any]]) -> list[Any]:
    examples = []
    for shape in shapes:
        examples += shape.get("examples", [])
    return examples


def operations() -> Iterator[Operation]:
    """Yield the operations that take a JSON body."""
    for path, methods in openapi()["paths"].items():
        for operation in methods.values():
            if JSON in operation.get("requestBody", {}).get("content", {}):
                yield operation_of(path, operation)


def operation_of(path: str, operation: dict[str, Any]) -> Operation:
    shapes = shapes_of(operation["requestBody"]["content"][JSON]["schema"])
    bare = [str(shape) for shape in shapes if not shape.get("examples")]

    status = min(int(code) for code in operation["responses"] if code.isdigit())
    if path == "/v1/jobs":
        # Its 200 is for a caller who waits; without that, 202 is the status of success.
        status = 202
    content = operation["responses"][str(status)].get("content", {})
    answer_schema = content.get(JSON, {}).get("schema", {})

    return Operation(
        path=path,
        requests=examples_of(shapes),
        bare=bare,
        status=status,
        answers=examples_of(shapes_of(answer_schema)),
    )


OPERATIONS = list(operations())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    """Serve the default model and the models that examples name."""
    with serving_examples(folder) as fleet:
        headers = {"X-API-Key": "boss"}
        with httpx.Client(base_url=fleet.url, timeout=60, headers=headers) as http:
            yield http


def fits(answer: Any, example: Any, volatile: Set[str] = VOLATILE) -> bool:
    """Compare without the volatile fields; a field that is null may be left out."""
    if isinstance(example, dict):
        for name in (answer.keys() | example.keys()) - volatile:
            if not fits(answer.get(name), example.get(name), volatile):
                return False
        return True
    if isinstance(example, list):
        if len(answer) != len(example):
            return False
        for answer_part, example_part in zip(answer, example, strict=True):
            if not fits(answer_part, example_part, volatile):
                return False
        return True
    if isinstance(example, float):
        return bool(answer == pytest.approx(example, rel=1e-3))
    return bool(answer == example)


def path_of(operation: Operation) -> str:
    return operation.path


def test_there_is_an_example_for_every_body() -> None:
    assert len(OPERATIONS) >= 15
    num_answers = 0
    for operation in OPERATIONS:
        assert operation.bare == [], operation.path
        num_answers += len(operation.answers)
    assert num_answers >= 10


@pytest.mark.parametrize("operation", OPERATIONS, ids=path_of)
def test_examples_are_accepted_and_answered_as_shown(
    client: httpx.Client, operation: Operation
) -> None:
    bodies = []
    for example in operation.requests:
        body = example
        if operation.path == "/v1/feedback":
            # Only an answer of an experiment may be rated, and none has the id of the example.
            rated = client.post("/v1/completions", json={"model": EXPERIMENT, "prompt": "a"})
            body = example | {"id": rated.json()["id"]}
        if operation.path == "/v1/batches":
            # The file of the example is not there.
            line = {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "a"}}
            file = {"file": ("a.jsonl", json.dumps(line).encode())}
            uploaded = client.post("/v1/files", files=file, data={"purpose": "batch"})
            body = example | {"input_file_id": uploaded.json()["id"]}
        path = operation.path
        if path.startswith("/v1/webhook_endpoints/"):
            url = "https://name.invalid/hooks"
            made = client.post("/v1/webhook_endpoints", json={"url": url})
            path = path.replace("{id}", made.json()["id"])
        answer = client.post(path, json=body)
        assert answer.status_code == operation.status, (body, answer.text)
        if answer.headers["content-type"] == JSON:
            bodies.append(answer.json())
        elif answer.headers["content-type"].startswith("audio/"):
            assert answer.content.startswith(b"RIFF")
        else:
            assert '"error"' not in answer.text, (body, answer.text)
            assert "data: " in answer.text, (body, answer.text)

    for example in operation.answers:
        assert any(fits(body, example) for body in bodies), (json.dumps(example), bodies)


def test_a_job_of_every_example_is_done(client: httpx.Client) -> None:
    """A job that the front accepts is not refused later."""
    [jobs] = [operation for operation in OPERATIONS if operation.path == "/v1/jobs"]
    for body in jobs.requests:
        answer = client.post(jobs.path, json=body, headers={"Prefer": "wait=30"})
        assert answer.status_code == 200, (body, answer.text)


def test_batch_run_answers_as_the_fleet_does(client: httpx.Client, folder: Path) -> None:
    """`aios batch run` has models in its own process, or sends every line to the fleet."""
    lines = []
    for operation in OPERATIONS:
        if operation.path not in BATCH_POSTS:
            continue
        for number, body in enumerate(operation.requests):
            if body.get("model") == EXPERIMENT or body.get("stream"):
                continue
            name = f"{operation.path} {number}"
            lines.append({"custom_id": name, "url": operation.path, "body": body})
    assert len({line["url"] for line in lines}) >= 20
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    answers = {}
    fleet_flags = ["--url", str(client.base_url), "--api-key", "boss"]
    sides = {"fleet": fleet_flags, "here": example_flags(folder)}
    for name, flags in sides.items():
        out = folder / f"{name}.jsonl"
        command = [*AIOS, "batch", "run", str(folder / "in.jsonl"), str(out), *flags]
        subprocess.run(command, timeout=120, check=True)
        answers[name] = [json.loads(text) for text in out.read_text().splitlines()]
    for line, here, fleet in zip(lines, answers["here"], answers["fleet"], strict=True):
        assert here["custom_id"] == fleet["custom_id"] == line["custom_id"]
        bodies = here["response"]["body"], fleet["response"]["body"]
        assert here["response"]["status_code"] == 200
        assert fits(*bodies, VOLATILE | OF_THE_RUN), bodies
