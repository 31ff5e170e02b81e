"""The cost of a token on its way from a worker to Redis: `python -m scripts.bench.broker [--jobs N]
[--steps N]`.

Streamed jobs yield one token each in every step, and all events of a step are one append, as a
worker's outbox sends them. Redis is a server of its own, as `aios serve hrm` runs it. CPU time is
the server's. Bytes are those of the appends on the wire, and MEMORY USAGE of the logs. Commands
include those that scripts call.
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
from shared.messages import Generate, Sampling, Tokens
from shared.queue import keys
from shared.queue.broker import Broker, connect
from shared.queue.leases import Claim, QueuePolicy, WorkQueue
from shared.queue.submission import QueueLimits, Quota, Submissions, SubmitRequest


@dataclass(frozen=True)
class Counters:
    """Everything spent so far: seconds of the clock, of Redis's CPU and of our own, bytes into and
    out of Redis, and commands."""

    clock_s: float
    redis_s: float
    own_s: float
    bytes_in: int
    bytes_out: int
    commands: int


async def read_counters(redis: Redis) -> Counters:
    """Read the counters, which costs a few commands and some hundred bytes itself."""
    info: dict[str, Any] = await redis.info("everything")
    own = resource.getrusage(resource.RUSAGE_SELF)
    clock_s = time.perf_counter()
    commands = 0
    for name, value in info.items():
        if name.startswith("cmdstat_"):
            commands += value["calls"]
    return Counters(
        clock_s=clock_s,
        redis_s=info["used_cpu_user"] + info["used_cpu_sys"],
        own_s=own.ru_utime + own.ru_stime,
        bytes_in=info["total_net_input_bytes"],
        bytes_out=info["total_net_output_bytes"],
        commands=commands,
    )


async def take_jobs(broker: Broker, count: int, num_tokens: int) -> list[Claim]:
    """Queue streamed jobs and take them, all by one worker."""
    task = Generate("hello", Sampling(num_tokens, seed=0))
    request = SubmitRequest("bench", (task,) * count, is_streamed=True)
    submissions = Submissions(broker)
    request_id, jobs = submissions.jobs_of(request)
    await submissions.submit(request, request_id, jobs, Quota(), QueueLimits(count))

    queue = WorkQueue(broker, QueuePolicy(), model="bench", worker="bench", fingerprint="")
    taken = await queue.take(broker.shards[0], count, is_empty=True)
    return list(taken.claims)


async def append_steps(writer: LogWriter, claims: list[Claim], first: int, steps: int) -> None:
    """Append one token to each job in every step."""
    for step in range(first, first + steps):
        events = (Tokens((1000 + step,), " word"),)
        appends = [Append(claim.job, claim.epoch, step, events) for claim in claims]
        landed = await writer.append(appends)
        assert all(landed)


async def log_bytes(redis: Redis, claims: list[Claim]) -> int:
    """Return the bytes that the logs take in Redis's memory."""
    total = 0
    for claim in claims:
        usage = redis.memory_usage(keys.log(claim.job.id), samples=0)
        total += await cast(Awaitable[int], usage)
    return total


async def measure(redis: Redis, num_jobs: int, steps: int, warm_up: int = 20) -> str:
    """Append `steps` tokens to each of `num_jobs` jobs and return the report."""
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
        await redis.aclose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=64, help="streamed jobs in one worker's hands")
    parser.add_argument(
        "--steps", type=int, default=1000, help="steps, in each of which every job says a token"
    )
    parser.add_argument("--rounds", type=int, default=3, help="measurements, one after the other")
    args = parser.parse_args()
    asyncio.run(main(args.jobs, args.steps, args.rounds))
