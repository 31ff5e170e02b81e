"""`/v1/keys`: an operator makes keys, sees what each may do, and revokes them."""

import asyncio
import json
import logging
from datetime import datetime
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from scripts.cli.aios import main
from shared.access import Grant, Keyring
from shared.queue.broker import Broker
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import in_memory

PATH = "/v1/keys"
KEYS = {"api_keys": "k:plain", "admin_keys": "boss:admin"}
ADMIN = {"X-API-Key": "admin"}
ASK = {"prompts": ["a b"]}
ALL_LIMITS = {
    "name": "nightly",
    "tenant": "acme",
    "best_priority": "bulk",
    "rate": "3/600",
    "concurrency": 4,
    "budget": {"tokens": 40, "period": "day"},
    "models": ["echo"],
    "is_admin": True,
    "expires_in_s": 3600,
}


async def make(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    """Make a key, and return the answer."""
    answer = await client.post(PATH, json=body, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def all_keys(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    answer = await client.get(PATH, headers=ADMIN)
    listed: list[dict[str, Any]] = answer.json()["data"]
    return listed


async def asked(client: httpx.AsyncClient, key: str, **body: Any) -> str:
    """Ask for an answer. Return "done", or the code of the error."""
    answer = await client.post("/generate", json=ASK | body, headers={"X-API-Key": key})
    return "done" if answer.is_success else str(answer.json()["error"]["code"])


async def test_a_key_holds_from_when_it_is_made_until_it_is_revoked(
    redis: Redis, worker: EchoWorker
) -> None:
    async with in_memory(redis, **KEYS) as client:
        made = await make(client, name="ann")
        key = made.pop("key")
        assert await asked(client, key) == "done"
        assert await all_keys(client) == [made]
        assert worker.jobs[0].tenant == "ann"

        answer = await client.delete(f"{PATH}/{made['id']}", headers=ADMIN)
        assert answer.json() == {"id": made["id"], "object": "api_key.deleted", "deleted": True}
        assert await asked(client, key) == "invalid_api_key"
        assert await all_keys(client) == []
        answer = await client.delete(f"{PATH}/{made['id']}", headers=ADMIN)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "key_not_found")


async def test_its_limits_hold_and_are_listed(redis: Redis, worker: EchoWorker) -> None:
    async with in_memory(redis, **KEYS) as client:
        made = await make(client, **ALL_LIMITS)
        key = made.pop("key")
        assert await asked(client, key, max_tokens=10) == "done"
        assert await asked(client, key, max_tokens=28) == "budget_exceeded"
        [listed] = await all_keys(client)

        other = await make(client, name="bob", models=["other"])
        assert await asked(client, other["key"]) == "permission_denied"

    budget = listed["budget"]
    assert budget["used"] > 0
    assert budget["used"] + budget["reserved"] + budget["left"] == 40
    for name in ("tenant", "best_priority", "rate", "concurrency", "models", "is_admin"):
        assert listed[name] == made[name] == ALL_LIMITS[name]
    lives = datetime.fromisoformat(listed["expires_at"]) - datetime.fromisoformat(
        listed["created_at"]
    )
    assert lives.total_seconds() == 3600
    assert worker.jobs[0].tenant == "acme"


async def test_aios_keys_tells_of_the_same_keys(
    redis: Redis, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with in_memory(redis, **KEYS) as client:
        made = await make(client, **ALL_LIMITS)
        words = ["keys", "--redis-url", redis_url, "list", "--json"]
        assert await asyncio.to_thread(main, words) == 0
        [line] = capsys.readouterr().out.splitlines()
        told = json.loads(line)
        budget = made.pop("budget")
        assert told.pop("budget") == {"tokens": budget["tokens"], "period": budget["period"]}
        for name in ("created_at", "expires_at"):
            told_at = datetime.fromisoformat(told.pop(name))
            assert told_at == datetime.fromisoformat(made[name])
        assert told == {name: made[name] for name in told}

        _, key_id, _ = await Keyring(Broker(redis)).create(Grant("zoe", "zoe"))
        assert [key["id"] for key in await all_keys(client)] == [made["id"], key_id]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": None}, "name"),
        ({"tenant": "a:b"}, "tenant"),
        ({"best_priority": "best"}, "best_priority"),
        ({"rate": "10"}, "rate"),
        ({"rate": "0/60"}, "rate"),
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": "4"}, "concurrency"),
        ({"budget": {"tokens": 0}}, "budget"),
        ({"budget": {"tokens": 1, "period": "year"}}, "budget"),
        ({"models": "echo"}, "models"),
        ({"models": [""]}, "models"),
        ({"is_admin": "yes"}, "is_admin"),
        ({"expires_in_s": 0}, "expires_in_s"),
    ],
)
async def test_what_is_wrong_is_named(redis: Redis, changes: dict[str, Any], field: str) -> None:
    async with in_memory(redis, **KEYS) as client:
        answer = await client.post(PATH, json={"name": "ann", **changes}, headers=ADMIN)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["field"] == field
        assert await all_keys(client) == []


async def test_changes_are_noted_for_an_audit_and_keys_are_not(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with in_memory(redis, **KEYS, log_bodies=True) as client:
        made = await make(client, name="ann")
        answer = await client.delete(f"{PATH}/{made['key']}", headers=ADMIN)
        assert answer.status_code == 404, "a key by itself is no id: it would stand in logs"
        assert made["key"] not in answer.text
        await client.delete(f"{PATH}/{made['id']}", headers=ADMIN)

    noted = []
    for record in caplog.records:
        if record.name == "aios.security":
            noted.append((record.getMessage(), record.fields))  # type: ignore[attr-defined]
    [(first, of_first), (last, of_last)] = noted
    assert (first, of_first["made"], of_first["tenant"]) == ("key made", made["id"], "ann")
    assert (last, of_last["revoked"]) == ("key revoked", made["id"])
    assert of_first["by"] == of_last["by"] != ""
    for record in caplog.records:
        # The client of this test names the URLs that it calls.
        if record.name != "httpx":
            assert made["key"] not in str(vars(record))
