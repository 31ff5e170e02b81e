"""The app's own route table, and for each route who may call it: one that is not in the table below
fails here."""

import re

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from redis.asyncio import Redis

from api.access.auth import build_auth
from api.http.app import TABLE, create_app
from shared.queue.broker import Broker
from shared.settings.settings import Settings
from shared.shipped import REPO_ROOT
from shared.telemetry.metrics import PROBES
from tests.fixtures.api.fronts import in_memory

OPEN = "open"
CALLER = "caller"
ADMIN = "admin"
WHO_MAY_CALL = {
    ("GET", "/openapi.json"): OPEN,
    ("GET", "/docs"): OPEN,
    ("GET", "/docs/oauth2-redirect"): OPEN,
    ("GET", "/redoc"): OPEN,
    ("GET", "/"): OPEN,
    ("GET", "/healthz"): OPEN,
    ("GET", "/readyz"): OPEN,
    ("GET", "/metrics"): OPEN,
    ("GET", "/v1/jobs/{id}"): CALLER,
    ("GET", "/v1/jobs/{id}/events"): CALLER,
    ("DELETE", "/v1/jobs/{id}"): CALLER,
    ("POST", "/api/inference/cancel/{id}"): CALLER,
    ("POST", "/generate"): CALLER,
    ("POST", "/loglikelihood"): CALLER,
    ("POST", "/loglikelihood_rolling"): CALLER,
    ("POST", "/v1/files"): CALLER,
    ("GET", "/v1/files"): CALLER,
    ("GET", "/v1/files/{id}"): CALLER,
    ("GET", "/v1/files/{id}/content"): CALLER,
    ("DELETE", "/v1/files/{id}"): CALLER,
    ("POST", "/v1/artifacts"): CALLER,
    ("GET", "/v1/artifacts/{id}"): CALLER,
    ("GET", "/v1/models"): CALLER,
    ("GET", "/v1/models/{id:path}"): CALLER,
    ("POST", "/v1/completions"): CALLER,
    ("POST", "/v1/puzzles/solve"): CALLER,
    ("POST", "/v1/jobs"): CALLER,
    ("POST", "/v1/chat/completions"): CALLER,
    ("POST", "/v1/embeddings"): CALLER,
    ("POST", "/v1/echo-task"): CALLER,
    ("POST", "/tokenize"): CALLER,
    ("POST", "/detokenize"): CALLER,
    ("POST", "/"): CALLER,
    ("POST", "/generate_stream"): CALLER,
    ("POST", "/solve/math"): CALLER,
    ("POST", "/solve/coding"): CALLER,
    ("POST", "/api/inference"): CALLER,
    ("POST", "/api/inference/stream"): CALLER,
    ("GET", "/model/info"): CALLER,
    ("GET", "/api/models/status"): CALLER,
    ("GET", "/api/models/status/{model_id:path}"): CALLER,
    ("POST", "/api/models/unload/{model_id:path}"): ADMIN,
    ("POST", "/api/models/add"): ADMIN,
    ("POST", "/api/models/load/{model_id:path}"): ADMIN,
    ("POST", "/api/models/pin/{model_id:path}"): ADMIN,
    ("POST", "/api/models/remove/{model_id:path}"): ADMIN,
    ("POST", "/api/models/unpin/{model_id:path}"): ADMIN,
    ("GET", "/api/models/catalogue"): ADMIN,
    ("DELETE", "/api/models/{task}/{model_id:path}"): ADMIN,
    ("GET", "/v1/fleet"): ADMIN,
    ("GET", "/api/health"): OPEN,
    ("GET", "/health"): OPEN,
}
KEYS = {"api_keys": "ann:plain-key", "admin_keys": "boss:admin-key"}
REFUSED = (401, 403)


def routes(redis: Redis) -> list[tuple[str, str]]:
    """Method and path of every route; HEAD goes with GET."""
    app = create_app(Settings(), Broker(redis))
    found = iter_route_contexts(app.routes)
    return sorted(
        (method, str(route.path))
        for route in found
        for method in (route.methods or ())
        if method != "HEAD"
    )


def test_every_route_has_been_decided_on(redis: Redis) -> None:
    assert routes(redis) == sorted(WHO_MAY_CALL)


def test_the_probes_are_those_that_everybody_knows() -> None:
    assert TABLE.probe_paths == set(PROBES)
    assert (
        f'route!~"{"|".join(PROBES)}"' in (REPO_ROOT / "deploy/prometheus/alerts.yaml").read_text()
    )


def test_the_table_for_people_says_the_same() -> None:
    """SECURITY.md."""
    rows = re.findall(
        r"^\| ([A-Z]+) \| `(\S+)` \| (\w+) \|$",
        (REPO_ROOT / "SECURITY.md").read_text(),
        re.MULTILINE,
    )
    assert sorted(((method, path), who) for method, path, who in rows) == sorted(
        WHO_MAY_CALL.items()
    )


async def statuses(client: httpx.AsyncClient, method: str, path: str) -> list[int]:
    """What comes without a key, with a wrong one, with a caller's and with an admin's."""
    url = path.replace("{id}", "0" * 34).replace("{id:path}", "m").replace("{model_id:path}", "m")
    url = url.replace("{task}", "feature-extraction")
    keys = [
        {},
        {"X-API-Key": "wrong"},
        {"X-API-Key": "plain-key"},
        {"Authorization": "Bearer admin-key"},
    ]
    return [(await client.request(method, url, headers=headers)).status_code for headers in keys]


@pytest.mark.parametrize(("route", "who"), WHO_MAY_CALL.items())
async def test_each_door_lets_in_whom_it_should(
    redis: Redis, route: tuple[str, str], who: str
) -> None:
    async with in_memory(redis, **KEYS) as client:
        without, wrong, plain, admin = await statuses(client, *route)
    assert (without in REFUSED, wrong in REFUSED) == (who != OPEN, who != OPEN)
    assert (plain in REFUSED) == (who == ADMIN)
    assert admin not in REFUSED


@pytest.mark.parametrize("keys", [{}, KEYS])
async def test_an_admin_route_needs_an_admin_key_even_where_nobody_needs_one(
    redis: Redis, keys: dict[str, str]
) -> None:
    async with in_memory(redis, **keys, require_key="no") as client:
        without, wrong, plain, admin = await statuses(
            client, "POST", "/api/models/unload/{model_id:path}"
        )
    assert (without, wrong) == (401, 401)
    assert (plain, admin) == ((403, 404) if keys else (401, 401)), "there is no such model"


@pytest.mark.parametrize("keys", [{}, KEYS])
async def test_metrics_may_be_protected(redis: Redis, keys: dict[str, str]) -> None:
    async with in_memory(redis, **keys, protect_metrics=True) as client:
        assert await statuses(client, "GET", "/metrics") == (
            [401, 401, 200, 200] if keys else [401] * 4
        )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, False),
        ({"require_key": "no"}, False),
        ({"api_keys": "k"}, True),
        ({"admin_keys": "k"}, True),
        ({"api_keys": "k", "require_key": "no"}, False),
        ({"require_key": "yes"}, True),
    ],
)
async def test_when_a_key_is_required(
    redis: Redis, settings: dict[str, str], expected: bool
) -> None:
    auth = build_auth(Settings(**settings), Broker(redis))  # type: ignore[arg-type]
    assert await auth.requires_key() is expected
    async with in_memory(redis, **settings) as client:
        assert (await client.get("/v1/models")).status_code == (401 if expected else 200)
        document = (await client.get("/openapi.json")).json()
    told = document["paths"]["/generate"]["post"].get("security", [])
    if expected:
        assert told and {} not in told
    elif settings.get("require_key") == "no":
        assert told == []
    else:
        assert told[0] == {} and len(told) > 1, "a key may be needed later, so it is optional"
    assert "security" not in document["paths"]["/healthz"]["get"]


async def test_no_such_route_is_404_or_405_for_everybody(redis: Redis) -> None:
    async with in_memory(redis, **KEYS) as client:
        assert await statuses(client, "GET", "/nothing") == [404] * 4
        assert await statuses(client, "PUT", "/generate") == [405] * 4


async def test_a_key_is_asked_for_before_a_body_is_read(redis: Redis) -> None:
    async with in_memory(redis, **KEYS, max_body_bytes=100) as client:
        for body in (b"{", b" " * 101):
            assert (await client.post("/generate", content=body)).status_code == 401
