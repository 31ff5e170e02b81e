"""A quarter of an hour under load: does memory stay flat, in every process and in Redis, and does
every request end?

    python -m scripts.loads.soak --minutes 15

Two workers of the sample model, two fronts and the janitor, asked for `--share` of what they can
do: mixed lengths and classes, one caller in twenty leaving in the middle. Results live for 30
seconds and requests for 60, so that what Redis holds is level after two minutes. Exits with 1 when
something grew by more than `--most-growth` from the second fifth of the time to the last, when a
request failed, or when jobs are left behind.
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

from scripts.bench.measure import header
from scripts.chaos.polling import came_true
from scripts.chaos.processes import Fleet, fleet
from scripts.loads.caller import Caller
from scripts.loads.drive import closed_loop, open_loop
from scripts.loads.plan import ClientRequest, Mix, classes_of, lengths_of
from scripts.loads.tally import HEADER, Window, row, summary
from shared import keys

LENGTHS, CLASSES = "40:16x2,200:48x2,400:96", "interactive=1,default=2,bulk=1"
LEAVES_EVERY, LEAVES_AFTER_S = 20, 0.3
RESULT_TTL_S, REQUEST_TIMEOUT_S = "30", "60"
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MIB = 2**20


@dataclass(frozen=True)
class Sample:
    """MiB of each process, MiB and number of keys in Redis, at so many seconds."""

    at_s: float
    mib: dict[str, float]
    redis_mib: float
    redis_keys: int

    @property
    def levels(self) -> dict[str, float]:
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
    model = ("--model", asked.model) if asked.model else ()
    worker = ("--threads", "1", "--result-ttl-s", RESULT_TTL_S, *model)
    front = ("--result-ttl-s", RESULT_TTL_S, "--request-timeout-s", REQUEST_TIMEOUT_S)
    async with fleet(2, 2, worker_flags=worker, front_flags=front) as running:
        await running.add_janitor("--result-ttl-s", RESULT_TTL_S)
        return await _soak(running, asked)


async def _soak(running: Fleet, asked: argparse.Namespace) -> int:
    mix = Mix(lengths_of(LENGTHS), classes_of(CLASSES))
    callers = [Caller(front.url) for front in running.fronts]
    heard, window = await closed_loop(callers, mix.asks(0), 15.0, 48)
    rate = asked.share * summary(heard, Window(window.begun + 5, window.ended)).answered_per_s
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
    print(HEADER, row(f"{rate:.1f}/s", told := summary(heard, window)), sep="\n")
    growth = _growth(samples)
    for name, share in growth.items():
        print(f"{name:<24} {100 * share:+6.2f} %  from the second fifth to the last")
    if told.failed:
        print(f"FAILED {told.failed}")
    left = await _left(running.redis)
    print(f"jobs in Redis when their results have expired: {left}")
    return 1 if told.failed or left or max(growth.values()) > asked.most_growth else 0


async def _look(running: Fleet, every_s: float, samples: list[Sample]) -> None:
    """One line now and then."""
    begun = now()
    while True:
        await asyncio.sleep(every_s)
        sample = await _sample(running, now() - begun)
        samples.append(sample)
        levels = "  ".join(f"{name} {level:.1f}" for name, level in sample.levels.items())
        print(f"{sample.at_s:6.0f} s  {levels}", flush=True)


async def _sample(running: Fleet, at_s: float) -> Sample:
    info = await running.redis.info("memory")
    size = await running.redis.dbsize()
    members = {f"{member.role} {member.pid}": _mib(member.pid) for member in running.everybody}
    return Sample(
        at_s, members | {"redis": _mib(running.server.pid)}, info["used_memory"] / _MIB, size
    )


def _mib(pid: int) -> float:
    """What a process holds of memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / _MIB


async def _leave(callers: Sequence[Caller], rate_per_s: float) -> None:
    """Callers who ask for much and hang up."""
    while True:
        for caller in callers:
            asking = asyncio.create_task(
                caller.ask(ClientRequest(0.0, ("a long story",), 200, "default"), now())
            )
            await asyncio.sleep(LEAVES_AFTER_S)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await asyncio.sleep(max(0.0, 1 / rate_per_s - LEAVES_AFTER_S))


async def _left(redis: Redis) -> int:
    """How many jobs are still there when all results have had time to expire."""

    async def jobs() -> int:
        return len([name async for name in redis.scan_iter(keys.pattern("job"), count=1000)])

    async def is_empty() -> bool:
        return not await jobs()

    await came_true(is_empty, 2 * float(RESULT_TTL_S), every_s=1.0)
    return await jobs()


def _growth(samples: Sequence[Sample]) -> dict[str, float]:
    """The last fifth against the second, as shares of the second: the first fifth is where caches
    fill."""
    fifth = max(1, len(samples) // 5)
    early, late = samples[fifth : 2 * fifth] or samples[:1], samples[-fifth:]

    def mean(part: Sequence[Sample], name: str) -> float:
        return fmean(sample.levels[name] for sample in part)

    return {name: mean(late, name) / mean(early, name) - 1 for name in samples[0].levels}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(asyncio.run(main()))
