"""scripts/bench/ab.py finds one fleet equal in three dialects, and shows differences and failures."""

import asyncio
import json
from pathlib import Path

import pytest
from redis.asyncio import Redis

from scripts.bench.ab import (
    Answer,
    Answers,
    Sampling,
    Side,
    agreement,
    ask_all,
    body_of,
    compare,
    main,
    row,
)
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import live

PROMPTS = ["a b c d", "one two", "x"]


@pytest.mark.parametrize("sampling", [Sampling(3), Sampling(3, 0.7, 0.9, 7)])
async def test_a_fleet_agrees_with_itself_in_every_dialect(
    redis: Redis, redis_url: str, sampling: Sampling
) -> None:
    async with EchoWorker(redis_url) as worker, live(redis) as (client, _):
        url = str(client.base_url).rstrip("/")
        sides = [Side("aios", url), Side("openai", f"{url}/v1"), Side("tgi", url)]
        first, *others = [await ask_all(client, side, PROMPTS, sampling, 2) for side in sides]

    for other in others:
        assert agreement(PROMPTS, first, other) == {"compared": 3, "equal": 3}
    for answers in (first, *others):
        assert [answer.num_tokens for answer in answers.answers] == [3, 2, 1]
    assert worker.jobs
    for job in worker.jobs:
        received = job.task.sampling  # type: ignore[union-attr]
        assert received.max_tokens == 3
        assert received.temperature == sampling.temperature
        assert received.top_p == sampling.top_p
        # A greedy answer needs no seed, so the dialects send none or any.
        if sampling.temperature:
            assert received.seed == 7


async def test_two_fronts_and_two_models_are_compared(redis: Redis, redis_url: str) -> None:
    async with EchoWorker(redis_url), live(redis) as (one, _), live(redis) as (two, _):
        sides = [
            Side("aios", str(one.base_url), "echo"),
            Side("openai", f"{two.base_url}/v1", "absent"),
        ]
        known, unknown = await compare(sides, PROMPTS, Sampling(), 1)
    assert row(known)["errors"] == 0
    assert row(known)["tokens"] == 7
    assert row(unknown)["errors"] == 3
    assert "p50_ms" not in row(unknown)
    assert "404" in (unknown.answers[0].error or "")


def test_the_first_difference_is_shown_where_it_begins() -> None:
    one = Answers(
        Side("aios", "http://a"),
        [Answer(1, "same"), Answer(1, "x = 3"), Answer(1, error="503")],
        3,
    )
    two = Answers(
        Side("tgi", "http://b"),
        [Answer(1, "same"), Answer(1, "x = 4"), Answer(1, "fine")],
        3,
    )
    assert agreement(PROMPTS, one, two) == {
        "compared": 2,
        "equal": 1,
        "first_difference": {"prompt": "one two", "at": 4, "a": "x = 3", "b": "x = 4"},
    }


def test_tgi_is_not_given_what_it_refuses() -> None:
    """A93: TGI gets no temperature of 0 and no top_p of 1."""
    side = Side("tgi", "http://b")

    greedy = body_of(side, "a", Sampling(5, 0.0, 1.0, 7))
    assert greedy["parameters"] == {"max_new_tokens": 5, "do_sample": False, "details": True}

    sampled = body_of(side, "a", Sampling(5, 0.7, 1.0, 7))
    assert sampled["parameters"] == {
        "max_new_tokens": 5,
        "do_sample": True,
        "details": True,
        "temperature": 0.7,
        "seed": 7,
    }


async def test_the_command_prints_a_table(
    redis: Redis, redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts").write_text("a b\n\nc\n")
    async with EchoWorker(redis_url), live(redis) as (client, _):
        url = str(client.base_url)
        command = [f"aios={url}", f"tgi={url}", "--prompts", str(tmp_path / "prompts")]
        assert await asyncio.to_thread(main, command) == 0
        head, *rows = capsys.readouterr().out.splitlines()
        assert head.split()[0] == "side"
        assert len(rows) == 3
        assert rows[-1] == "equal texts: 2 of 2"

        assert await asyncio.to_thread(main, [*command, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["equal"] == 2
    assert await asyncio.to_thread(main, command) == 1, "nobody is there any more"
    assert "ConnectError" in capsys.readouterr().err
