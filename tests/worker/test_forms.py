"""Forms with files are read as bodies in JSON are."""

import json
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from tests.fixtures.one_shots import write_one_shot
from tests.fixtures.pictures import encoded, picture
from tests.fixtures.worker.fleets import fleet
from worker.engine.runner import RunnerOptions
from worker.runners.one_shot import OneShotRunner, load

TASK = {"task": "image-classification", "model_id": "t"}
PICTURE = encoded(picture())


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> OneShotRunner:
    path = tmp_path_factory.mktemp("pictures")
    write_one_shot("image-classification", path)
    return load(RunnerOptions(str(path), name="t"))


def form(data: bytes = PICTURE, field: str = "inputs", **fields: str) -> dict[str, Any]:
    """Return httpx's arguments for a form with a picture."""
    return {"files": {field: ("cat.png", data, "image/png")}, "data": TASK | fields}


async def post(client: httpx.AsyncClient, arguments: dict[str, Any], key: str = "") -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    return await client.post("/api/inference", headers=headers, **arguments)


async def test_a_form_is_answered_as_a_body_in_json(redis: Redis, runner: OneShotRunner) -> None:
    async with fleet(redis, runner) as client:
        by_form = await post(client, form(options='{"top_k": 2}'))
        assert by_form.status_code == 200, by_form.text
        [file] = (await client.get("/v1/files")).json()["data"]
        body = TASK | {"inputs": file["id"], "options": {"top_k": 2}}
        in_json = await client.post("/api/inference", json=body)
        other_name = await post(client, form(field="image", options='{"top_k": 2}'))
        text = await client.post(
            "/api/inference", files={"inputs": (None, "hello")}, data={"task": "echo"}
        )

    assert (file["filename"], file["media_type"]) == ("cat.png", "image/png")
    labels = by_form.json()["result"]["labels"]
    assert len(labels) == 2
    assert in_json.json()["result"]["labels"] == labels
    assert other_name.json()["result"]["labels"] == labels
    assert text.json()["result"]["echo"] == "hello", text.text


async def test_a_form_is_streamed(redis: Redis, runner: OneShotRunner) -> None:
    async with fleet(redis, runner) as client:
        answer = await client.post("/api/inference/stream", **form())
    assert answer.status_code == 200, answer.text
    assert "event: done" in answer.text


async def test_equal_forms_with_a_key_are_one_request(redis: Redis, runner: OneShotRunner) -> None:
    """The boundaries differ. The file may be gone and come again, with another id."""
    async with fleet(redis, runner) as client:
        first = await post(client, form(), key="k")
        [file] = (await client.get("/v1/files")).json()["data"]
        await client.delete(f"/v1/files/{file['id']}")
        again = await post(client, form(), key="k")
        other = await post(client, form(encoded(picture(seed=5))), key="k")
    assert first.status_code == again.status_code == 200, again.text
    assert again.headers["X-Job-Id"] == first.headers["X-Job-Id"]
    assert other.status_code == 409, other.text


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (form(b""), 400, "inputs: expected at least one byte"),
        (form(b"no picture"), 400, "expected a picture"),
        (form(field="picture"), 400, "picture: expected files in parts of the name inputs or"),
        (form(options="{"), 400, "options: expected an object in JSON"),
        (form(options="[1]"), 422, "options"),
        (form(options='{"top_k": 0}'), 422, "top_k"),
        ({"data": TASK, "files": {"model_id": (None, "t")}}, 422, "inputs"),
        ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "boundary"),
        ({"files": [("inputs", PICTURE), ("inputs", PICTURE)], "data": TASK}, 422, "inputs"),
    ],
)
async def test_forms_that_are_refused(
    redis: Redis, runner: OneShotRunner, arguments: dict[str, Any], status: int, words: str
) -> None:
    async with fleet(redis, runner) as client:
        answer = await client.post("/api/inference", **arguments)
        files = (await client.get("/v1/files")).json()["data"]
    assert answer.status_code == status, answer.text
    assert words in json.dumps(answer.json()["error"]), answer.text
    assert len(files) <= 1


async def test_a_form_counts_once_against_a_rate(redis: Redis, runner: OneShotRunner) -> None:
    async with fleet(
        redis, runner, api_keys="k", endpoint_rate_limits="/api/inference=3/60"
    ) as client:
        client.headers["Authorization"] = "Bearer k"
        codes = [(await post(client, form())).status_code for _ in range(4)]
    assert codes == [200, 200, 200, 429]


async def test_a_form_may_be_as_large_as_an_upload(redis: Redis, runner: OneShotRunner) -> None:
    """Bodies in JSON have a smaller bound, and those that hold no files a smaller one still."""
    large = encoded(picture(300, 200))
    limits = {
        "max_body_bytes": 2000,
        "max_inline_bytes": 4000,
        "max_upload_bytes": len(large) + 2000,
    }
    async with fleet(redis, runner, **limits) as client:
        taken = await post(client, form(large))
        refused = await post(client, form(large + bytes(4000)))
        json_body = await client.post("/api/inference", json=TASK | {"inputs": "A" * 5000})
        inline = await client.post("/api/inference", json=TASK | {"inputs": "A" * 3000})
        prompt = await client.post("/v1/completions", json={"prompt": "A" * 3000})
        part = {"type": "image_url", "image_url": {"url": "A" * 3000}}
        chat = {"messages": [{"role": "user", "content": [part]}]}
        dialogue = await client.post("/v1/chat/completions", json=chat)
        job = await client.post("/v1/jobs", json=chat | {"task": "chat"})
    assert taken.status_code == 200, taken.text
    assert inline.status_code == 400, "it is read"
    assert prompt.status_code == 413
    for with_picture in (dialogue, job):
        assert with_picture.status_code == 400, "it is read"
    assert refused.status_code == json_body.status_code == 413
