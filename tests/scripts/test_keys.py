"""`aios keys` on a real Redis creates, lists and revokes keys, and refuses nonsense by name."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from scripts.cli.aios import main
from shared.access import Keyring, digest_of
from shared.queue.broker import Broker

Aios = Callable[..., Any]


@pytest.fixture
def aios(redis_url: str, capsys: pytest.CaptureFixture[str]) -> Aios:
    """Run `aios keys ...` and return its exit status and its output.

    With `--json` each line of the output is parsed.
    """

    async def run(*words: str) -> tuple[int, Any]:
        status = await asyncio.to_thread(main, ["keys", "--redis-url", redis_url, *words])
        out = capsys.readouterr().out
        if "--json" in words:
            return status, [json.loads(line) for line in out.splitlines()]
        return status, out

    return run


async def test_a_key_is_made_listed_and_revoked(redis: Redis, aios: Aios) -> None:
    assert await aios("list") == (0, "")
    status, out = await aios("create", "ann")
    key = out.strip()
    assert status == 0
    assert len(out.splitlines()) == 1
    limits = ["--best-class", "bulk", "--rate", "10/60", "--concurrency", "4", "--models", "a,b"]
    limits += ["--expires", "30d", "--budget", "100000", "--budget-period", "day"]
    _, (created,) = await aios("create", "bob", "--tenant", "acme", *limits, "--admin", "--json")

    _, (ann, bob) = await aios("list", "--json")
    assert created.pop("key") not in json.dumps([ann, bob])
    assert ann["name"] == "ann"
    assert ann["tenant"] == "ann"
    assert ann["id"] == digest_of(key)[:12]
    assert ann["expires_at"] is None
    assert bob == created
    assert bob["name"] == "bob"
    assert bob["tenant"] == "acme"
    assert bob["best_priority"] == "bulk"
    assert bob["rate"] == "10/60"
    assert bob["concurrency"] == 4
    assert bob["models"] == ["a", "b"]
    assert bob["budget"] == {"tokens": 100_000, "period": "day"}
    assert ann["budget"] is None
    assert bob["is_admin"] is True

    lines = (await aios("list"))[1].splitlines()
    assert lines[0].startswith(ann["id"])
    assert "until" in lines[1]
    assert "rate 10/60" in lines[1]
    assert "budget 100000 a day: 0 used, 0 reserved" in lines[1]
    assert "budget" not in lines[0]

    assert await aios("revoke", ann["id"]) == (0, "")
    assert await Keyring(Broker(redis)).find(digest_of(key)) is None
    _, (left,) = await aios("list", "--json")
    assert left["id"] == bob["id"]


async def test_a_key_can_be_revoked_by_itself(redis: Redis, aios: Aios) -> None:
    key = (await aios("create", "ann"))[1].strip()
    assert (await aios("revoke", key, "--json"))[1] == [{"revoked": digest_of(key)[:12]}]
    assert await Keyring(Broker(redis)).all_grants() == {}


@pytest.mark.parametrize("asked", ["0" * 12, "", "ab", "aios_nothing"])
async def test_what_is_not_there_cannot_be_revoked(redis: Redis, aios: Aios, asked: str) -> None:
    await aios("create", "ann")
    assert await aios("revoke", asked) == (1, "")
    assert len(await Keyring(Broker(redis)).all_grants()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["create", "a b"],
        ["create", "a", "--tenant", "*"],
        ["create", "a", "--rate", "10"],
        ["create", "a", "--concurrency", "0"],
        ["create", "a", "--models", ","],
        ["create", "a", "--expires", "30"],
        ["create", "a", "--budget", "0"],
        ["create", "a", "--budget", "1e6"],
        ["create", "a", "--best-class", "urgent"],
        ["revoke"],
        [],
    ],
)
def test_nonsense_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", *words]) == 2
    assert "expected" in capsys.readouterr().err or not words or words == ["revoke"]


def test_without_redis_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIOS_REDIS_URL", raising=False)
    assert main(["keys", "list"]) == 2
    assert "redis_url" in capsys.readouterr().err
    assert main(["keys", "list", "--redis-url", "redis://127.0.0.1:1"]) == 1
    assert "aios keys" in capsys.readouterr().err
