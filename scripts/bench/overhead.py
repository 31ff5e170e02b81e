"""Measure the CPU time for each streamed token of all that is not the model.

python -m scripts.bench.overhead --clients 1 16 --rounds 3

One front, Redis and one worker run as processes of their own. The worker's loop is all its threads
but the engine's, which takes the most time. The bookkeeping of the engine is measured in this
process: sequences of the echo, whose model costs next to nothing, are stepped together.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter as now

import psutil

from scripts.bench import model
from scripts.bench.client import complete_all
from scripts.bench.front import ready, role
from scripts.bench.measure import header
from scripts.bench.prompts import draw_prompts
from scripts.cli.embedded_redis import EmbeddedRedis, free_port
from shared.messages import Generate, Sampling
from shared.queue.broker import connect
from worker.engine.engine import Engine
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import RunnerOptions
from worker.runners.echo import Echo


@dataclass(frozen=True)
class Cost:
    """Microseconds of CPU time for each token."""

    front: float
    redis: float
    loop: float

    @property
    def total(self) -> float:
        return self.front + self.redis + self.loop


class Meters:
    """The CPU times, in seconds, of the processes of a fleet."""

    def __init__(self, front: int, redis: int, worker: int) -> None:
        self._front = psutil.Process(front)
        self._redis = psutil.Process(redis)
        self._worker = psutil.Process(worker)
        self._begun = self._read()

    def costs(self, num_tokens: int) -> Cost:
        """Return the costs of these tokens, which came since the meters were made."""
        front, redis, threads = self._read()
        begun_front, begun_redis, begun_threads = self._begun
        spent = [seconds - begun_threads.get(thread, 0.0) for thread, seconds in threads.items()]
        loop_s = sum(spent) - max(spent)
        scale = 1e6 / num_tokens
        return Cost((front - begun_front) * scale, (redis - begun_redis) * scale, loop_s * scale)

    def _read(self) -> tuple[float, float, dict[int, float]]:
        threads = {}
        for thread in self._worker.threads():
            threads[thread.id] = thread.user_time + thread.system_time
        return _cpu_s(self._front), _cpu_s(self._redis), threads


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a header and a line for each number of clients."""
    args = _arguments(argv)
    print(header(size=args.size, tokens=args.tokens, rounds=args.rounds))
    print("us of CPU a token: front + Redis + worker's loop (least to most); engine's bookkeeping")
    with tempfile.TemporaryDirectory() as scratch, EmbeddedRedis() as redis:
        path = model.hrm_text(args.cache or Path(scratch), args.size)
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        worker_flags = ["--model", f"bench={path}", "--max-batch-size", "16", "--threads", "1"]
        front_flags = ["--host", "127.0.0.1", "--port", str(port)]
        with (
            role("worker", redis.url, *worker_flags) as worker,
            role("api", redis.url, *front_flags) as front,
        ):
            asyncio.run(_ready(redis.url, port))
            for clients in args.clients:
                prompts = draw_prompts(clients, 80, 95, model.SIZES[args.size].vocab)
                complete_all(url, prompts, args.tokens)
                costs = []
                for _ in range(args.rounds):
                    meters = Meters(front.pid, redis.pid, worker.pid)
                    complete_all(url, prompts, args.tokens)
                    costs.append(meters.costs(clients * args.tokens))
                print(_line(clients, costs, bookkeeping_us(clients, args.tokens)), flush=True)
    return 0


async def _ready(redis_url: str, port: int) -> None:
    redis = connect(redis_url)
    try:
        await ready(redis, [port])
    finally:
        await redis.aclose()


def bookkeeping_us(num_sequences: int, num_tokens: int) -> float:
    """Return the microseconds that the engine takes for a token of so many sequences at a time."""
    emissions: list[Emission] = []
    engine = Engine(Echo(RunnerOptions("echo", max_batch=num_sequences)), emissions.extend)
    for number in range(num_sequences):
        task = Generate("a" * num_tokens, Sampling(num_tokens, seed=number))
        engine.submit(SequenceWork(str(number), engine.runner.encode(task), task.sampling))
    begun_s = now()
    while engine.has_work:
        engine.step()
    return (now() - begun_s) * 1e6 / (num_sequences * num_tokens)


def _line(clients: int, costs: Sequence[Cost], engine_us: float) -> str:
    totals = [cost.total for cost in costs]
    middle = sorted(costs, key=lambda cost: cost.total)[len(costs) // 2]
    parts = f"{middle.front:.0f} + {middle.redis:.0f} + {middle.loop:.0f}"
    spread = f"({min(totals):.0f} to {max(totals):.0f})"
    return (
        f"{clients:3} clients: {parts} = {statistics.median(totals):.0f} {spread}; {engine_us:.0f}"
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=model.SIZES, default="reference")
    parser.add_argument("--cache", type=Path, help="directory of the networks")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
