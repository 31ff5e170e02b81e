"""Measure what a fleet costs that stands before an engine elsewhere.

    python -m scripts.bench.proxy --step-ms 20 --clients 1 8 32
    python -m scripts.bench.proxy --upstream http://127.0.0.1:8001/v1

The same requests go to the engine directly and through a fleet of one front, Redis and one worker,
by turns. Without `--upstream` the engine is a stand-in that takes a fixed time for each token, so
that what is added is the fleet's alone. Client, fleet and engine share the cores of this machine.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter as now

import httpx
import psutil

from scripts.bench.client import Stream, stream_completion
from scripts.bench.front import listens, ready, role
from scripts.bench.measure import Timed, header, take_turns
from scripts.cli.embedded_redis import EmbeddedRedis, free_port
from shared.queue.broker import connect

_MODEL = "proxied"
_LEAST_REQUESTS = 8
_READY_S = 30.0


@dataclass(frozen=True)
class Side:
    """A server, and the name that it has for the model."""

    url: str
    model: str


@dataclass(frozen=True)
class Turn:
    """The streams of a turn, and the microseconds of the fleet's CPU time for each token."""

    streams: list[Stream]
    cpu_us: tuple[float, ...]

    @property
    def first_ms(self) -> float:
        waits = [stream.first_at - stream.started_at for stream in self.streams]
        return 1000 * statistics.median(waits)

    @property
    def whole_ms(self) -> float:
        times = [stream.ended_at - stream.started_at for stream in self.streams]
        return 1000 * statistics.median(times)


class Meters:
    """The CPU times of the processes of a fleet: front, Redis and worker."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]

    def read_s(self) -> list[float]:
        seconds = []
        for process in self._processes:
            times = process.cpu_times()
            seconds.append(times.user + times.system)
        return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Print a header, and lines for each number of clients."""
    args = _parser().parse_args(argv)
    print(header(tokens=args.tokens, rounds=args.rounds, upstream=args.upstream or "stand-in"))
    with _upstream(args) as upstream, EmbeddedRedis() as redis:
        port = free_port()
        flags = ["--host", "127.0.0.1", "--port", str(port)]
        with (
            role("worker", redis.url, "--model", f"{_MODEL}={upstream}") as worker,
            role("api", redis.url, *flags) as front,
        ):
            asyncio.run(_ready(redis.url, port))
            direct = Side(upstream.removesuffix("/v1"), _only_model(upstream))
            through = Side(f"http://127.0.0.1:{port}", _MODEL)
            meters = Meters([front.pid, redis.pid, worker.pid])
            for clients in args.clients:
                turn = partial(_turn, meters, clients=clients, length=args.tokens)
                turns = take_turns(
                    args.rounds, direct=partial(turn, direct), through=partial(turn, through)
                )
                for line in _lines(clients, args.tokens, turns["direct"], turns["through"]):
                    print(line, flush=True)
    return 0


@contextmanager
def _upstream(args: argparse.Namespace) -> Iterator[str]:
    """Yield the URL of the engine of the flags, or of a stand-in that runs meanwhile."""
    if args.upstream is not None:
        yield args.upstream
        return
    port = free_port()
    command = [sys.executable, "-m", "scripts.bench.stand_in", "--port", str(port)]
    process = subprocess.Popen([*command, "--step-ms", str(args.step_ms)])
    try:
        asyncio.run(_listening(port))
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def _only_model(upstream: str) -> str:
    """Return the engine's name of the one model that it has."""
    [listed] = httpx.get(f"{upstream}/models").json()["data"]
    return str(listed["id"])


async def _listening(port: int) -> None:
    deadline_s = now() + _READY_S
    while not await listens(port):
        if now() > deadline_s:
            raise RuntimeError(f"the stand-in does not listen after {_READY_S:g} s")
        await asyncio.sleep(0.05)


async def _ready(redis_url: str, port: int) -> None:
    redis = connect(redis_url)
    try:
        await ready(redis, [port])
    finally:
        await redis.aclose()


def _turn(meters: Meters, side: Side, *, clients: int, length: int) -> Turn:
    """Send the requests of a turn by so many clients, each of which waits for its answers."""
    begun_s = meters.read_s()
    streams = asyncio.run(_ask(side, clients, length))
    costs = []
    for before_s, after_s in zip(begun_s, meters.read_s(), strict=True):
        costs.append(1e6 * (after_s - before_s) / (len(streams) * length))
    return Turn(streams, tuple(costs))


async def _ask(side: Side, clients: int, length: int) -> list[Stream]:
    each = max(2, _LEAST_REQUESTS // clients)
    shares = [_client(side, number, each, length) for number in range(clients)]
    streams = []
    for share in await asyncio.gather(*shares):
        streams += share
    return streams


async def _client(side: Side, number: int, num_requests: int, length: int) -> list[Stream]:
    streams = []
    for question in range(num_requests):
        body = {
            "model": side.model,
            "prompt": f"Question {question} of client {number}: what is {question} + {number}?",
            "max_tokens": length,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        streams.append(await stream_completion(side.url, body, length))
    return streams


def _lines(
    clients: int, length: int, direct: Sequence[Timed[Turn]], through: Sequence[Timed[Turn]]
) -> list[str]:
    """Return the figures of a number of clients. The added times are those of each round."""
    num_tokens = len(direct[0].value.streams) * length
    firsts = []
    wholes = []
    shares = []
    for one, other in zip(direct, through, strict=True):
        firsts.append(other.value.first_ms - one.value.first_ms)
        wholes.append(other.value.whole_ms - one.value.whole_ms)
        shares.append(one.seconds / other.seconds)
    costs = [turn.value.cpu_us for turn in through]
    front, redis, worker = (statistics.median(parts) for parts in zip(*costs, strict=True))
    return [
        f"{clients:3} clients: first token {_median([turn.value.first_ms for turn in direct])} ms, "
        f"through the fleet {_spread(firsts)} ms more",
        f"    whole answer {_median([turn.value.whole_ms for turn in direct])} ms, "
        f"through the fleet {_spread(wholes)} ms more",
        f"    {_median([num_tokens / turn.seconds for turn in direct])} tokens/s, "
        f"through the fleet {_median([num_tokens / turn.seconds for turn in through])}: "
        f"{_spread(shares, digits=3)} of it",
        f"    us of CPU a token: front {front:.0f} + Redis {redis:.0f} + worker {worker:.0f} "
        f"= {front + redis + worker:.0f}",
    ]


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f}"


def _spread(values: Sequence[float], digits: int = 1) -> str:
    """Return the median of values, with the least and the most of them."""
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--upstream", help="the URL of a running engine, which ends in /v1; it has one model"
    )
    parser.add_argument("--step-ms", type=float, default=20.0, help="of the stand-in")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    return parser


if __name__ == "__main__":
    sys.exit(main())
