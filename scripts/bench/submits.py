"""Measure the cost of admitting a request to the queue, and of refusing it.

    python -m scripts.bench.submits [--shards N...]

Requests of one short prompt are submitted straight to a queue in a Redis of this program,
`--at-once` of them concurrently. CPU time is that of Redis and of this process, for each request.
"""

import argparse
import asyncio
import resource
import time
from collections.abc import Sequence
from contextlib import suppress

from redis.asyncio import Redis

from scripts.bench.measure import commit
from scripts.cli.embedded_redis import EmbeddedRedis
from shared.errors import QueueFull
from shared.messages import Generate, Sampling
from shared.queue.broker import Broker, connect
from shared.queue.submission import QueueLimits, Quota, Submissions, SubmitRequest

_NO_LIMIT = 1 << 40
_TASK = Generate("hello " * 20, Sampling(16, seed=0))


async def submit(submissions: Submissions, max_jobs: int) -> None:
    """Submit one request. Raise QueueFull if `max_jobs` jobs are waiting."""
    request = SubmitRequest("bench", (_TASK,))
    request_id, jobs = submissions.jobs_of(request)
    await submissions.submit(request, request_id, jobs, Quota(), QueueLimits(max_jobs))


async def measure(
    redis: Redis, submissions: Submissions, count: int, at_once: int, max_jobs: int
) -> str:
    """Submit `count` requests, `at_once` of them concurrently.

    Return a line with the requests a second, and the microseconds of CPU time for each request.
    """
    # All submitters share this iterator, so that they submit `count` requests together.
    remaining = iter(range(count))

    async def submit_some() -> None:
        for _ in remaining:
            with suppress(QueueFull):
                await submit(submissions, max_jobs)

    redis_s = await redis_cpu_s(redis)
    own_s = own_cpu_s()
    started_s = time.perf_counter()
    await asyncio.gather(*(submit_some() for _ in range(at_once)))
    seconds = time.perf_counter() - started_s
    own_us = 1e6 * (own_cpu_s() - own_s) / count
    redis_us = 1e6 * (await redis_cpu_s(redis) - redis_s) / count
    return f"{count / seconds:8,.0f} /s {redis_us:8,.0f} us of Redis {own_us:8,.0f} us of the front"


async def redis_cpu_s(redis: Redis) -> float:
    """Return the seconds of CPU time that Redis has used."""
    info = await redis.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


def own_cpu_s() -> float:
    """Return the seconds of CPU time that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def main(counts: Sequence[int], requests: int, at_once: int, rounds: int) -> None:
    with EmbeddedRedis() as server:
        redis = connect(server.url)
        version = (await redis.info("server"))["redis_version"]
        print(
            f"commit {commit()}  Redis {version}  {requests} requests, {at_once} at once",
            flush=True,
        )
        for _ in range(rounds):
            for shards in counts:
                await redis.flushall()
                submissions = Submissions(Broker(redis, shards))
                admitted = await measure(redis, submissions, requests, at_once, _NO_LIMIT)
                print(f"{shards:>3} shards, admitted {admitted}", flush=True)
                # The queue now holds as many jobs as this limit, so all are refused.
                refused = await measure(redis, submissions, requests, at_once, requests)
                print(f"{shards:>3} shards, refused  {refused}", flush=True)
        await redis.aclose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--shards", type=int, nargs="+", default=[1, 4, 64], help="numbers of shards of the queue"
    )
    parser.add_argument(
        "--requests",
        type=int,
        default=2000,
        help="requests that are admitted, and as many that are refused",
    )
    parser.add_argument(
        "--at-once", type=int, default=32, help="requests that are submitted concurrently"
    )
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each, in turn")
    args = parser.parse_args()
    asyncio.run(main(args.shards, args.requests, args.at_once, args.rounds))
