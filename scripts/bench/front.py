"""Measure the cost of a front: requests that the echo runner answers, and refusals.

python -m scripts.bench.front --fronts 1,2,4

Requests that are answered come in a closed loop, in which each client sends the next one when it
has the last answer. Requests that are refused come at a fixed rate. The client, Redis, the fronts
and one worker share the cores of this machine.
"""

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import perf_counter as now

from redis.asyncio import Redis

from scripts.bench.measure import header
from scripts.cli.embedded_redis import EmbeddedRedis, free_port
from shared.fleet.presence import Presence
from shared.queue.broker import connect

_READY_S = 30.0
_REFUSED_PER_S = 200.0


@dataclass(frozen=True)
class Answers:
    """The latencies of answers by status, in seconds, measured over `seconds` of wall time."""

    seconds: float
    latencies: dict[int, list[float]]

    def row(self, name: str, status: int) -> str:
        """Return a row with the rate and the percentiles of the answers with this status.

        It also has the number of answers with each other status.
        """
        others = {}
        for code, latencies in self.latencies.items():
            if code != status:
                others[code] = len(latencies)
        latencies = sorted(self.latencies.get(status, []))
        if not latencies:
            return f"{name:<34} none; others: {others}"

        rate = len(latencies) / self.seconds
        p50_ms = 1000 * latencies[len(latencies) // 2]
        p99_ms = 1000 * latencies[len(latencies) * 99 // 100]
        return (
            f"{name:<34} {rate:8.0f} /s   p50 {p50_ms:6.2f} ms   p99 {p99_ms:6.2f} ms   "
            f"others: {others or 'none'}"
        )


async def ask(
    ports: Sequence[int], clients: int, seconds: float, rate_per_s: float = math.inf
) -> Answers:
    """Send requests in a closed loop, with the clients spread over the ports.

    Each client keeps one connection. All clients together send at most `rate_per_s` requests.
    """
    latencies: dict[int, list[float]] = {}
    started = now()
    payload = json.dumps({"prompts": ["hello"], "max_tokens": 1}).encode()
    head = (
        "POST /generate HTTP/1.1\r\n"
        "Host: x\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\n"
        "\r\n"
    )
    message = head.encode() + payload

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", ports[number % len(ports)])
        # The clients start one after the other, so that the rate is even.
        await asyncio.sleep(number / rate_per_s)
        while now() - started < seconds:
            sent_at = now()
            writer.write(message)
            status = await _status(reader)
            latencies.setdefault(status, []).append(now() - sent_at)
            await asyncio.sleep(max(0.0, sent_at + clients / rate_per_s - now()))
        writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return Answers(now() - started, latencies)


async def _status(reader: asyncio.StreamReader) -> int:
    """Read one answer to its end, and return its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    status_line, *headers = head.decode().lower().split("\r\n")
    for header_line in headers:
        name, _, value = header_line.partition(":")
        if name == "content-length":
            await reader.readexactly(int(value))
    return int(status_line.split()[1])


@contextmanager
def role(name: str, url: str, *flags: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `python -m api` or `python -m worker` with one thread while the context lasts."""
    command = [sys.executable, "-m", name, "--redis-url", url, "--log-level", "error", *flags]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


async def ready(redis: Redis, ports: Sequence[int]) -> None:
    """Wait until a worker is ready and all fronts listen.

    Raise RuntimeError if they are not after 30 seconds.
    """

    async def is_ready() -> bool:
        fleet = await Presence(redis).fleet()
        if not fleet.is_ready:
            return False
        for port in ports:
            if not await listens(port):
                return False
        return True

    deadline = now() + _READY_S
    while not await is_ready():
        if now() > deadline:
            raise RuntimeError(f"not ready within {_READY_S:g} s")
        await asyncio.sleep(0.05)


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def measure(url: str, ports: Sequence[int], clients: int, seconds: float, depth: int) -> str:
    """Return the row of fronts whose queue holds at most `depth` jobs. With 0 they refuse all."""
    redis = connect(url)
    try:
        await ready(redis, ports)
    finally:
        await redis.aclose()

    # The first requests are slow and do not count.
    await ask(ports, clients, seconds=1.0)
    name = f"{len(ports)} front(s), {clients} clients"
    if depth > 0:
        answers = await ask(ports, clients, seconds)
        return answers.row(name, status=200)
    answers = await ask(ports, clients, seconds, rate_per_s=_REFUSED_PER_S)
    return answers.row(f"{name}, refused", status=429)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a header, then for each number of fronts a row of answers and one of refusals."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fronts",
        type=_numbers,
        default=[1, 2, 4],
        help="numbers of fronts, measured one after the other",
    )
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each row")
    args = parser.parse_args(argv)
    print(header(clients=args.clients, seconds=args.seconds))
    for count in args.fronts:
        for depth in (256, 0):
            with EmbeddedRedis() as redis, ExitStack() as roles:
                ports = [free_port() for _ in range(count)]
                flags = ["--model", "echo=echo", "--max-batch-size", "64"]
                roles.enter_context(role("worker", redis.url, *flags))
                for port in ports:
                    flags = ["--host", "127.0.0.1", "--port", str(port)]
                    flags += ["--max-queue-depth", str(depth)]
                    roles.enter_context(role("api", redis.url, *flags))
                measured = measure(redis.url, ports, args.clients, args.seconds, depth)
                print(asyncio.run(measured), flush=True)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
