"""Check that under load for a quarter of an hour every request ends, and that memory stays flat in
every process and in Redis.

    python -m scripts.bench.loads.soak --minutes 15

The fleet is two workers of the sample model, two fronts and the janitor. It is asked for `--share`
of what it can do, with mixed lengths and classes, and one caller in twenty leaves in the middle.
Results live for 30 seconds and requests for 60, so that what Redis holds is level after two
minutes. Exits with 1 when something grew by more than `--most-growth` from the second fifth of the
time to the last, when a request failed, or when jobs are left behind.
"""

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from time import perf_counter as now

from redis.asyncio import Redis

from scripts.bench.loads.caller import Caller
from scripts.bench.loads.drive import closed_loop, open_loop
from scripts.bench.loads.plan import ClientRequest, Mix, classes_of, lengths_of
from scripts.bench.loads.tally import HEADER, Window, row, summary
from scripts.bench.measure import header
from scripts.chaos.polling import came_true
from scripts.chaos.processes import Fleet, fleet
from shared.queue import keys

LENGTHS = "40:16x2,200:48x2,400:96"
CLASSES = "interactive=1,default=2,bulk=1"
LEAVES_EVERY = 20
LEAVES_AFTER_S = 0.3
RESULT_TTL_S = "30"
REQUEST_TIMEOUT_S = "60"
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MIB = 2**20


@dataclass(frozen=True)
class Sample:
    """The memory of each process (MiB), and the memory (MiB) and keys of Redis, at one moment."""

    at_s: float
    mib: dict[str, float]
    redis_mib: float
    redis_keys: int

    @property
    def levels(self) -> dict[str, float]:
        """Everything that should stay flat, by its name in the output."""
        return {**self.mib, "redis data": self.redis_mib, "redis keys": float(self.redis_keys)}


async def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument(
        "--share", type=float, default=0.6, help="of the rate that a closed loop reaches"
    )
    parser.add_argument(
        "--every", type=float, default=30.0, help="seconds between two looks at memory"
    )
    parser.add_argument("--most-growth", type=float, default=0.03)
    parser.add_argument("--model", help="as for `aios worker` (default: the sample model)")
    asked = parser.parse_args(argv)

    print(header(minutes=asked.minutes, share=asked.share), flush=True)
    worker_flags = ["--threads", "1", "--result-ttl-s", RESULT_TTL_S]
    if asked.model:
        worker_flags += ["--model", asked.model]
    front_flags = ["--result-ttl-s", RESULT_TTL_S, "--request-timeout-s", REQUEST_TIMEOUT_S]
    async with fleet(2, 2, worker_flags=worker_flags, front_flags=front_flags) as running:
        await running.add_janitor("--result-ttl-s", RESULT_TTL_S)
        return await _soak(running, asked)


async def _soak(running: Fleet, asked: argparse.Namespace) -> int:
    mix = Mix(lengths_of(LENGTHS), classes_of(CLASSES))
    callers = [Caller(front.url) for front in running.fronts]

    # A closed loop finds the rate that the fleet can do; its first 5 seconds are a warm-up.
    heard, window = await closed_loop(callers, mix.asks(0), seconds=15.0, clients=48)
    warm = Window(window.begun + 5, window.ended)
    rate = asked.share * summary(heard, warm).answered_per_s

    samples: list[Sample] = []
    looking = asyncio.create_task(_look(running, asked.every, samples))
    leaving = asyncio.create_task(_leave(callers, rate / LEAVES_EVERY))
    heard, window = await open_loop(callers, mix.asks(1, rate), 60 * asked.minutes)
    for task in (looking, leaving):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    for caller in callers:
        caller.close()

    figures = summary(heard, window)
    print(HEADER)
    print(row(f"{rate:.1f}/s", figures))
    growth = _growth(samples)
    for name, share in growth.items():
        print(f"{name:<24} {100 * share:+6.2f} %  from the second fifth to the last")
    if figures.failed:
        print(f"FAILED {figures.failed}")
    num_left = await _left(running.redis)
    print(f"jobs in Redis when their results have expired: {num_left}")

    has_grown = max(growth.values()) > asked.most_growth
    return 1 if figures.failed or num_left or has_grown else 0


async def _look(running: Fleet, every_s: float, samples: list[Sample]) -> None:
    """Take a sample every so often, and print it as a line, until cancelled."""
    begun = now()
    while True:
        await asyncio.sleep(every_s)
        sample = await _sample(running, now() - begun)
        samples.append(sample)
        levels = "  ".join(f"{name} {level:.1f}" for name, level in sample.levels.items())
        print(f"{sample.at_s:6.0f} s  {levels}", flush=True)


async def _sample(running: Fleet, at_s: float) -> Sample:
    info = await running.redis.info("memory")
    num_keys = await running.redis.dbsize()
    mib = {}
    for member in running.everybody:
        mib[f"{member.role} {member.pid}"] = _mib(member.pid)
    mib["redis"] = _mib(running.server.pid)
    return Sample(at_s, mib, redis_mib=info["used_memory"] / _MIB, redis_keys=num_keys)


def _mib(pid: int) -> float:
    """Return the resident memory of a process."""
    _, num_pages, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    return int(num_pages) * _PAGE / _MIB


async def _leave(callers: Sequence[Caller], rate_per_s: float) -> None:
    """Ask for long answers, so many a second, and hang up in the middle of each."""
    request = ClientRequest(0.0, ("a long story",), tokens=200, priority="default")
    while True:
        for caller in callers:
            asking = asyncio.create_task(caller.ask(request, now()))
            await asyncio.sleep(LEAVES_AFTER_S)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await asyncio.sleep(max(0.0, 1 / rate_per_s - LEAVES_AFTER_S))


async def _left(redis: Redis) -> int:
    """Return how many jobs are still there when all results have had time to expire."""

    async def num_jobs() -> int:
        number = 0
        async for _ in redis.scan_iter(keys.pattern("job"), count=1000):
            number += 1
        return number

    async def is_empty() -> bool:
        return await num_jobs() == 0

    await came_true(is_empty, 2 * float(RESULT_TTL_S), every_s=1.0)
    return await num_jobs()


def _growth(samples: Sequence[Sample]) -> dict[str, float]:
    """Return by how much each level grew from the second fifth of the time to the last, as a share
    of the second. The first fifth is where caches fill."""
    fifth = max(1, len(samples) // 5)
    early = samples[fifth : 2 * fifth] or samples[:1]
    late = samples[-fifth:]

    growth = {}
    for name in samples[0].levels:
        early_mean = fmean(sample.levels[name] for sample in early)
        late_mean = fmean(sample.levels[name] for sample in late)
        growth[name] = late_mean / early_mean - 1
    return growth


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(asyncio.run(main()))
