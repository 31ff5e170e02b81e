"""What a token costs on its way from a worker to Redis: `python -m scripts.bench.broker [--jobs N]
[--steps N]`.

Streamed jobs say one token each in every step, and all news of a step are one append, as a worker's
outbox sends them. Redis is a server of its own, as `aios serve hrm` runs it. CPU time is the
server's; bytes are the append's on the wire and MEMORY USAGE of the logs; commands are those that
scripts call, too.
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
from scripts.embedded_redis import EmbeddedRedis
from shared import keys
from shared.broker import Broker, connect
from shared.log import Append, LogWriter
from shared.messages import Generate, Sampling, Tokens
from shared.queue import Claim, QueuePolicy, WorkQueue
from shared.submission import QueueLimits, Quota, Submissions, SubmitRequest


@dataclass(frozen=True)
class Counters:
    """What has been spent so far: seconds of the clock, of Redis's and of our own CPU, bytes into
    and out of Redis, commands."""

    clock_s: float
    redis_s: float
    own_s: float
    bytes_in: int
    bytes_out: int
    commands: int


async def read_counters(redis: Redis) -> Counters:
    """Costs a few commands and some hundred bytes itself."""
    info: dict[str, Any] = await redis.info("everything")
    own = resource.getrusage(resource.RUSAGE_SELF)
    return Counters(
        time.perf_counter(),
        info["used_cpu_user"] + info["used_cpu_sys"],
        own.ru_utime + own.ru_stime,
        info["total_net_input_bytes"],
        info["total_net_output_bytes"],
        sum(item["calls"] for name, item in info.items() if name.startswith("cmdstat_")),
    )


async def take_jobs(broker: Broker, count: int, num_tokens: int) -> list[Claim]:
    """Streamed jobs in the hands of one worker."""
    task = Generate("hello", Sampling(num_tokens, seed=0))
    order, quota = SubmitRequest("bench", (task,) * count, is_streamed=True), Quota()
    submissions = Submissions(broker)
    request_id, jobs = submissions.jobs_of(order)
    await submissions.submit(order, request_id, jobs, quota, QueueLimits(count))
    queue = WorkQueue(broker, QueuePolicy(), model="bench", worker="bench", fingerprint="")
    return list((await queue.take(broker.shards[0], count, is_empty=True)).claims)


async def append_steps(writer: LogWriter, claims: list[Claim], first: int, steps: int) -> None:
    """One token for each job in every step."""
    for step in range(first, first + steps):
        token = (Tokens((1000 + step,), " word"),)
        landed = await writer.append(
            [Append(claim.job, claim.epoch, step, token) for claim in claims]
        )
        assert all(landed)


async def log_bytes(redis: Redis, claims: list[Claim]) -> int:
    """What the logs take in Redis's memory."""
    sizes = [
        await cast(Awaitable[int], redis.memory_usage(keys.log(claim.job.id), samples=0))
        for claim in claims
    ]
    return sum(sizes)


async def measure(redis: Redis, num_jobs: int, steps: int, warm_up: int = 20) -> str:
    """The report."""
    broker = Broker(redis)
    claims, writer = await take_jobs(broker, num_jobs, steps + warm_up), LogWriter(broker)
    await append_steps(writer, claims, 0, warm_up)
    before = await read_counters(redis)
    await append_steps(writer, claims, warm_up, steps)
    after = await read_counters(redis)
    tokens, seconds = num_jobs * steps, after.clock_s - before.clock_s
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
    given = parser.parse_args()
    asyncio.run(main(given.jobs, given.steps, given.rounds))
