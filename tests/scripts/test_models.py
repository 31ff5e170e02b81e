"""`aios models` on a real Redis changes the catalogue and refuses nonsense."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from scripts.cli.aios import main
from shared.fleet.catalogue import Catalogue
from tests.fixtures.api.echo_worker import announce

Aios = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
def aios(redis_url: str, capsys: pytest.CaptureFixture[str]) -> Aios:
    """Run `aios models ...` and return its exit status, its stdout and its stderr."""

    async def run(*words: str) -> tuple[int, str, str]:
        status = await asyncio.to_thread(main, ["models", "--redis-url", redis_url, *words])
        out, err = capsys.readouterr()
        return status, out, err

    return run


async def test_a_model_is_added_changed_pinned_listed_and_removed(redis: Redis, aios: Aios) -> None:
    catalogue = Catalogue(redis)
    changed = ("add", "maths", "/models/xl", "--context-window", "512")
    assert await aios("add", "maths", "/models/xl") == (0, "maths added\n", "")
    assert await aios(*changed) == (0, "maths changed\n", "")
    assert await aios("pin", "maths") == (0, "maths pinned\n", "")
    listing = await catalogue.listing()
    assert listing.entries["maths"].context_window == 512
    assert listing.pinned == {"maths"}

    status, out, _ = await aios("list", "--json")
    assert status == 0
    model = json.loads(out)
    assert model["id"] == "maths"
    assert model["path"] == "/models/xl"
    assert model["is_pinned"] is True
    assert model["workers"] == 0
    assert model["loaded"] == 0

    assert await aios("load", "maths") == (0, "maths ordered\n", "")
    assert (await catalogue.listing()).loads.keys() == {"maths"}

    assert await aios("unpin", "maths") == (0, "maths unpinned\n", "")
    removed = '{"id": "maths", "done": "removed"}\n'
    assert await aios("remove", "maths", "--json") == (0, removed, "")
    assert await aios("list") == (0, "", "")


async def test_a_terminal_gets_a_table(
    redis: Redis, aios: Aios, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "120")
    assert await aios("list") == (0, "no model is known\n", "")
    await aios("add", "maths", "/models/xl")
    await aios("pin", "maths")
    title, row = (await aios("list"))[1].splitlines()
    assert title.split() == ["MODEL", "PATH", "LOADED", "PINNED"]
    assert row.split() == ["maths", "/models/xl", "0", "of", "0", "yes", "not", "seen", "yet"]


async def test_what_cannot_be_is_refused_in_words(redis: Redis, aios: Aios) -> None:
    await announce(redis, "own")
    for words, sentence in (
        (("pin", "none"), "there is no model 'none'"),
        (("remove", "own"), "not by the catalogue"),
        (("add", "a b", "/models/xl"), "aios models: id: "),
        (("add", "a", "/models/xl", "--runner", "none"), "aios models: runner: "),
        (("add", "a", "hf://org/name"), "`hf download org/name` on their machine"),
    ):
        status, out, err = await aios(*words)
        assert status == 1, words
        assert out == "", words
        assert sentence in err, err
