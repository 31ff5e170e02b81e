"""Check that under a long load all requests end and memory stays flat in all processes and Redis.

    python -m scripts.bench.loads.soak --minutes 15

The fleet has two workers of the default model, two fronts and the janitor. Its load is `--share` of
its peak rate, with mixed lengths and classes, and one caller in twenty disconnects in the middle.
Results live for 30 seconds and requests for 60, so the data in Redis is constant after two minutes.
The exit status is 1 if memory grew by more than `--most-growth` from the second fifth of the time
to the last, if a request failed, or if jobs are left behind.
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
    """One sample of the memory of each process, and of the memory and keys of Redis.

    `at_s` are seconds since the load began. Memory is in MiB.
    """

    at_s: float
    mib: dict[str, float]
    redis_mib: float
    redis_keys: int

    @property
    def levels(self) -> dict[str, float]:
        """All figures that should stay flat, by their names in the output."""
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
    parser.add_argument("--model", help="as for `aios worker` (default: the models that ship)")
    args = parser.parse_args(argv)

    print(header(minutes=args.minutes, share=args.share), flush=True)
    worker_flags = ["--threads", "1", "--result-ttl-s", RESULT_TTL_S]
    if args.model:
        worker_flags += ["--model", args.model]
    front_flags = ["--result-ttl-s", RESULT_TTL_S, "--request-timeout-s", REQUEST_TIMEOUT_S]
    async with fleet(2, 2, worker_flags=worker_flags, front_flags=front_flags) as running:
        await running.add_janitor("--result-ttl-s", RESULT_TTL_S)
        return await _soak(running, args)


async def _soak(running: Fleet, args: argparse.Namespace) -> int:
    """Put the load on a fleet, print the figures, and return the exit status."""
    mix = Mix(lengths_of(LENGTHS), classes_of(CLASSES))
    callers = [Caller(front.url) for front in running.fronts]

    # A closed loop finds the peak rate of the fleet. Its first 5 seconds are a warm-up.
    outcomes, window = await closed_loop(callers, mix.requests(0), seconds=15.0, clients=48)
    warm = Window(window.started + 5, window.ended)
    rate = args.share * summary(outcomes, warm).answered_per_s

    samples: list[Sample] = []
    sampling = asyncio.create_task(_take_samples(running, args.every, samples))
    disconnecting = asyncio.create_task(_disconnect(callers, rate / LEAVES_EVERY))
    outcomes, window = await open_loop(callers, mix.requests(1, rate), 60 * args.minutes)
    for task in (sampling, disconnecting):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    for caller in callers:
        caller.close()

    figures = summary(outcomes, window)
    print(HEADER)
    print(row(f"{rate:.1f}/s", figures))
    growth = _growth(samples)
    for name, share in growth.items():
        print(f"{name:<24} {100 * share:+6.2f} %  from the second fifth to the last")
    if figures.failed:
        print(f"FAILED {figures.failed}")
    num_left = await _num_jobs_left(running.redis)
    print(f"jobs in Redis when their results have expired: {num_left}")

    has_grown = max(growth.values()) > args.most_growth
    return 1 if figures.failed or num_left or has_grown else 0


async def _take_samples(running: Fleet, every_s: float, samples: list[Sample]) -> None:
    """Take a sample every `every_s` seconds and print it as a line, until cancelled."""
    started = now()
    while True:
        await asyncio.sleep(every_s)
        sample = await _sample(running, now() - started)
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
    """Return the resident memory of a process in MiB."""
    _, num_pages, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    return int(num_pages) * _PAGE / _MIB


async def _disconnect(callers: Sequence[Caller], rate_per_s: float) -> None:
    """Request long answers at a rate, and disconnect in the middle of each."""
    request = ClientRequest(0.0, ("a long story",), tokens=200, priority="default")
    while True:
        for caller in callers:
            sending = asyncio.create_task(caller.send(request, now()))
            await asyncio.sleep(LEAVES_AFTER_S)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await asyncio.sleep(max(0.0, 1 / rate_per_s - LEAVES_AFTER_S))


async def _num_jobs_left(redis: Redis) -> int:
    """Return the number of jobs in Redis when all results have had time to expire."""

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
    """Return the growth of each level from the second fifth of the time to the last, as a share.

    In the first fifth caches still fill.
    """
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
