"""Measure a fleet under growing load, up to three times its peak.

    # Workers that wait 20 ms in each step, as for a GPU:
    python -m scripts.bench.loads.curve
    # Workers that compute on the cores of this machine:
    python -m scripts.bench.loads.curve --workers sample
    # Other numbers of workers and fronts, WORKERSxFRONTS:
    python -m scripts.bench.loads.curve --shapes 1x1,2x2

For each shape a closed loop with more clients than slots finds the peak rate. Then requests arrive
as a Poisson process at shares of that rate. All shapes have the same limit of the queue. The
client, the fronts, Redis and the workers share this machine.
"""

import argparse
import asyncio
import os
import resource
from collections.abc import Sequence
from typing import Any

from scripts.bench.loads.caller import Caller
from scripts.bench.loads.drive import closed_loop, open_loop
from scripts.bench.loads.plan import Mix, lengths_of
from scripts.bench.loads.tally import HEADER, Summary, Window, row, summary
from scripts.bench.measure import header
from scripts.chaos.processes import Fleet, fleet

SHARES = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2, 3.0)
SLOTS = 16
STEP_S = 0.02
QUEUE = 64
LENGTHS = "40:16x2,200:48x2,800:96"


async def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", choices=["paced", "echo", "sample"], default="paced")
    parser.add_argument(
        "--shapes", type=_shapes, default=[(1, 1), (2, 1), (1, 2), (2, 2)], help="WORKERSxFRONTS"
    )
    parser.add_argument(
        "--shares", type=_numbers, default=SHARES, help="rates as shares of the peak"
    )
    parser.add_argument("--seconds", type=float, default=12.0, help="of each row that count")
    parser.add_argument(
        "--warm-up", type=float, default=4.0, help="seconds of each row that do not"
    )
    parser.add_argument(
        "--lengths", type=lengths_of, default=LENGTHS, help="CHARACTERS:TOKENSxWEIGHT"
    )
    args = parser.parse_args(argv)

    print(header(workers=args.workers, slots=SLOTS, queue=QUEUE, seconds=args.seconds))
    mix = Mix(args.lengths)
    for num_workers, num_fronts in args.shapes:
        print(f"\n{num_workers} worker(s), {num_fronts} front(s)\n{HEADER}", flush=True)
        async with fleet(num_workers, num_fronts, **_members(args.workers)) as running:
            await _curve(running, mix, args)


async def _curve(running: Fleet, mix: Mix, args: argparse.Namespace) -> None:
    """Measure the peak of a fleet, then print a row for each share of it."""
    callers = [Caller(front.url) for front in running.fronts]
    clients = 2 * SLOTS * len(running.workers)
    seconds = args.warm_up + args.seconds

    outcomes, window = await closed_loop(callers, mix.requests(1), seconds, clients)
    peak = summary(outcomes, _counted(window, args.warm_up))
    print(row(f"closed, {clients} clients", peak), flush=True)
    if not peak.answered_per_s:
        raise RuntimeError("nothing was answered in that time: give it more --seconds")

    for number, share in enumerate(args.shares):
        rate = share * peak.answered_per_s
        cpu_s_before = _cpu_s()
        outcomes, window = await open_loop(callers, mix.requests(2 + number, rate), seconds)
        figures = summary(outcomes, _counted(window, args.warm_up))
        client_cores = (_cpu_s() - cpu_s_before) / seconds
        name = f"{share:g} x = {rate:.1f}/s"
        print(row(name, figures) + _notes(figures, peak, client_cores), flush=True)

    for caller in callers:
        caller.close()


def _notes(figures: Summary, peak: Summary, client_cores: float) -> str:
    """Return the share of the peak's tokens per second, and the cores that the client used."""
    share = figures.tokens_per_s / peak.tokens_per_s
    notes = f"   {share:.2f} of peak, client {client_cores:.2f} cores"
    if figures.failed:
        notes += f"  FAILED {figures.failed}"
    return notes


def _members(workers: str) -> dict[str, Any]:
    """Return the options of `fleet` for workers of this kind."""
    flags = ("--max-batch-size", str(SLOTS), "--max-new-tokens", "512", "--no-prefix-cache")
    front_flags = ("--max-queue-depth", str(QUEUE), "--max-new-tokens", "512")
    if workers == "sample":
        return {"worker_flags": (*flags, "--threads", "1"), "front_flags": front_flags}
    step_s = STEP_S if workers == "paced" else 0.0
    return {
        "worker_flags": (*flags, "--model", "echo=echo"),
        "front_flags": front_flags,
        "worker": "scripts.chaos.worker",
        "env": {"AIOS_CHAOS_STEP_S": str(step_s)},
    }


def _counted(window: Window, warm_up_s: float) -> Window:
    """Return the window without the warm-up."""
    return Window(window.started + warm_up_s, window.ended)


def _cpu_s() -> float:
    """Return the seconds of CPU time that this process, the client, has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _shapes(text: str) -> list[tuple[int, int]]:
    shapes = []
    for part in text.split(","):
        workers, _, fronts = part.partition("x")
        shapes.append((int(workers), int(fronts)))
    return shapes


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    asyncio.run(main())
