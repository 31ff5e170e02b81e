"""API keys on every front at once: the work they open and limit, the refusal of a bad one, and the
jobs that each one sees."""

import asyncio
import logging

import httpx
import pytest
from redis.asyncio import Redis

from api.http.app import create_app
from shared.access import Grant, Keyring, Rate, digest_of
from shared.queue import keys
from shared.queue.broker import Broker, connect
from shared.settings.settings import Settings, SettingsError
from tests.fixtures.api.echo_worker import EchoWorker, announce, model_info
from tests.fixtures.api.fronts import in_memory, state
from tests.fixtures.redis_server import RedisServer, patient
from tests.fixtures.slowness import within

TWO = {"api_keys": "ann:key-a,bob:key-b"}
ANN = {"Authorization": "Bearer key-a"}
BOB = {"X-API-Key": "key-b"}
LATER = {"Prefer": "respond-async"}
ASK = {"prompts": ["a b"]}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def create_key(redis: Redis, lives_s: int | None = None, **fields: object) -> str:
    """Create a key and return it. `fields` replace those of its grant, whose tenant is cy."""
    grant = Grant(**{"name": "cy", "tenant": "cy", **fields})  # type: ignore[arg-type]
    key, _, _ = await Keyring(Broker(redis)).create(grant, lives_s=lives_s)
    return key


async def models_status(client: httpx.AsyncClient, key: str) -> int:
    """Return the status that a GET of the models has with this key."""
    return (await client.get("/v1/models", headers=bearer(key))).status_code


async def generate_statuses(
    client: httpx.AsyncClient, headers: dict[str, str], count: int
) -> list[int]:
    """Send the same request `count` times, one after another, and return the statuses."""
    statuses = []
    for _ in range(count):
        answer = await client.post("/generate", json=ASK, headers=headers)
        statuses.append(answer.status_code)
    return statuses


@pytest.mark.parametrize(
    "headers",
    [
        ANN,
        BOB,
        {"authorization": "bearer  key-a "},
        {"x-api-key": "key-a", "Authorization": "Basic eDp5"},
    ],
)
async def test_a_key_comes_in_either_header(
    redis: Redis, worker: EchoWorker, headers: dict[str, str]
) -> None:
    async with in_memory(redis, **TWO) as client:
        assert (await client.post("/generate", json=ASK, headers=headers)).status_code == 200
    assert worker.jobs[0].tenant == ("bob" if headers is BOB else "ann")


@pytest.mark.parametrize(
    "headers", [{}, bearer("key-"), bearer(""), bearer("key-a key-a"), {"X-API-Key": ""}]
)
async def test_the_lack_of_a_good_key_is_told_in_each_dialect(
    redis: Redis, headers: dict[str, str]
) -> None:
    async with in_memory(redis, **TWO) as client:
        plain = await client.post("/generate", json=ASK, headers=headers)
        openai = await client.post("/v1/completions", json={"prompt": "a"}, headers=headers)

    for answer in (plain, openai):
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="aios"'
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert len(answer.headers["X-Request-Id"]) == 36
    assert openai.json()["error"]["type"] == "authentication_error"
    assert plain.json()["error"]["field"] is None


async def test_the_style_of_the_header_x_api_key(redis: Redis) -> None:
    """X9: with this style, a missing key and a wrong X-API-Key are refused with 403.

    A wrong Bearer is 401 in every style.
    """
    async with in_memory(redis, **TWO, key_style="x-api-key") as client:
        missing = await client.get("/v1/jobs/x")
        wrong = await client.get("/v1/jobs/x", headers={"X-API-Key": "x"})
        wrong_bearer = await client.get("/v1/jobs/x", headers=bearer("x"))
        good = await client.get("/v1/jobs/x", headers=BOB)

    assert missing.status_code == 403
    assert wrong.status_code == 403
    assert wrong.json()["error"]["message"] == "Invalid API Key"
    assert wrong_bearer.status_code == 401
    assert good.status_code == 404


async def test_a_foreign_job_is_not_there_on_any_route(redis: Redis, worker: EchoWorker) -> None:
    """Another tenant's job is refused in the same words as one that never was."""
    body = {"prompt": "a b", "stream": True}
    key = {"Idempotency-Key": "k"}

    async with in_memory(redis, **TWO) as client:
        answer = await client.post("/v1/completions", json=body, headers=ANN | key)
        job_id = answer.headers["X-Job-Id"]
        unknown_id = job_id[:2] + "0" * 32

        for method, path in (
            ("GET", "/v1/jobs/{}"),
            ("GET", "/v1/jobs/{}/events"),
            ("DELETE", "/v1/jobs/{}"),
            ("POST", "/api/inference/cancel/{}"),
        ):
            owners = await client.request(method, path.format(job_id), headers=ANN)
            foreign = await client.request(method, path.format(job_id), headers=BOB)
            unknown = await client.request(method, path.format(unknown_id), headers=BOB)
            assert owners.status_code == 200, path
            assert foreign.status_code == 404, path
            assert unknown.status_code == 404, path
            assert foreign.content == unknown.content

        last_seen = {"Last-Event-ID": f"{job_id}.1"}
        for tenant, expected in ((ANN, 200), (BOB, 404)):
            headers = tenant | last_seen
            resumed = await client.post("/v1/completions", json=body, headers=headers)
            followed = await client.get(f"/v1/jobs/{job_id}/events", headers=headers)
            assert resumed.status_code == expected
            assert followed.status_code == expected

        # The same Idempotency-Key of another tenant is another request.
        same_key = await client.post("/v1/completions", json=body, headers=BOB | key)
        assert same_key.headers["X-Job-Id"] != job_id

    assert [job.tenant for job in worker.jobs] == ["ann", "bob"]


async def test_nobody_cancels_anothers_running_job(redis: Redis, worker: EchoWorker) -> None:
    worker.gate.clear()

    async with in_memory(redis, **TWO) as client:
        submitted = await client.post("/generate", json=ASK, headers=ANN | LATER)
        location = submitted.headers["Location"]
        [name] = await redis.keys("aios:{00}:job:*")
        job_id = name.decode().rpartition(":")[2]

        assert (await client.delete(location, headers=BOB)).status_code == 404
        assert await state(redis, job_id) in ("queued", "running")
        assert (await client.delete(location, headers=ANN)).json()["state"] == "cancelled"


async def test_a_key_that_is_revoked_or_has_expired_is_refused_at_once_by_all_fronts(
    redis: Redis, redis_url: str
) -> None:
    await announce(redis, "echo")
    other_redis = patient(connect(redis_url))
    revoked = await create_key(redis)
    expired = await create_key(redis, lives_s=500)
    lasting = await create_key(redis)

    async with (
        in_memory(redis, require_key="yes") as first,
        in_memory(other_redis, require_key="yes") as second,
    ):
        # Both fronts have seen each key while it was good.
        for key in (revoked, expired, lasting):
            assert await models_status(first, key) == 200
            assert await models_status(second, key) == 200

        await Keyring(Broker(redis)).revoke(digest_of(revoked))
        await redis.pexpire(keys.grant(digest_of(expired)), 0)

        for front in (first, second):
            assert await models_status(front, revoked) == 401
            assert await models_status(front, expired) == 401
            assert await models_status(front, lasting) == 200

    await other_redis.aclose()


async def test_a_key_may_use_some_models(redis: Redis, redis_url: str) -> None:
    """Models outside the grant are not listed, and are refused with 403 and the field's name.

    An unknown model stays 404.
    """
    await announce(redis, "echo", "other")
    key = bearer(await create_key(redis, models=("other",)))

    async with in_memory(redis) as client, EchoWorker(redis_url, model_info("other")):
        listed = (await client.get("/v1/models", headers=key)).json()["data"]
        assert [model["id"] for model in listed] == ["other"]
        assert (await client.get("/v1/models/echo", headers=key)).status_code == 403

        for model, expected in (("other", 200), ("echo", 403), ("none", 404)):
            body = {"prompt": "a", "model": model}
            answer = await client.post("/v1/completions", json=body, headers=key)
            assert answer.status_code == expected
            if expected == 403:
                error = answer.json()["error"]
                assert error["type"] == "permission_error"
                assert error["code"] == "permission_denied"
                assert error["param"] == "model"


async def test_a_grant_limits_class_and_concurrency(redis: Redis) -> None:
    await announce(redis, "echo")
    key = bearer(await create_key(redis, best_priority="bulk", concurrency=2))
    headers = key | LATER | {"X-Priority": "interactive"}

    async with in_memory(redis, require_key="no") as client:
        assert await generate_statuses(client, headers, count=2) == [202, 202]
        third = await client.post("/generate", json=ASK, headers=headers)
        assert third.status_code == 429
        assert third.headers["X-Reject-Reason"] == "rate_limited"

        assert (await client.post("/generate", json=ASK, headers=LATER)).status_code == 202

    assert await redis.xlen("aios:{00}:line:echo:bulk:cy") == 2
    assert await redis.xlen("aios:{00}:line:echo:default:public") == 1


async def test_the_rate_of_a_grant_outranks_the_fleets(redis: Redis) -> None:
    await announce(redis, "echo")
    with_rate = bearer(await create_key(redis, rate=Rate(3, 60))) | LATER
    without_rate = bearer(await create_key(redis)) | LATER

    async with in_memory(redis, rate_limit="1/60") as client:
        assert await generate_statuses(client, with_rate, count=4) == [202, 202, 202, 429]
        assert await generate_statuses(client, without_rate, count=2) == [202, 429]


async def test_where_no_key_is_needed_an_unknown_one_counts_for_nothing(
    redis: Redis, worker: EchoWorker
) -> None:
    """OpenAI's clients always send a key, so an unknown one is treated as none."""
    known = await create_key(redis)

    async with in_memory(redis, require_key="no") as client:
        for headers in ({}, bearer("sk-local"), bearer(known)):
            assert (await client.post("/generate", json=ASK, headers=headers)).status_code == 200

    assert [job.tenant for job in worker.jobs] == ["public", "public", "cy"]


async def test_the_log_names_the_key_by_its_id_alone(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with in_memory(redis, **TWO) as client:
        await client.get("/v1/jobs/x", headers=ANN)
        await client.get("/v1/jobs/x", headers=bearer("wrong-one"))

    lines = [record for record in caplog.records if record.name == "aios.access"]
    assert len(lines) == 2
    known = lines[0].__dict__["fields"]
    unknown = lines[1].__dict__["fields"]

    assert known["tenant"] == "ann"
    assert known["key"] == digest_of("key-a")[:12]
    assert known["status"] == 404
    assert unknown["route"] == "/v1/jobs/{id}"
    assert unknown["error"] == "invalid_api_key"
    assert "key" not in unknown
    assert "key-a" not in caplog.text
    assert "wrong-one" not in caplog.text


async def test_without_redis_an_unknown_key_is_503_and_one_of_the_environment_is_not(
    own_redis: RedisServer,
) -> None:
    redis = connect(own_redis.url)
    async with in_memory(redis, **TWO, admin_keys="boss:admin", protect_metrics=True) as client:
        own_redis.stop()

        unknown = await client.get("/metrics", headers=bearer("other"))
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (503, "broker_unavailable")
        assert int(unknown.headers["Retry-After"]) >= 1

        assert (await client.get("/metrics", headers=ANN)).status_code == 200
        assert (await client.get("/metrics")).status_code == 401
    await redis.aclose()


async def test_a_redis_that_hangs_keeps_no_caller_waiting(own_redis: RedisServer) -> None:
    """A caller is answered in time if its key has to be looked up, and if its requests have to be
    counted."""
    redis = connect(own_redis.url)
    async with in_memory(redis, **TWO, rate_limit="5/60") as client:
        with own_redis.hanging(), within(3.9, "both are answered"):
            answers = await asyncio.gather(
                client.get("/v1/jobs/x", headers=bearer("other")),
                client.post("/generate", json=ASK, headers=ANN),
            )

    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "broker_unavailable")
    await redis.aclose()


async def test_preflight_needs_no_key_and_a_refusal_can_be_read(redis: Redis) -> None:
    """X27: browsers send a preflight without a key.

    Credentials are never allowed, whatever the origins.
    """
    origin = {"Origin": "https://a.example"}
    preflight_headers = origin | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, x-api-key",
    }
    async with in_memory(redis, **TWO, enable_cors=True) as client:
        preflight = await client.options("/generate", headers=preflight_headers)
        refused = await client.post("/generate", json=ASK, headers=origin)

    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-headers"] == "authorization, x-api-key"
    assert refused.status_code == 401
    for answer in (preflight, refused):
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers
    assert "WWW-Authenticate" in refused.headers["access-control-expose-headers"]


def test_a_key_cannot_be_both(redis: Redis) -> None:
    settings = Settings(api_keys="k", admin_keys="ops:k")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="admin_keys"):
        create_app(settings, Broker(redis))
