"""Presence shows which workers are there, and which model serves requests that name none."""

import pytest
from redis.asyncio import Redis

from shared.fleet.presence import Fleet, Presence
from shared.messages import LoadFailure, ModelInfo, WorkerInfo
from shared.queue import keys
from shared.settings.types import MOST_ABSENT_S


def model(name: str, *, is_default: bool = False) -> ModelInfo:
    return ModelInfo(
        name,
        runner="echo",
        found="found",
        context_window=100,
        max_new_tokens=50,
        max_batch=4,
        is_default=is_default,
    )


async def test_a_worker_is_there_until_it_leaves_or_falls_silent(redis: Redis) -> None:
    presence = Presence(redis, ttl_s=60)
    await presence.announce(WorkerInfo("w1", "loading", ()))
    assert not (await presence.fleet()).is_ready

    await presence.announce(WorkerInfo("w1", "ready", (model("m"),)))
    assert (await presence.fleet()).serves("m")

    # This one falls silent at once.
    await Presence(redis, ttl_s=0.001).announce(WorkerInfo("w2", "ready", (model("n"),)))
    while len((await presence.fleet()).workers) > 1:
        pass

    await presence.leave("w1")
    fleet = await presence.fleet()
    assert fleet.workers == ()
    assert fleet.models.keys() == {"m", "n"}, "known models stay known: 503, not 404"


def test_the_default_is_marked_and_served() -> None:
    """A default model that is not served yields to one that is.

    Otherwise the default of before a restart would answer 503 for ever.
    """
    old = model("a", is_default=True)
    new = model("b", is_default=True)
    other = model("aa")
    worker = WorkerInfo("w", "ready", (new, other))
    known = {"a": old, "b": new, "aa": other}
    assert Fleet((worker,), known).default_model == "b"
    assert Fleet((WorkerInfo("w", "ready", (other,)),), known).default_model == "aa"
    assert Fleet((), known).default_model == "a"
    assert Fleet((), {}).default_model is None


async def test_orders_to_unload_are_heard_with_each_announcement(redis: Redis) -> None:
    """An announcement returns the last order to unload each model. Later orders are greater."""
    presence = Presence(redis)
    worker = WorkerInfo("w", "ready", (model("m"),))
    assert await presence.announce(worker) == {}

    first = await presence.order_unload("m")
    other = await presence.order_unload("n")
    assert await presence.announce(worker) == {"m": first, "n": other}

    second = await presence.order_unload("m")
    assert second > first
    assert (await presence.announce(worker))["m"] == second
    assert 0 < await redis.ttl(keys.UNLOADS) <= 3600


def test_what_an_obstacle_means() -> None:
    """An obstacle of one worker counts for nothing if another worker serves the model."""
    lacking = WorkerInfo("a", "ready", (), obstacles={"m": "no GPU"})
    able = WorkerInfo("b", "ready", (model("m"),), residences={"m": "unloaded"})
    assert Fleet((lacking,), {}).obstacle("m") == "no GPU"
    assert Fleet((lacking,), {}).obstacle("n") is None

    both = Fleet((lacking, able), {"m": model("m")})
    assert both.obstacle("m") is None
    assert both.serves("m")
    assert both.residences("m") == ["unloaded"]


async def test_how_long_a_model_has_not_been_served_is_known(redis: Redis) -> None:
    """Only a ready worker that has loaded a model counts as serving it.

    A worker that drains, or that has failed to load the model, does not.
    """
    presence = Presence(redis, ttl_s=60)
    await presence.announce(WorkerInfo("w1", "draining", (model("m"),)))
    failed = WorkerInfo(
        "w2", "ready", (model("n"), model("o")), failures={"n": LoadFailure("no file")}
    )
    await presence.announce(failed)
    fleet = await presence.fleet()
    assert fleet.absences == {}
    assert not fleet.may_serve("m", 60)
    assert fleet.may_serve("o", 0)

    await presence.leave("w2")
    before = await presence.fleet()
    assert before.absences.keys() == {"o"}
    assert 0 <= before.absences["o"] < 60

    # The absence is read off the key's remaining time: a hundred seconds have passed.
    await redis.pexpire(keys.last_served("o"), int((MOST_ABSENT_S - 100) * 1000))
    after = await presence.fleet()
    assert 100 <= after.absences["o"] < 160
    assert not after.may_serve("o", 99)
    assert after.may_serve("o", 160)


async def test_a_worker_that_is_seen_ready_has_its_models_known(redis: Redis) -> None:
    """A front that sees a ready worker knows its models, at each moment of an announcement.

    Otherwise it would answer 503, although it has just called itself ready.
    """
    worker = WorkerInfo("w", "ready", (model("m"), model("n")))
    commands = await commands_of_announcing(redis, worker)
    for num_commands in range(len(commands) + 1):
        await redis.flushdb()
        for command in commands[:num_commands]:
            await redis.execute_command(*command)
        fleet = await Presence(redis).fleet()
        if fleet.is_ready:
            assert fleet.models.keys() == {"m", "n"}, num_commands

    assert fleet.is_ready


async def test_a_worker_that_gets_ready_while_a_front_reads_has_its_models_known(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    presence = Presence(redis)
    await presence.announce(WorkerInfo("w", "loading", ()))
    smembers = redis.smembers

    async def announce_meanwhile(name: str) -> set[bytes]:
        members = await smembers(name)  # type: ignore[misc]
        await presence.announce(WorkerInfo("w", "ready", (model("m"),)))
        return members

    monkeypatch.setattr(redis, "smembers", announce_meanwhile)
    fleet = await presence.fleet()
    assert fleet.is_ready
    assert fleet.models.keys() == {"m"}


async def commands_of_announcing(redis: Redis, worker: WorkerInfo) -> list[tuple[object, ...]]:
    """Return the commands of an announcement, without running them."""
    commands: list[tuple[object, ...]] = []
    pipe = redis.pipeline(transaction=False)

    async def record_commands() -> list[dict[bytes, bytes]]:
        for command, _ in pipe.command_stack:
            commands.append(command)
        return [{}]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe, "execute", record_commands)
        patch.setattr(redis, "pipeline", lambda **_: pipe)
        await Presence(redis).announce(worker)

    return commands
