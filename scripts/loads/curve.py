"""How a fleet bears more and more load: throughput and times against what is asked for, and three
times too much.

    python -m scripts.loads.curve workers that wait 20 ms a step: what a fleet on GPUs would do
    python -m scripts.loads.curve --workers sample     workers that compute, on this machine's cores
    python -m scripts.loads.curve --shapes 1x1,2x2     WORKERSxFRONTS

For each shape the peak is found by a closed loop of more clients than places; then requests come by
Poisson at shares of that rate. All shapes have the same queue. Client, fronts, Redis and workers
share this machine.
"""

import argparse
import asyncio
import os
import resource
from collections.abc import Sequence
from typing import Any

from scripts.bench.measure import header
from scripts.chaos.processes import Fleet, fleet
from scripts.loads.caller import Caller
from scripts.loads.drive import closed_loop, open_loop
from scripts.loads.plan import Mix, lengths_of
from scripts.loads.tally import HEADER, Summary, Window, row, summary

SHARES = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2, 3.0)
PLACES, STEP_S, QUEUE = 16, 0.02, 64
LENGTHS = "40:16x2,200:48x2,800:96"


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", choices=["paced", "echo", "sample"], default="paced")
    parser.add_argument(
        "--shapes", type=_shapes, default=[(1, 1), (2, 1), (1, 2), (2, 2)], help="WORKERSxFRONTS"
    )
    parser.add_argument("--shares", type=_numbers, default=SHARES, help="of the peak, to ask for")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each row that count")
    parser.add_argument(
        "--warm-up", type=float, default=4.0, help="seconds of each row that do not"
    )
    parser.add_argument(
        "--lengths", type=lengths_of, default=LENGTHS, help="CHARACTERS:TOKENSxWEIGHT"
    )
    asked = parser.parse_args(argv)
    print(header(workers=asked.workers, places=PLACES, queue=QUEUE, seconds=asked.seconds))
    mix = Mix(asked.lengths if isinstance(asked.lengths, tuple) else lengths_of(asked.lengths))
    for num_workers, num_fronts in asked.shapes:
        print(f"\n{num_workers} worker(s), {num_fronts} front(s)\n{HEADER}", flush=True)
        async with fleet(num_workers, num_fronts, **_members(asked.workers)) as running:
            await _curve(running, mix, asked)


async def _curve(running: Fleet, mix: Mix, asked: argparse.Namespace) -> None:
    callers = [Caller(front.url) for front in running.fronts]
    clients = 2 * PLACES * len(running.workers)
    seconds = asked.warm_up + asked.seconds
    heard, window = await closed_loop(callers, mix.asks(1), seconds, clients)
    peak = summary(heard, _counted(window, asked.warm_up))
    print(row(f"closed, {clients} clients", peak), flush=True)
    if not peak.answered_per_s:
        raise RuntimeError("nothing was answered in that time: give it more --seconds")
    for number, share in enumerate(asked.shares):
        rate = share * peak.answered_per_s
        before_s = _cpu_s()
        heard, window = await open_loop(callers, mix.asks(2 + number, rate), seconds)
        told = summary(heard, _counted(window, asked.warm_up))
        name = f"{share:g} x = {rate:.1f}/s"
        print(row(name, told) + _notes(told, peak, (_cpu_s() - before_s) / seconds), flush=True)
    for caller in callers:
        caller.close()


def _notes(told: Summary, peak: Summary, client_cores: float) -> str:
    """Goodput as a share of the peak, and what the client itself took of the machine."""
    failed = f"  FAILED {told.failed}" if told.failed else ""
    return (
        f"   {told.tokens_per_s / peak.tokens_per_s:.2f} of peak, client {client_cores:.2f} "
        f"cores{failed}"
    )


def _members(workers: str) -> dict[str, Any]:
    """What `fleet` needs to know of such workers."""
    flags = ("--max-batch-size", str(PLACES), "--max-new-tokens", "512", "--no-prefix-cache")
    front = ("--max-queue-depth", str(QUEUE), "--max-new-tokens", "512")
    if workers == "sample":
        return {"worker_flags": (*flags, "--threads", "1"), "front_flags": front}
    echo = {
        "worker_flags": (*flags, "--model", "echo=echo"),
        "front_flags": front,
        "worker": "scripts.chaos.worker",
    }
    return echo | {"env": {"AIOS_CHAOS_STEP_S": str(STEP_S if workers == "paced" else 0.0)}}


def _counted(window: Window, warm_up_s: float) -> Window:
    return Window(window.begun + warm_up_s, window.ended)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _shapes(text: str) -> list[tuple[int, int]]:
    pairs = (part.partition("x") for part in text.split(","))
    return [(int(workers), int(fronts)) for workers, _, fronts in pairs]


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    asyncio.run(main())
