"""`aios jobs` sweeps by arq's clock or once, and arq never unpickles a job from Redis."""

import asyncio
import json
import os
import pickle
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import WatchError

from scripts.cli import jobs, webhook_jobs
from scripts.cli.aios import main
from scripts.cli.arq_queue import TAG
from scripts.cli.jobs import EVERY_S, QUEUE, make_worker
from shared.errors import StorageUnavailable
from shared.fleet.presence import Presence
from shared.messages import WorkerInfo
from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.janitor import Janitor, SweepCounts
from shared.telemetry.metrics import JanitorMetrics
from tests.fixtures.burst_worker import make_burst_worker
from tests.fixtures.desk import Desk
from tests.fixtures.logged import fields_of
from tests.fixtures.polling import ALL_DAY_S, DEADLINE_S


async def plant(redis: Redis) -> str:
    """Queue a job whose time is over, without a worker for it, and return its id."""
    (job,) = await Desk(redis).submit()
    await redis.hset(keys.job(job.id), mapping={"expires_ms": "1", "deadline_ms": "1"})  # type: ignore[misc]
    return job.id


async def state(redis: Redis, job_id: str) -> bytes | None:
    value: bytes | None = await redis.hget(keys.job(job_id), "state")  # type: ignore[misc]
    return value


async def test_once_tells_what_it_would_do_and_then_does_it(
    redis: Redis, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = await plant(redis)

    async def once(*flags: str) -> object:
        command = ["jobs", "--once", "--redis-url", redis_url, *flags]
        assert await asyncio.to_thread(main, command) == 0
        return json.loads(capsys.readouterr().out)

    assert await once("--dry-run") == {
        "jobs": {"late_jobs": 1},
        "orphans": {},
        "quotas": {},
        "budgets": {},
        "depths": {},
        "tenants": {},
        "workers": {},
        "artifacts": {},
        "files": {},
        "batch_records": {},
        "popularity": {},
    }
    assert await state(redis, job_id) == b"queued"

    assert (await once())["jobs"] == {"late_jobs": 1}  # type: ignore[index]
    assert await state(redis, job_id) == b"failed"
    assert (await once())["jobs"] == {}  # type: ignore[index]


async def test_without_a_redis_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIOS_REDIS_URL", raising=False)
    assert await asyncio.to_thread(main, ["jobs", "--once"]) == 2

    away = ["--redis-url", "redis://127.0.0.1:1/0"]
    assert await asyncio.to_thread(main, ["jobs", "--once", *away]) == 1
    assert "aios jobs:" in capsys.readouterr().err


async def test_the_role_sweeps_by_itself_and_ends_at_once(redis: Redis, redis_url: str) -> None:
    """The role runs as a process, and a SIGTERM at any time harms nothing."""
    await plant(redis)
    await Presence(redis, ttl_s=ALL_DAY_S).announce(WorkerInfo("here", "ready", ()))
    command = [sys.executable, "-m", "scripts.cli.jobs", "--redis-url", redis_url]
    process = await asyncio.create_subprocess_exec(*command, env=dict(os.environ))
    try:
        async with asyncio.timeout(3 * DEADLINE_S):
            while await has_jobs(redis):
                assert process.returncode is None
                await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE_S):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()

    # All keys of arq expire, except for its queues.
    queues = (QUEUE.encode(), webhook_jobs.QUEUE.encode())
    async for name in redis.scan_iter("*arq*"):
        if name not in queues:
            assert await redis.pttl(name) >= 0, name


async def has_jobs(redis: Redis) -> bool:
    if not await redis.exists(keys.depth("00", "m")):
        return False
    return await Desk(redis).counts() != (0, 0)


@pytest.mark.parametrize("error", [WatchError("amid a WATCH"), RedisConnectionError("gone")])
async def test_the_role_goes_on_when_a_connection_breaks(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A worker breaks amid whatever arq does. The next one ends the test by being reached."""
    runs: list[str] = []

    class Stub:
        async def async_run(self) -> None:
            runs.append("run")
            if len(runs) == 1:
                raise error
            raise asyncio.CancelledError

    monkeypatch.setattr(jobs, "make_worker", lambda *_: Stub())
    monkeypatch.setattr(jobs, "RETRY_DELAY_S", 0.0)
    nothing: Any = None
    with pytest.raises(asyncio.CancelledError):
        await jobs._work(nothing, nothing, nothing, None)
    assert runs == ["run", "run"]


async def test_a_sweep_is_counted(redis: Redis) -> None:
    await plant(redis)
    metrics = JanitorMetrics()
    broker = Broker(redis)
    worker = make_burst_worker(broker, Janitor(broker, grace_s=0), metrics)

    def last() -> float:
        name = "aios_janitor_last_sweep_timestamp_seconds"
        seconds = metrics.registry.get_sample_value(name, {"sweep": "jobs"})
        assert seconds is not None
        return seconds

    began_s = last()
    await worker.pool.enqueue_job(f"{{{TAG}}}:jobs", _job_id=f"{{{TAG}}}:jobs:1")
    await worker.async_run()
    assert metrics.registry.get_sample_value("aios_janitor_found_total", {"what": "late_jobs"}) == 1
    assert metrics.registry.get_sample_value("aios_janitor_sweeps_total", {"sweep": "jobs"}) == 1
    assert last() > began_s


async def test_a_sweep_without_storage_is_not_done(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """The time of its last run stays, which an alert sees. The others go on."""
    metrics = JanitorMetrics()
    janitor = Janitor(Broker(redis))

    async def fail() -> SweepCounts:
        raise StorageUnavailable("The storage does not answer.")

    janitor.sweeps["files"] = fail
    worker = make_burst_worker(Broker(redis), janitor, metrics)
    for name in ("files", "jobs"):
        await worker.pool.enqueue_job(f"{{{TAG}}}:{name}", _job_id=f"{{{TAG}}}:{name}:1")
    await worker.async_run()
    count = metrics.registry.get_sample_value
    assert count("aios_janitor_sweeps_total", {"sweep": "jobs"})
    assert count("aios_janitor_sweeps_total", {"sweep": "files"}) is None
    assert fields_of(caplog, "sweep failed")[0]["sweep"] == "files"


def test_every_sweep_runs_at_least_once_an_hour(redis_url: str) -> None:
    """And at the intervals that are documented."""

    async def runs() -> dict[str, int]:
        broker = Broker(Redis.from_url(redis_url))
        worker = make_worker(broker, Janitor(broker), JanitorMetrics())
        assert worker.cron_jobs is not None
        counts = {}
        for job in worker.cron_jobs:
            at = datetime(2026, 11, 30, tzinfo=UTC) - timedelta(microseconds=1)
            end = at + timedelta(hours=1)
            num = 0
            while True:
                job.calculate_next(at)
                assert job.next_run is not None
                if job.next_run > end:
                    break
                at = job.next_run
                num += 1
            counts[job.name.rpartition(":")[2]] = num
        return counts

    counts = asyncio.run(runs())
    assert set(counts) == set(Janitor(Broker(Redis(port=1))).sweeps)
    expected = {name: 3600 // EVERY_S.get(name, 60) for name in counts}
    assert counts == expected


class Bomb:
    """An object whose unpickling creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


async def test_a_pickled_job_is_refused_not_run(redis: Redis, tmp_path: Path) -> None:
    """A job that somebody writes to Redis runs no code here."""
    crater = tmp_path / "crater"
    job_id = f"{{{TAG}}}:bomb"
    payload = pickle.dumps(
        {"t": None, "f": f"{{{TAG}}}:jobs", "a": (Bomb(crater),), "k": {}, "et": 1}
    )
    await redis.set(f"arq:job:{job_id}", payload)
    await redis.zadd(QUEUE, {job_id: 1})
    broker = Broker(redis)
    worker = make_burst_worker(broker, Janitor(broker))
    await worker.async_run()

    assert worker.jobs_failed == 1
    assert worker.jobs_complete == 0
    assert not crater.exists()
    assert await redis.zcard(QUEUE) == 0
    assert not await redis.exists(f"arq:job:{job_id}")

    # The payload would have worked.
    pickle.loads(payload)
    assert crater.exists()
