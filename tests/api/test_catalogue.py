"""The catalogue as operators change it over HTTP, and work for models that no worker has seen
yet."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from redis.asyncio import Redis

from shared.fleet.catalogue import Catalogue
from shared.settings.models import ModelEntry
from tests.fixtures.api.echo_worker import announce
from tests.fixtures.api.fronts import in_memory

LATER = {"Prefer": "respond-async"}
ADMIN = {"X-API-Key": "boss"}


@asynccontextmanager
async def admin_of(redis: Redis) -> AsyncIterator[httpx.AsyncClient]:
    async with in_memory(redis, admin_keys="boss") as client:
        client.headers.update(ADMIN)
        yield client


async def test_a_model_is_added_pinned_and_removed(redis: Redis) -> None:
    catalogue = Catalogue(redis)
    entry = {"id": "org/new", "path": "echo"}

    async with admin_of(redis) as client:
        added = await client.post("/api/models/add", json=entry | {"context_window": 99})
        assert added.status_code == 200
        assert added.json() == {"model_id": "org/new", "done": "added"}
        changed = await client.post("/api/models/add", json=entry)
        assert changed.json()["done"] == "changed"

        pinned = await client.post("/api/models/pin/org/new")
        assert pinned.json() == {"model_id": "org/new", "done": "pinned"}
        expected = {"model_id": "org/new", "path": "echo", "runner": "echo", "is_pinned": True}
        assert (await client.get("/api/models/catalogue")).json() == {
            "models": [expected],
            "pinned": ["org/new"],
        }
        assert (await client.post("/api/models/unpin/org/new")).json()["done"] == "unpinned"

        assert (await client.post("/api/models/load/org/new")).json()["done"] == "ordered"
        assert (await catalogue.listing()).loads.keys() == {"org/new"}

        assert (await client.post("/api/models/remove/org/new")).json()["done"] == "removed"
        assert (await client.get("/api/models/catalogue")).json() == {"models": [], "pinned": []}


async def test_what_is_not_there_is_404(redis: Redis) -> None:
    await announce(redis, "own")
    async with admin_of(redis) as client:
        for verb in ("remove", "pin", "unpin", "load"):
            answer = await client.post(f"/api/models/{verb}/none")
            assert answer.status_code == 404, verb

        answer = await client.post("/api/models/remove/own")
        assert answer.status_code == 404, "what workers' own settings name is not the catalogue's"


async def test_options_of_its_runner_are_kept_and_judged(redis: Redis) -> None:
    brain = {"id": "brain", "path": "/models/brain", "runner": "hrm-act"}

    async with admin_of(redis) as client:
        answer = await client.post("/api/models/add", json=brain | {"options": {"segments": "max"}})
        assert answer.status_code == 200
        entries = (await Catalogue(redis).listing()).entries
        assert entries["brain"].options == {"segments": "max"}

        answer = await client.post(
            "/api/models/add", json=brain | {"options": {"segments": "fast"}}
        )
        assert answer.status_code == 400
        expected = "model 'brain': option 'segments': expected 'compat', 'max' or 'q_halt'"
        assert expected in answer.text


async def test_a_wrong_entry_names_its_field(redis: Redis) -> None:
    async with admin_of(redis) as client:
        for body, field in (
            ({"id": "a b", "path": "x"}, "id"),
            ({"id": "a"}, "path"),
            ({"id": "a", "path": ""}, "path"),
        ):
            answer = await client.post("/api/models/add", json=body)
            assert answer.status_code == 422
            assert field in answer.text


async def test_who_adds_a_model_may_ask_for_it_at_once(redis: Redis) -> None:
    """The front looks at the fleet anew after a change, although its last look is fresh.

    It would take half a second otherwise.
    """
    await announce(redis, "own")
    body = {"model": "a", "prompt": "x"}

    async with admin_of(redis) as client:
        before = await client.post("/v1/completions", json=body)
        assert before.status_code == 404

        await client.post("/api/models/add", json={"id": "a", "path": "echo"})
        accepted = await client.post("/v1/completions", json=body, headers=LATER)
        assert accepted.status_code == 202

        await client.post("/api/models/remove/a")
        after = await client.post("/v1/completions", json=body)
        assert after.status_code == 404


async def test_only_admins_change_it(redis: Redis) -> None:
    async with in_memory(redis, api_keys="caller", admin_keys="boss") as client:
        for headers, status in (
            ({}, 401),
            ({"X-API-Key": "caller"}, 403),
            ({"X-API-Key": "boss"}, 200),
        ):
            answer = await client.post(
                "/api/models/add", json={"id": "a", "path": "echo"}, headers=headers
            )
            assert answer.status_code == status


async def test_work_for_a_model_of_the_catalogue_waits_for_a_worker(redis: Redis) -> None:
    """Work for a model of the catalogue is queued, with or without workers of other models.

    A model that is in no catalogue is a 404.
    """
    body = {"model": "new", "prompt": "a"}
    await Catalogue(redis).add(ModelEntry(id="new", path="echo"))

    async with in_memory(redis) as client:
        accepted = await client.post("/v1/completions", json=body, headers=LATER)
        assert accepted.status_code == 202, accepted.text
        job = (await client.get(accepted.headers["Location"])).json()
        assert job["state"] == "queued"
        assert job["queue_position"] == 1

    await announce(redis, "other")
    async with in_memory(redis) as client:
        accepted = await client.post("/v1/completions", json=body, headers=LATER)
        assert accepted.status_code == 202
        unknown = await client.post("/v1/completions", json={"model": "none", "prompt": "a"})
        assert unknown.status_code == 404


async def test_a_model_that_no_worker_has_seen_has_a_status(redis: Redis) -> None:
    await Catalogue(redis).add(ModelEntry(id="new", path="echo"))
    async with in_memory(redis) as client:
        status = (await client.get("/api/models/status/new")).json()
        all_statuses = (await client.get("/api/models/status")).json()

    assert status["status"] == "unavailable"
    assert status["workers"] == 0
    assert status["description"] == "in the catalogue; no worker has seen it yet"
    [listed] = all_statuses["models"]
    assert listed["model_id"] == "new"
