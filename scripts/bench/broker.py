"""Measure the cost of a token on its way from a worker to Redis, and of the end of a job.

    python -m scripts.bench.broker [--jobs N] [--steps N]

In every step each streamed job yields one token, and all events of the step are one append, as the
outbox of a worker sends them. Redis is an embedded one, as that of `aios serve hrm`. Bytes are
those of the appends on the wire, and the MEMORY USAGE of the logs. Commands include those that
scripts call. Afterwards jobs that have their tokens already are ended, as many in one append as have
their steps in one.
"""

import argparse
import asyncio
import resource
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from scripts.bench.measure import commit
from scripts.cli.embedded_redis import EmbeddedRedis
from shared.events.log import Append, LogWriter
from shared.messages import Done, Generate, Sampling, Started, Tokens
from shared.queue import keys
from shared.queue.broker import Broker, connect
from shared.queue.leases import Claim, QueuePolicy, WorkQueue
from shared.queue.submission import QueueLimits, Quota, Submissions, SubmitRequest

_APPENDS_OF_ENDS = 100


@dataclass(frozen=True)
class Counters:
    """The costs until now.

    They are the seconds of the clock, the CPU seconds of Redis and of this process, the bytes into
    and out of Redis, and the commands of Redis.
    """

    clock_s: float
    redis_s: float
    own_s: float
    bytes_in: int
    bytes_out: int
    commands: int


async def read_counters(redis: Redis) -> Counters:
    """Return the counters. Reading them costs a few commands and some hundred bytes itself."""
    info: dict[str, Any] = await redis.info("everything")
    used = resource.getrusage(resource.RUSAGE_SELF)
    clock_s = time.perf_counter()
    commands = 0
    for name, value in info.items():
        if name.startswith("cmdstat_"):
            commands += value["calls"]
    return Counters(
        clock_s=clock_s,
        redis_s=info["used_cpu_user"] + info["used_cpu_sys"],
        own_s=used.ru_utime + used.ru_stime,
        bytes_in=info["total_net_input_bytes"],
        bytes_out=info["total_net_output_bytes"],
        commands=commands,
    )


async def take_jobs(
    broker: Broker, count: int, num_tokens: int, *, has_webhook: bool = False
) -> list[Claim]:
    """Queue `count` streamed jobs, and take all of them as one worker.

    They are one request, or with `has_webhook` one each.
    """
    task = Generate("hello", Sampling(num_tokens, seed=0))
    submissions = Submissions(broker)
    requests = [SubmitRequest("bench", (task,) * count, is_streamed=True)]
    if has_webhook:
        requests = [SubmitRequest("bench", (task,), is_streamed=True, has_webhook=True)] * count
    for request in requests:
        request_id, jobs = submissions.jobs_of(request)
        await submissions.submit(request, request_id, jobs, Quota(), QueueLimits(count))

    queue = WorkQueue(broker, QueuePolicy(), model="bench", worker="bench", fingerprint="")
    batch = await queue.take(broker.shards[0], count, is_empty=True)
    return list(batch.claims)


async def append_steps(writer: LogWriter, claims: list[Claim], first: int, steps: int) -> None:
    """Append one token to each job in every step, as the events from index `first` on."""
    for step in range(first, first + steps):
        events = (Tokens((1000 + step,), " word"),)
        appends = [Append(claim.job, claim.epoch, step, events) for claim in claims]
        landed = await writer.append(appends)
        assert all(landed)


async def log_bytes(redis: Redis, claims: list[Claim]) -> int:
    """Return the bytes of Redis's memory that the logs take."""
    total = 0
    for claim in claims:
        usage = redis.memory_usage(keys.log(claim.job.id), samples=0)
        total += await cast(Awaitable[int], usage)
    return total


async def measure(redis: Redis, num_jobs: int, steps: int, warm_up: int = 20) -> str:
    """Append `steps` tokens to each of `num_jobs` jobs, and return a line for each figure."""
    broker = Broker(redis)
    claims = await take_jobs(broker, num_jobs, steps + warm_up)
    writer = LogWriter(broker)
    await append_steps(writer, claims, first=0, steps=warm_up)
    before = await read_counters(redis)
    await append_steps(writer, claims, first=warm_up, steps=steps)
    after = await read_counters(redis)

    tokens = num_jobs * steps
    seconds = after.clock_s - before.clock_s
    rows = {
        "tokens/s end to end": tokens / seconds,
        "tokens/s of one Redis core": tokens / (after.redis_s - before.redis_s),
        "tokens/s of one worker core": tokens / (after.own_s - before.own_s),
        "appends/s": steps / seconds,
        "bytes into Redis per token": (after.bytes_in - before.bytes_in) / tokens,
        "bytes out of Redis per token": (after.bytes_out - before.bytes_out) / tokens,
        "bytes of log per token": await log_bytes(redis, claims) / (tokens + num_jobs * warm_up),
        "commands per token": (after.commands - before.commands) / tokens,
    }
    lines = []
    for name, value in rows.items():
        lines.append(f"{name:<30} {value:>12,.1f}")
    return "\n".join(lines)


async def measure_ends(
    redis: Redis, num_jobs: int, num_appends: int, *, has_webhook: bool = False
) -> str:
    """End `num_jobs` jobs in each of some appends, and return a line for each figure.

    With `has_webhook` each end is an event.
    """
    broker = Broker(redis)
    claims = await take_jobs(broker, num_jobs * num_appends, num_tokens=4, has_webhook=has_webhook)
    writer = LogWriter(broker)
    begun = (Started(1, "bench", 5), Tokens((1, 2, 3), "abc"))
    for start in range(0, len(claims), num_jobs):
        part = claims[start : start + num_jobs]
        await writer.append([Append(claim.job, claim.epoch, 0, begun) for claim in part])

    before = await read_counters(redis)
    for start in range(0, len(claims), num_jobs):
        part = claims[start : start + num_jobs]
        done = (Done("stop", 5, 3, num_cached_tokens=2),)
        landed = await writer.append([Append(claim.job, claim.epoch, 2, done) for claim in part])
        assert all(landed)
    after = await read_counters(redis)
    what = "end with an event" if has_webhook else "end"
    rows = {
        f"us of Redis per {what}": 1e6 * (after.redis_s - before.redis_s) / len(claims),
        f"commands per {what}": (after.commands - before.commands) / len(claims),
    }
    return "\n".join(f"{name:<30} {value:>12,.1f}" for name, value in rows.items())


async def main(num_jobs: int, steps: int, rounds: int) -> None:
    with EmbeddedRedis() as server:
        redis = connect(server.url)
        info = await redis.info("server")
        print(
            f"commit {commit()}  Redis {info['redis_version']}  {num_jobs} jobs, {steps} steps",
            flush=True,
        )
        for _ in range(rounds):
            await redis.flushall()
            print(await measure(redis, num_jobs, steps), flush=True)
            await redis.flushall()
            print(await measure_ends(redis, num_jobs, _APPENDS_OF_ENDS), flush=True)
            await redis.flushall()
            ends = await measure_ends(redis, num_jobs, _APPENDS_OF_ENDS, has_webhook=True)
            print(ends, flush=True)
        await redis.aclose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=64, help="streamed jobs of the worker")
    parser.add_argument(
        "--steps", type=int, default=1000, help="steps, in each of which every job yields a token"
    )
    parser.add_argument("--rounds", type=int, default=3, help="measurements, one after the other")
    args = parser.parse_args()
    asyncio.run(main(args.jobs, args.steps, args.rounds))
