"""Every route of the app, with those who may call it.

A route that is missing from the table below fails here."""

import re

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from redis.asyncio import Redis

from api.access.auth import build_auth
from api.endpoints import dialects
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
    ("POST", "/v1/files"): CALLER,
    ("GET", "/v1/files"): CALLER,
    ("GET", "/v1/files/{id}"): CALLER,
    ("GET", "/v1/files/{id}/content"): CALLER,
    ("DELETE", "/v1/files/{id}"): CALLER,
    ("POST", "/v1/batches"): CALLER,
    ("GET", "/v1/batches"): CALLER,
    ("GET", "/v1/batches/{id}"): CALLER,
    ("POST", "/v1/batches/{id}/cancel"): CALLER,
    ("POST", "/v1/webhook_endpoints"): CALLER,
    ("GET", "/v1/webhook_endpoints"): CALLER,
    ("GET", "/v1/webhook_endpoints/{id}"): CALLER,
    ("POST", "/v1/webhook_endpoints/{id}"): CALLER,
    ("DELETE", "/v1/webhook_endpoints/{id}"): CALLER,
    ("POST", "/v1/webhook_endpoints/{id}/rotate_secret"): CALLER,
    ("POST", "/v1/webhook_endpoints/{id}/test"): CALLER,
    ("GET", "/v1/webhook_endpoints/{id}/deliveries"): CALLER,
    ("GET", "/v1/webhook_event_types"): CALLER,
    ("POST", "/v1/artifacts"): CALLER,
    ("GET", "/v1/artifacts/{id}"): CALLER,
    ("GET", "/v1/models"): CALLER,
    ("GET", "/v1/models/{id:path}"): CALLER,
    ("POST", "/v1/jobs"): CALLER,
    ("POST", "/v1/feedback"): CALLER,
    ("GET", "/v1/usage"): CALLER,
    ("GET", "/model/info"): CALLER,
    ("GET", "/api/models/status"): CALLER,
    ("GET", "/api/models/status/{model_id:path}"): CALLER,
    ("GET", "/api/plugins"): CALLER,
    ("POST", "/api/models/unload/{model_id:path}"): ADMIN,
    ("POST", "/api/models/add"): ADMIN,
    ("POST", "/api/models/load/{model_id:path}"): ADMIN,
    ("POST", "/api/models/pin/{model_id:path}"): ADMIN,
    ("POST", "/api/models/remove/{model_id:path}"): ADMIN,
    ("POST", "/api/models/unpin/{model_id:path}"): ADMIN,
    ("GET", "/api/models/catalogue"): ADMIN,
    ("DELETE", "/api/models/{task}/{model_id:path}"): ADMIN,
    ("GET", "/v1/fleet"): ADMIN,
    ("GET", "/v1/dead-jobs"): ADMIN,
    ("POST", "/v1/dead-jobs/{id}/retry"): ADMIN,
    ("DELETE", "/v1/dead-jobs/{id}"): ADMIN,
    ("POST", "/v1/keys"): ADMIN,
    ("GET", "/v1/keys"): ADMIN,
    ("DELETE", "/v1/keys/{id}"): ADMIN,
    ("POST", "/api/evaluation/run"): ADMIN,
    ("GET", "/api/evaluation/latest"): ADMIN,
    ("GET", "/api/evaluation/runs"): ADMIN,
    ("GET", "/api/evaluation/runs/{id}"): ADMIN,
    ("GET", "/api/health"): OPEN,
    ("GET", "/health"): OPEN,
}
# Whoever asks for work needs a key, in every dialect.
for post in dialects.POSTS:
    WHO_MAY_CALL["POST", post.path] = CALLER

KEYS = {"api_keys": "ann:plain-key", "admin_keys": "boss:admin-key"}
REFUSED = (401, 403)


def routes(redis: Redis) -> list[tuple[str, str]]:
    """Return method and path of every route; HEAD goes with GET."""
    app = create_app(Settings(), Broker(redis))
    methods_and_paths = []
    for route in iter_route_contexts(app.routes):
        for method in route.methods or ():
            if method != "HEAD":
                methods_and_paths.append((method, str(route.path)))
    return sorted(methods_and_paths)


def test_every_route_has_been_decided_on(redis: Redis) -> None:
    assert routes(redis) == sorted(WHO_MAY_CALL)


def test_the_probes_are_those_that_everybody_knows() -> None:
    assert TABLE.probe_paths == set(PROBES)
    alerts = (REPO_ROOT / "deploy/prometheus/alerts.yaml").read_text()
    assert f'route!~"{"|".join(PROBES)}"' in alerts


def test_the_table_for_people_says_the_same() -> None:
    """SECURITY.md lists every route and those who may call it."""
    page = (REPO_ROOT / "SECURITY.md").read_text()
    rows = re.findall(r"^\| ([A-Z]+) \| `(\S+)` \| (\w+) \|$", page, re.MULTILINE)
    expected = [(method, path, who) for (method, path), who in WHO_MAY_CALL.items()]
    assert sorted(rows) == sorted(expected)


async def statuses(client: httpx.AsyncClient, method: str, path: str) -> list[int]:
    """Return the status codes without a key, with a wrong one, a caller's and an admin's."""
    url = path.replace("{id}", "0" * 34).replace("{id:path}", "m").replace("{model_id:path}", "m")
    url = url.replace("{task}", "feature-extraction")
    without = await client.request(method, url)
    wrong = await client.request(method, url, headers={"X-API-Key": "wrong"})
    plain = await client.request(method, url, headers={"X-API-Key": "plain-key"})
    admin = await client.request(method, url, headers={"Authorization": "Bearer admin-key"})
    return [without.status_code, wrong.status_code, plain.status_code, admin.status_code]


@pytest.mark.parametrize(("route", "who"), WHO_MAY_CALL.items())
async def test_each_door_lets_in_whom_it_should(
    redis: Redis, route: tuple[str, str], who: str
) -> None:
    async with in_memory(redis, **KEYS) as client:
        method, path = route
        without, wrong, plain, admin = await statuses(client, method, path)

    needs_key = who != OPEN
    needs_admin_key = who == ADMIN
    assert (without in REFUSED) is needs_key
    assert (wrong in REFUSED) is needs_key
    assert (plain in REFUSED) is needs_admin_key
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
    if keys:
        # An admin is let in, but there is no such model.
        assert (plain, admin) == (403, 404)
    else:
        assert (plain, admin) == (401, 401)


@pytest.mark.parametrize("keys", [{}, KEYS])
async def test_metrics_may_be_protected(redis: Redis, keys: dict[str, str]) -> None:
    async with in_memory(redis, **keys, protect_metrics=True) as client:
        expected = [401, 401, 200, 200] if keys else [401, 401, 401, 401]
        assert await statuses(client, "GET", "/metrics") == expected


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
        models = await client.get("/v1/models")
        document = (await client.get("/openapi.json")).json()

    status = 401 if expected else 200
    assert models.status_code == status

    security = document["paths"]["/generate"]["post"].get("security", [])
    if expected:
        assert security and {} not in security
    elif settings.get("require_key") == "no":
        assert security == []
    else:
        # The empty requirement makes the key optional, as it may be needed later.
        assert security[0] == {} and len(security) > 1
    assert "security" not in document["paths"]["/healthz"]["get"]


async def test_no_such_route_is_404_or_405_for_everybody(redis: Redis) -> None:
    async with in_memory(redis, **KEYS) as client:
        assert await statuses(client, "GET", "/nothing") == [404] * 4
        assert await statuses(client, "PUT", "/generate") == [405] * 4


async def test_a_key_is_asked_for_before_a_body_is_read(redis: Redis) -> None:
    async with in_memory(redis, **KEYS, max_body_bytes=100) as client:
        broken = await client.post("/generate", content=b"{")
        too_large = await client.post("/generate", content=b" " * 101)

    assert broken.status_code == 401
    assert too_large.status_code == 401
