"""`/v1/batches`: every line is answered as its endpoint would, once, and told of in its place."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from redis.asyncio import Redis

from api.batches.batch_posts import BATCH_POSTS
from shared.access import Budget, Grant, Keyring, digest_of
from shared.messages import Failed
from shared.queue import keys
from shared.queue.batches import BatchClaim, Batches, BatchSpec, LineAnswer
from shared.queue.broker import Broker
from tests.fixtures.api.batching import ENDED, URL, Desk, advancing, batching, line, lines
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import live
from tests.fixtures.polling import until
from tests.fixtures.posts import POSTS

ANN = {"Authorization": "Bearer key-a"}
BOB = {"Authorization": "Bearer key-b"}


@pytest.fixture
async def desk(redis: Redis, able: EchoWorker, tmp_path: Path) -> AsyncIterator[Desk]:
    async with batching(redis, tmp_path / "artifacts") as desk:
        yield desk


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["custom_id"] for row in rows]


def codes(rows: list[dict[str, Any]]) -> dict[int, str]:
    return {row["line"]: row["error"]["code"] for row in rows}


async def test_lines_are_answered_in_their_order(
    desk: Desk, able: EchoWorker, redis: Redis
) -> None:
    made = await desk.create(lines(40))
    assert made["status"] == "validating"
    assert made["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert made["expires_at"] - made["created_at"] == 86_400

    batch = await desk.ended(made["id"])

    assert batch["status"] == "completed", batch
    assert batch["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
    # A prompt of three words is read, and said again.
    assert (batch["usage"]["input_tokens"], batch["usage"]["output_tokens"]) == (120, 120)
    assert batch["error_file_id"] is None
    for name in ("in_progress_at", "finalizing_at", "completed_at"):
        assert made["created_at"] <= batch[name] <= made["created_at"] + 60

    rows = await desk.file(batch["output_file_id"])
    assert names(rows) == [f"line-{number}" for number in range(40)]
    assert [row["line"] for row in rows] == list(range(1, 41))
    body = rows[7]["response"]["body"]
    assert rows[7]["response"]["status_code"] == 200
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == "line-7 and more"
    assert {job.priority for job in able.jobs} == {"bulk"}
    assert len(able.jobs) == 40

    # What Redis knows of the lines expires soon.
    async for name in redis.scan_iter("aios:{00}:*"):
        if name.split(b":")[2] in (b"request", b"key", b"job", b"log"):
            assert await redis.ttl(name) <= 60

    file = (await desk.client.get(f"/v1/files/{batch['output_file_id']}")).json()
    assert file["purpose"] == "batch_output"
    assert file["filename"] == f"{batch['id']}_output.jsonl"
    get = desk.metrics.registry.get_sample_value
    assert get("aios_batch_lines_total", {"outcome": "completed"}) == 40
    assert get("aios_batches_total", {"status": "completed"}) == 1


async def test_every_endpoint_may_be_in_a_batch(desk: Desk) -> None:
    """A line of each endpoint has the body that a POST has."""
    seen = set()
    for path, body in POSTS:
        if path not in BATCH_POSTS or body.get("stream"):
            continue
        seen.add(path)
        batch = await desk.ended((await desk.create([line("one", path, **body)], path))["id"])
        rows = await desk.file(batch["output_file_id"])
        assert batch["request_counts"]["completed"] == 1, await desk.file(batch["error_file_id"])
        answer = await desk.client.post(path, json=body)
        assert answer.status_code == 200
        if answer.headers["content-type"] == "application/json":
            expected = answer.json()
            if isinstance(expected, dict):
                assert rows[0]["response"]["body"].keys() == expected.keys()
    assert seen == set(BATCH_POSTS)


async def test_bad_lines_are_told_of_by_their_numbers(desk: Desk, able: EchoWorker) -> None:
    given = [
        line("good"),
        b'{"custom_id": "broken", ',
        line("good"),
        b"",
        line("unknown model", model="nobody"),
        line("elsewhere", "/v1/embeddings", input="a"),
        json.dumps({"method": "POST", "url": URL, "body": {}}).encode(),
        line("wrong field", max_tokens="many"),
        line("streamed", stream=True),
        line("large", prompt="x" * (10 << 20)),
        json.dumps({"custom_id": "get", "method": "GET", "url": URL, "body": {}}).encode(),
        json.dumps({"custom_id": "list", "url": URL, "body": [1]}).encode(),
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"custom_id": "deep", "url": "/v1/completions", "body": '
        + b"[" * 900
        + b"]" * 900
        + b"}",
        line("last"),
    ]
    batch = await desk.ended((await desk.create(given))["id"])

    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 15, "completed": 2, "failed": 13}
    assert names(await desk.file(batch["output_file_id"])) == ["good", "last"]
    rows = await desk.file(batch["error_file_id"])
    assert codes(rows) == {
        2: "invalid_json_line",
        3: "duplicate_custom_id",
        5: "model_not_found",
        6: "mismatched_url",
        7: "invalid_line",
        8: "invalid_request",
        9: "invalid_request",
        10: "line_too_long",
        11: "invalid_method",
        12: "invalid_request",
        13: "invalid_json_line",
        14: "invalid_line",
        15: "invalid_request",
    }
    by_line = {row["line"]: row for row in rows}
    assert by_line[5]["response"]["status_code"] == 404
    assert by_line[5]["response"]["body"]["error"]["type"] == "invalid_request_error"
    assert by_line[8]["response"]["body"]["error"]["param"] == "max_tokens"
    assert by_line[2]["response"] is None
    assert len(able.jobs) == 2


async def test_a_line_that_fails_fails_alone(desk: Desk, able: EchoWorker) -> None:
    able.failure = Failed("context_length_exceeded", "Too long.", "prompt")
    batch = await desk.ended((await desk.create(lines(2)))["id"])
    assert batch["request_counts"] == {"total": 2, "completed": 0, "failed": 2}
    [row, _] = await desk.file(batch["error_file_id"])
    assert row["response"]["status_code"] == 400
    assert row["error"]["code"] == "context_length_exceeded"
    assert batch["output_file_id"] is None


@pytest.mark.parametrize(
    ("data", "code"), [(b"\n\n \n", "empty_file"), (b"\n".join(lines(6)), "too_many_lines")]
)
async def test_a_file_that_cannot_be_run_fails(
    redis: Redis, able: EchoWorker, tmp_path: Path, data: bytes, code: str
) -> None:
    async with batching(redis, tmp_path, batch_max_lines=5) as desk:
        batch = await desk.ended((await desk.create([data]))["id"])
    assert batch["status"] == "failed"
    assert batch["errors"]["data"][0]["code"] == code
    assert not able.jobs


async def test_a_deleted_input_fails_the_batch(desk: Desk) -> None:
    made = await desk.create(lines(3))
    await desk.client.delete(f"/v1/files/{made['input_file_id']}")
    batch = await desk.ended(made["id"])
    assert batch["status"] == "failed"
    assert batch["errors"]["data"][0]["code"] == "input_file_not_found"


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"endpoint": "/v1/models"}, 400, "endpoint"),
        ({"endpoint": "/generate_stream"}, 400, "endpoint"),
        ({"completion_window": "25h"}, 400, "completion_window"),
        ({"completion_window": "soon"}, 400, "completion_window"),
        ({"completion_window": "0s"}, 400, "completion_window"),
        ({"input_file_id": "file-0"}, 404, "id"),
        ({"input_file_id": 7}, 400, "input_file_id"),
        ({"metadata": {"a": "b" * 600}}, 400, "metadata"),
    ],
)
async def test_what_is_refused_at_once(
    desk: Desk, change: dict[str, object], status: int, field: str
) -> None:
    body = {"input_file_id": await desk.upload(line("a")), "endpoint": URL}
    answer = await desk.client.post("/v1/batches", json=body | change)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == field


async def test_sizes_purposes_and_open_batches_are_limited(
    redis: Redis, able: EchoWorker, tmp_path: Path
) -> None:
    async with batching(redis, tmp_path, batch_max_bytes=200, batch_max_open=1) as desk:
        small = await desk.upload(line("a"))
        body = {"input_file_id": small, "endpoint": URL}
        large = body | {"input_file_id": await desk.upload(b"\n".join(lines(9)))}
        other = body | {"input_file_id": await desk.upload(b"else", purpose="user_data")}
        assert (await desk.client.post("/v1/batches", json=large)).status_code == 413
        assert (await desk.client.post("/v1/batches", json=other)).status_code == 400
        first = (await desk.client.post("/v1/batches", json=body)).json()
        assert (await desk.client.post("/v1/batches", json=body)).status_code == 429
        await desk.ended(first["id"])
        assert (await desk.client.post("/v1/batches", json=body)).status_code == 200


async def test_without_a_place_for_files_there_are_no_batches(
    redis: Redis, able: EchoWorker
) -> None:
    async with batching(redis, Path(), artifact_url=None) as desk:
        body = {"input_file_id": await desk.upload(line("a")), "endpoint": URL}
        answer = await desk.client.post("/v1/batches", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")


async def test_a_batch_that_is_asked_for_twice_with_one_key_is_one(desk: Desk) -> None:
    body = {"input_file_id": await desk.upload(line("a")), "endpoint": URL}
    headers = {"Idempotency-Key": "k"}
    first = await desk.client.post("/v1/batches", json=body, headers=headers)
    again = await desk.client.post("/v1/batches", json=body, headers=headers)
    other = body | {"metadata": {"a": "b"}}
    conflict = await desk.client.post("/v1/batches", json=other, headers=headers)
    assert first.json()["id"] == again.json()["id"]
    assert conflict.status_code == 409
    assert len((await desk.client.get("/v1/batches")).json()["data"]) == 1


# Stopping


def begin_turn(desk: Desk) -> asyncio.Task[bool]:
    return asyncio.create_task(desk.advancer.advance_one(60.0))


async def abandon(turn: asyncio.Task[bool]) -> None:
    turn.cancel()
    await asyncio.gather(turn, return_exceptions=True)


async def test_cancelling_keeps_what_is_done(desk: Desk, able: EchoWorker) -> None:
    """Lines that run are ended; the counts and the files tell of every line once."""
    made = await desk.create(lines(300))
    turn = begin_turn(desk)

    async def some_are_done() -> bool:
        return bool((await desk.batch(made["id"]))["request_counts"]["completed"] > 20)

    await until(some_are_done, "some lines are done")
    able.gate.clear()
    answer = await desk.client.post(f"/v1/batches/{made['id']}/cancel")
    assert answer.json()["status"] == "cancelling"
    again = await desk.client.post(f"/v1/batches/{made['id']}/cancel")
    assert again.status_code == 200
    await turn
    batch = await desk.ended(made["id"])
    able.gate.set()

    assert batch["status"] == "cancelled"
    counts = batch["request_counts"]
    assert counts["total"] == 300
    assert counts["failed"] == 0
    outputs = await desk.file(batch["output_file_id"])
    errors = await desk.file(batch["error_file_id"])
    assert len(outputs) == counts["completed"] < 300
    assert len(outputs) + len(errors) == 300
    assert set(codes(errors).values()) == {"batch_cancelled"}
    assert not set(names(outputs)) & set(names(errors))
    assert batch["usage"]["output_tokens"] == sum(
        row["response"]["body"]["usage"]["completion_tokens"] for row in outputs
    )

    late = await desk.client.post(f"/v1/batches/{made['id']}/cancel")
    assert late.status_code == 200
    assert late.json()["status"] == "cancelled"


async def test_a_batch_that_is_cancelled_before_it_begins_runs_nothing(
    desk: Desk, able: EchoWorker
) -> None:
    made = await desk.create(lines(3))
    await desk.client.post(f"/v1/batches/{made['id']}/cancel")
    batch = await desk.ended(made["id"])
    assert batch["status"] == "cancelled"
    assert batch["output_file_id"] is None
    rows = await desk.file(batch["error_file_id"])
    assert codes(rows) == dict.fromkeys((1, 2, 3), "batch_cancelled")
    assert names(rows) == ["line-0", "line-1", "line-2"]
    assert not able.jobs


async def test_a_completed_batch_cannot_be_cancelled(desk: Desk) -> None:
    batch = await desk.ended((await desk.create(lines(1)))["id"])
    answer = await desk.client.post(f"/v1/batches/{batch['id']}/cancel")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "batch_ended")


async def test_a_batch_expires_with_what_is_done(
    desk: Desk, redis: Redis, able: EchoWorker
) -> None:
    made = await desk.create(lines(20), window="1h")
    able.gate.clear()
    turn = begin_turn(desk)

    await until(lambda: len(able.jobs) >= 2, "lines run")
    await abandon(turn)
    able.gate.set()
    await until(lambda: _are_done(able, redis), "they are done")
    await redis.hset(keys.batch(made["id"]), "expires_ms", 1)  # type: ignore[misc]
    batch = await desk.ended(made["id"])

    assert batch["status"] == "expired"
    counts = batch["request_counts"]
    # What was begun is done and kept, and nothing was begun after the end.
    assert counts["completed"] == len(able.jobs) < 20
    errors = await desk.file(batch["error_file_id"])
    assert len(errors) == 20 - counts["completed"]
    assert set(codes(errors).values()) == {"batch_expired"}


async def _are_done(able: EchoWorker, redis: Redis) -> bool:
    for job in able.jobs:
        if await redis.hget(keys.job(job.id), "state") != b"done":  # type: ignore[misc]
            return False
    return True


# Going on


async def test_whoever_is_killed_anywhere_the_next_one_goes_on(
    desk: Desk, redis: Redis, able: EchoWorker
) -> None:
    """A turn is abandoned after each time that it has waited, until the batch is done at last.

    No line is run twice, and the files are those of a batch that nothing has disturbed.
    """
    calm = await desk.ended((await desk.create(lines(30)))["id"])
    able.jobs.clear()
    made = await desk.create(lines(30))
    number = 0
    while (await desk.batch(made["id"]))["status"] not in ENDED:
        number += 1
        async with advancing(redis, desk.metrics, **desk.settings) as another:
            turn = asyncio.create_task(another.advance_one(60.0))
            with suppress(TimeoutError):
                # Longer each time, so that it gets somewhere in the end.
                async with asyncio.timeout(0.002 * number):
                    await asyncio.shield(turn)
            await abandon(turn)
        # A process that was killed gives nothing back: its lease ends.
        await redis.zadd(keys.ACTIVE_BATCHES, {made["id"]: 0}, xx=True)
    batch = await desk.batch(made["id"])

    assert number > 3
    assert batch["status"] == "completed"
    assert batch["request_counts"] == calm["request_counts"]
    assert batch["usage"] == calm["usage"]
    assert len(able.jobs) == 30
    assert told(await desk.file(batch["output_file_id"])) == told(
        await desk.file(calm["output_file_id"])
    )


def told(rows: list[dict[str, Any]]) -> list[object]:
    """Return what the lines were answered, without ids and times."""
    return [(row["custom_id"], row["line"], row["response"]["body"]["choices"]) for row in rows]


async def test_only_the_newest_claim_may_write(redis: Redis) -> None:
    batches = Batches(Broker(redis), lease_s=0.05)
    spec = BatchSpec(URL, "file-0", "24h")
    made = await batches.create("public", spec, window_s=60)
    old = await batches.claim()
    assert old is not None
    assert await batches.begin(old, 3)

    async def lapsed() -> bool:
        nonlocal new
        new = await batches.claim()
        return new is not None

    new: BatchClaim | None = None
    await until(lapsed, "the lease ends")
    assert new is not None
    answer = LineAnswer(1, "completed", b"{}")
    assert await batches.note(old, [answer]) is None
    assert await batches.renew(old) is None
    assert not await batches.end(old, "completed")
    assert await batches.note(new, [answer]) == 1
    assert await batches.note(new, [answer]) == 0
    assert (await batches.find("public", made.id)).counts.completed == 1


async def test_an_answer_that_has_expired_unnoted_is_computed_again(
    desk: Desk, redis: Redis, able: EchoWorker
) -> None:
    made = await desk.create(lines(1))
    able.gate.clear()
    turn = begin_turn(desk)
    await until(lambda: len(able.jobs) == 1, "the line runs")
    await abandon(turn)
    able.gate.set()
    await until(lambda: _are_done(able, redis), "it is done")
    await redis.delete(keys.job(able.jobs[0].id))
    batch = await desk.ended(made["id"])
    assert batch["request_counts"]["completed"] == 1
    assert len(able.jobs) == 2


async def test_a_line_waits_until_a_worker_is_there(redis: Redis, tmp_path: Path) -> None:
    """Without a worker nothing fails, and the batch goes on when one has come."""
    async with batching(redis, tmp_path) as desk:
        made = await desk.create(lines(2))
        await desk.advancer.advance_one(0.3)
        batch = await desk.batch(made["id"])
        assert batch["status"] == "in_progress"
        assert batch["request_counts"]["failed"] == 0
        async with EchoWorker(str(redis_url_of(redis))):
            batch = await desk.ended(made["id"])
    assert batch["request_counts"]["completed"] == 2


def redis_url_of(redis: Redis) -> str:
    options = redis.connection_pool.connection_kwargs
    return f"redis://{options['host']}:{options['port']}/0"


async def test_lines_leave_slots_free(desk: Desk, able: EchoWorker, redis: Redis) -> None:
    """Two of eight slots stay free, and two batches share the others."""
    able.gate.clear()
    first = await desk.create(lines(50))
    turn = begin_turn(desk)
    await until(lambda: len(able.jobs) == 6, "six lines run")
    await asyncio.sleep(0.4)
    assert len(able.jobs) == 6
    second = await desk.create(lines(50))
    other_turn = begin_turn(desk)
    await until(lambda: len(able.jobs) == 7, "one line of the other batch runs")
    able.gate.set()
    await asyncio.gather(turn, other_turn)
    for made in (first, second):
        assert (await desk.ended(made["id"]))["request_counts"]["completed"] == 50


async def test_a_busy_fleet_gets_one_line_at_a_time(
    desk: Desk, able: EchoWorker, redis: Redis
) -> None:
    """Where all slots are taken by others, one line waits, so that no batch is starved."""
    able.gate.clear()
    body = {"task": "generate", "prompts": ["a b"] * 8}
    assert (await desk.client.post("/v1/jobs", json=body)).status_code == 202
    await until(lambda: len(able.jobs) == 8, "others run")
    made = await desk.create(lines(20))
    turn = begin_turn(desk)
    await until(lambda: len(able.jobs) == 9, "one line runs")
    await asyncio.sleep(0.4)
    assert len(able.jobs) == 9
    able.gate.set()
    await turn
    assert (await desk.ended(made["id"]))["request_counts"]["completed"] == 20


async def test_many_answers_lie_in_parts(desk: Desk, redis: Redis, able: EchoWorker) -> None:
    """Redis holds about a part of the answers at any time, and whoever goes on finds the parts."""
    given = [line(f"line-{number}", prompt="x" * 9000) for number in range(400)]
    given[150] = b"{"
    made = await desk.create(given)
    results = keys.batch_results(made["id"])
    most_bytes = 0
    num_turns = 0
    while (await desk.batch(made["id"]))["status"] not in ENDED:
        num_turns += 1
        turn = asyncio.create_task(desk.advancer.advance_one(0.2))
        while not turn.done():
            await asyncio.wait({turn}, timeout=0.01)
            held = await redis.hvals(results)  # type: ignore[misc]
            most_bytes = max(most_bytes, sum(map(len, held)))
        await turn
    batch = await desk.batch(made["id"])

    assert num_turns > 2
    assert 0 < most_bytes < 2 << 20
    assert batch["request_counts"] == {"total": 400, "completed": 399, "failed": 1}
    outputs = await desk.file(batch["output_file_id"])
    assert [row["line"] for row in outputs] == [n for n in range(1, 401) if n != 151]
    assert {len(row["response"]["body"]["choices"][0]["text"]) for row in outputs} == {9000}
    assert codes(await desk.file(batch["error_file_id"])) == {151: "invalid_json_line"}
    assert len(able.jobs) == 399
    # Parts are not among the tenant's files, and are gone at the end.
    listed = (await desk.client.get("/v1/files")).json()["data"]
    expected = {made["input_file_id"], batch["output_file_id"], batch["error_file_id"]}
    assert {file["id"] for file in listed} == expected
    assert not await redis.exists(results, keys.artifacts_of("/batches"))


async def test_half_of_a_tenants_places_are_left_to_its_other_requests(
    redis: Redis, able: EchoWorker, tmp_path: Path
) -> None:
    async with batching(redis, tmp_path, tenant_concurrency=4) as desk:
        made = await desk.create(lines(20))
        able.gate.clear()
        turn = begin_turn(desk)
        await until(lambda: len(able.jobs) == 2, "two lines run")
        await asyncio.sleep(0.5)
        assert len(able.jobs) == 2
        able.gate.set()
        answer = await desk.client.post(URL, json={"prompt": "a"})
        assert answer.status_code == 200
        await turn
        batch = await desk.ended(made["id"])
    assert batch["request_counts"]["completed"] == 20


# Tenants and keys


async def test_a_batch_is_its_tenants(redis: Redis, able: EchoWorker, tmp_path: Path) -> None:
    async with batching(redis, tmp_path, api_keys="ann:key-a,bob:key-b") as desk:
        made = await desk.create(lines(2), **ANN)
        batch = await desk.ended(made["id"], **ANN)
        assert batch["request_counts"]["completed"] == 2
        path = f"/v1/batches/{made['id']}"
        for method, url in (("GET", path), ("POST", f"{path}/cancel")):
            foreign = await desk.client.request(method, url, headers=BOB)
            nobody = await desk.client.request(
                method, url.replace(made["id"], "batch_" + "0" * 32), headers=BOB
            )
            assert (foreign.status_code, nobody.status_code) == (404, 404)
        assert (await desk.client.get("/v1/batches", headers=BOB)).json()["data"] == []
        content = f"/v1/files/{batch['output_file_id']}/content"
        assert (await desk.client.get(content, headers=BOB)).status_code == 404
        assert {job.tenant for job in able.jobs} == {"ann"}


async def test_a_key_may_use_its_models_alone(
    redis: Redis, able: EchoWorker, tmp_path: Path
) -> None:
    grant = Grant("ann", "ann", models=("other",), concurrency=1)
    key, _, _ = await Keyring(Broker(redis)).create(grant)
    async with batching(redis, tmp_path) as desk:
        headers = {"Authorization": f"Bearer {key}"}
        made = await desk.create(lines(2), **headers)
        batch = await desk.ended(made["id"], **headers)
        rows = await desk.file(batch["error_file_id"], **headers)
    assert [row["response"]["status_code"] for row in rows] == [403, 403]
    assert not able.jobs


async def test_a_revoked_key_ends_its_batch(redis: Redis, able: EchoWorker, tmp_path: Path) -> None:
    keyring = Keyring(Broker(redis))
    key, _, _ = await keyring.create(Grant("ann", "ann"))
    other, _, _ = await keyring.create(Grant("more", "ann"))
    headers = {"Authorization": f"Bearer {key}"}
    async with batching(redis, tmp_path) as desk:
        made = await desk.create(lines(2), **headers)
        await keyring.revoke(digest_of(key))
        headers = {"Authorization": f"Bearer {other}"}
        batch = await desk.ended(made["id"], **headers)
        rows = await desk.file(batch["error_file_id"], **headers)
    assert batch["status"] == "failed"
    assert batch["errors"]["data"][0]["code"] == "invalid_api_key"
    assert codes(rows) == {1: "batch_failed", 2: "batch_failed"}
    assert not able.jobs


async def test_lines_wait_for_a_budget(redis: Redis, able: EchoWorker, tmp_path: Path) -> None:
    """A line that the key's budget has no tokens for begins when the budget has some again."""
    keyring = Keyring(Broker(redis))
    grant = Grant("ann", "ann", budget=Budget(tokens=28, period="month"))
    key, _, _ = await keyring.create(grant)
    headers = {"Authorization": f"Bearer {key}"}
    async with batching(redis, tmp_path) as desk:
        # Each line may use 15 tokens of its prompt, 8 marks and 4 tokens of the answer.
        made = await desk.create(
            [line("line-0", max_tokens=4), line("line-1", max_tokens=4)], **headers
        )

        async def has_answer() -> bool:
            assert await desk.advancer.advance_one(1.0)
            batch = await desk.batch(made["id"], **headers)
            return bool(batch["request_counts"]["completed"])

        await until(has_answer, "the first line is answered")
        waiting = await desk.batch(made["id"], **headers)
        assert waiting["status"] == "in_progress"
        assert waiting["request_counts"] == {"total": 2, "completed": 1, "failed": 0}
        assert len(able.jobs) == 1

        # As if the next month had begun.
        async for name in redis.scan_iter("aios:*budget:*"):
            await redis.delete(name)
        batch = await desk.ended(made["id"], **headers)
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 2, "completed": 2, "failed": 0}


async def test_prohibited_terms_are_refused_line_by_line(
    redis: Redis, able: EchoWorker, tmp_path: Path
) -> None:
    terms = tmp_path / "terms"
    async with batching(redis, tmp_path / "artifacts") as desk:
        made = await desk.create([line("good"), line("bad", prompt="so forbidden")])
        terms.write_text("forbidden\n")
        settings = desk.settings | {"prohibited_terms": str(terms)}
        async with advancing(redis, desk.metrics, **settings) as strict:
            while await strict.advance_one(20.0):
                pass
        batch = await desk.batch(made["id"])
        assert codes(await desk.file(batch["error_file_id"])) == {2: "content_filter"}


async def test_the_sdk_lists_page_by_page(redis: Redis, able: EchoWorker, tmp_path: Path) -> None:
    async with (
        live(redis, artifact_url=str(tmp_path)) as (http, _),
        openai.AsyncOpenAI(base_url=f"{http.base_url}/v1", api_key="none") as sdk,
    ):
        file = await sdk.files.create(file=("in.jsonl", line("a")), purpose="batch")
        made = []
        for number in range(5):
            batch = await sdk.batches.create(
                input_file_id=file.id,
                endpoint="/v1/completions",
                completion_window="24h",
                metadata={"number": str(number)},
            )
            made.append(batch.id)
        listed = [batch.id async for batch in sdk.batches.list(limit=2)]
        assert sorted(listed) == sorted(made)
        assert (await sdk.batches.retrieve(made[3])).metadata == {"number": "3"}
        assert (await sdk.batches.cancel(made[0])).status == "cancelling"
        with pytest.raises(openai.NotFoundError):
            await sdk.batches.retrieve("batch_none")
