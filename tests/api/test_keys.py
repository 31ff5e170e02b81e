"""What a key opens and what it limits, on every front at once; how the lack of one is told; whose
jobs it sees."""

import asyncio
import logging

import pytest
from redis.asyncio import Redis

from api.http.app import create_app
from shared.access import Grant, Keyring, Rate, digest_of
from shared.queue import keys
from shared.queue.broker import Broker, connect
from shared.settings.settings import Settings, SettingsError
from tests.fixtures.api.echo_worker import EchoWorker, announce, model_info
from tests.fixtures.api.fronts import in_memory, state
from tests.fixtures.redis_server import RedisServer
from tests.fixtures.slowness import within

TWO = {"api_keys": "ann:key-a,bob:key-b"}
ANN = {"Authorization": "Bearer key-a"}
BOB = {"X-API-Key": "key-b"}
LATER = {"Prefer": "respond-async"}
ASK = {"prompts": ["a b"]}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def make(redis: Redis, lives_s: int | None = None, **grant: object) -> str:
    made = Grant(**{"name": "cy", "tenant": "cy", **grant})  # type: ignore[arg-type]
    return (await Keyring(Broker(redis)).create(made, lives_s=lives_s))[0]


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
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (
            401,
            'Bearer realm="aios"',
        )
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert len(answer.headers["X-Request-Id"]) == 36
    assert openai.json()["error"]["type"] == "authentication_error"
    assert plain.json()["error"]["field"] is None


async def test_the_style_of_the_header_x_api_key(redis: Redis) -> None:
    """X9: who sends no key or a wrong X-API-Key is told 403 there; a wrong Bearer is 401
    everywhere."""
    async with in_memory(redis, **TWO, key_style="x-api-key") as client:
        answers = [
            await client.get("/v1/jobs/x", headers=item)
            for item in ({}, {"X-API-Key": "x"}, bearer("x"), BOB)
        ]
    assert [answer.status_code for answer in answers] == [403, 403, 401, 404]
    assert answers[1].json()["error"]["message"] == "Invalid API Key"


async def test_a_foreign_job_is_not_there_on_any_route(redis: Redis, worker: EchoWorker) -> None:
    """And is told of in the same words as one that never was."""
    async with in_memory(redis, **TWO) as client:
        stream = {"prompt": "a b", "stream": True}
        answer = await client.post(
            "/v1/completions", json=stream, headers=ANN | {"Idempotency-Key": "k"}
        )
        job_id = answer.headers["X-Job-Id"]
        nobodys = job_id[:2] + "0" * 32
        routes = [("GET", "/v1/jobs/{}"), ("GET", "/v1/jobs/{}/events"), ("DELETE", "/v1/jobs/{}")]
        routes += [("POST", "/api/inference/cancel/{}")]
        for method, path in routes:
            own, foreign, none = [
                await client.request(method, path.format(name), headers=headers)
                for name, headers in ((job_id, ANN), (job_id, BOB), (nobodys, BOB))
            ]
            assert (own.status_code, foreign.status_code, none.status_code) == (200, 404, 404), path
            assert foreign.content == none.content
        frame = {"Last-Event-ID": f"{job_id}.1"}
        for headers, expected in ((ANN, 200), (BOB, 404)):
            resumed = await client.post("/v1/completions", json=stream, headers=headers | frame)
            followed = await client.get(f"/v1/jobs/{job_id}/events", headers=headers | frame)
            assert (resumed.status_code, followed.status_code) == (expected, expected)
        same_key = await client.post(
            "/v1/completions", json=stream, headers=BOB | {"Idempotency-Key": "k"}
        )
        assert same_key.headers["X-Job-Id"] != job_id
    assert [job.tenant for job in worker.jobs] == ["ann", "bob"]


async def test_nobody_cancels_anothers_running_job(redis: Redis, worker: EchoWorker) -> None:
    worker.gate.clear()
    async with in_memory(redis, **TWO) as client:
        location = (await client.post("/generate", json=ASK, headers=ANN | LATER)).headers[
            "Location"
        ]
        job_id = (await redis.keys("aios:{00}:job:*"))[0].decode().rpartition(":")[2]
        assert (await client.delete(location, headers=BOB)).status_code == 404
        assert await state(redis, job_id) in ("queued", "running")
        assert (await client.delete(location, headers=ANN)).json()["state"] == "cancelled"


async def test_a_key_that_is_revoked_or_has_expired_is_refused_at_once_by_all_fronts(
    redis: Redis, redis_url: str
) -> None:
    await announce(redis, "echo")
    other = connect(redis_url)
    revoked = await make(redis)
    short = await make(redis, lives_s=500)
    lasting = await make(redis)
    async with (
        in_memory(redis, require_key="yes") as first,
        in_memory(other, require_key="yes") as second,
    ):

        async def tried(key: str) -> list[int]:
            return [
                (await front.get("/v1/models", headers=bearer(key))).status_code
                for front in (first, second)
            ]

        for key in (revoked, short, lasting):
            assert await tried(key) == [200, 200]
        await Keyring(Broker(redis)).revoke(digest_of(revoked))
        await redis.pexpire(keys.grant(digest_of(short)), 0)
        assert await tried(revoked) == await tried(short) == [401, 401]
        assert await tried(lasting) == [200, 200]
    await other.aclose()


async def test_a_key_may_use_some_models(redis: Redis, redis_url: str) -> None:
    """The others are not listed, and 403 with the field's name; what does not exist stays 404."""
    await announce(redis, "echo", "other")
    key = bearer(await make(redis, models=("other",)))
    async with in_memory(redis) as client, EchoWorker(redis_url, model_info("other")):
        assert [
            item["id"] for item in (await client.get("/v1/models", headers=key)).json()["data"]
        ] == ["other"]
        assert (await client.get("/v1/models/echo", headers=key)).status_code == 403
        for model, expected in (("other", 200), ("echo", 403), ("none", 404)):
            body = {"prompt": "a", "model": model}
            answer = await client.post("/v1/completions", json=body, headers=key)
            assert answer.status_code == expected
            if expected == 403:
                error = answer.json()["error"]
                assert (error["type"], error["code"], error["param"]) == (
                    *("permission_error", "permission_denied", "model"),
                )


async def test_a_grant_limits_class_and_concurrency(redis: Redis) -> None:
    await announce(redis, "echo")
    key = bearer(await make(redis, best_priority="bulk", concurrency=2)) | LATER
    async with in_memory(redis, require_key="no") as client:
        answers = [
            await client.post("/generate", json=ASK, headers=key | {"X-Priority": "interactive"})
            for _ in range(3)
        ]
        assert [answer.status_code for answer in answers] == [202, 202, 429]
        assert answers[2].headers["X-Reject-Reason"] == "rate_limited"
        assert (await client.post("/generate", json=ASK, headers=LATER)).status_code == 202
    assert await redis.xlen("aios:{00}:line:echo:bulk:cy") == 2
    assert await redis.xlen("aios:{00}:line:echo:default:public") == 1


async def test_the_rate_of_a_grant_outranks_the_fleets(redis: Redis) -> None:
    await announce(redis, "echo")
    fast = bearer(await make(redis, rate=Rate(3, 60))) | LATER
    plain = bearer(await make(redis)) | LATER
    async with in_memory(redis, rate_limit="1/60") as client:
        for key, expected in ((fast, [202, 202, 202, 429]), (plain, [202, 429])):
            assert [
                (await client.post("/generate", json=ASK, headers=key)).status_code
                for _ in expected
            ] == expected


async def test_where_no_key_is_needed_an_unknown_one_counts_for_nothing(
    redis: Redis, worker: EchoWorker
) -> None:
    """OpenAI's clients always send one."""
    known = await make(redis)
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
    known, unknown = [
        record.__dict__["fields"] for record in caplog.records if record.name == "aios.access"
    ]
    assert (known["tenant"], known["key"], known["status"]) == ("ann", digest_of("key-a")[:12], 404)
    assert (unknown["route"], unknown["error"], "key" in unknown) == (
        "/v1/jobs/{id}",
        "invalid_api_key",
        False,
    )
    assert "key-a" not in caplog.text and "wrong-one" not in caplog.text


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
    """Neither the one whose key it may know, nor the one whose requests it counts."""
    redis = connect(own_redis.url)
    async with in_memory(redis, **TWO, rate_limit="5/60") as client:
        with own_redis.hanging(), within(3, "both are answered"):
            answers = await asyncio.gather(
                client.get("/v1/jobs/x", headers=bearer("other")),
                client.post("/generate", json=ASK, headers=ANN),
            )
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "broker_unavailable")
    await redis.aclose()


async def test_preflight_needs_no_key_and_a_refusal_can_be_read(redis: Redis) -> None:
    """X27: browsers ask first without a key; credentials are never allowed, whatever the
    origins."""
    origin = {"Origin": "https://a.example"}
    wish = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, x-api-key",
    }
    async with in_memory(redis, **TWO, enable_cors=True) as client:
        asked = await client.options("/generate", headers=origin | wish)
        refused = await client.post("/generate", json=ASK, headers=origin)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-headers"] == "authorization, x-api-key"
    assert refused.status_code == 401
    for answer in (asked, refused):
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers
    assert "WWW-Authenticate" in refused.headers["access-control-expose-headers"]


def test_a_key_cannot_be_both(redis: Redis) -> None:
    with pytest.raises(SettingsError, match="admin_keys"):
        create_app(Settings(api_keys="k", admin_keys="ops:k"), Broker(redis))  # type: ignore[arg-type]
