"""Check that a worker serves many more models than fit in its memory, which stays flat.

    python -m scripts.bench.loads.models --models 100 --budget 3 --clients 8

The catalogue has `--models` models, which are all copies of the default model, and a damaged one.
One worker holds at most `--budget` of them. First each model gets one request. Then the clients
send requests to a working set of five models for a while, and some to the damaged one. The exit
status is 1 if a request to a sound model failed, if one to the damaged model did not, if more
models were loaded than the budget, or if the memory of the worker grew by more than
`--most-growth`.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter as now

import httpx

from scripts.bench.measure import header
from scripts.chaos.polling import came_true
from scripts.chaos.processes import Fleet, fleet
from shared.fleet.catalogue import Catalogue
from shared.fleet.presence import Presence
from shared.messages import WorkerInfo
from shared.settings.models import ModelEntry
from shared.settings.settings import DEFAULT_MODEL

_WORKING_SET = 5
_MIB = 2**20
_BODY = {"prompt": "Compute: 347 + 285", "max_tokens": 8, "temperature": 0}


class Tally:
    """The outcomes of the requests, and the loaded models and the memory of the worker."""

    def __init__(self) -> None:
        self.num_answered = 0
        self.failures: list[str] = []
        self.num_damaged_failed = 0
        self.damaged_answers: list[str] = []
        self.most_loaded = 0
        self.mib: list[float] = []


async def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--budget", type=int, default=3)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="time of the load on the working set"
    )
    parser.add_argument("--most-growth", type=float, default=0.1)
    args = parser.parse_args(argv)

    print(header(models=args.models, budget=args.budget, clients=args.clients), flush=True)
    flags = ["--model", "first=echo", "--max-loaded-models", str(args.budget), "--threads", "1"]
    flags += ["--kv-memory-mib", "16", "--queue-timeout-s", "120"]
    with tempfile.TemporaryDirectory() as directory:
        damaged = Path(directory) / "damaged"
        shutil.copytree(DEFAULT_MODEL, damaged)
        (damaged / "model.safetensors").write_bytes(b"no weights")
        front_flags = ("--queue-timeout-s", "120")
        async with fleet(1, 1, worker_flags=flags, front_flags=front_flags) as running:
            return await _run(running, args, damaged)


async def _run(running: Fleet, args: argparse.Namespace, damaged: Path) -> int:
    """Put the load on a fleet, and return the exit status."""
    catalogue = Catalogue(running.redis)
    names = [f"m{number}" for number in range(args.models)]
    for name in names:
        await catalogue.add(ModelEntry(id=name, path=str(DEFAULT_MODEL)))
    await catalogue.add(ModelEntry(id="damaged", path=str(damaged)))
    await came_true(lambda: _knows(running, len(names) + 2), 60.0)

    tally = Tally()
    watching = asyncio.create_task(_watch(running, tally))
    async with httpx.AsyncClient(base_url=running.fronts[0].url, timeout=180) as http:
        await came_true(lambda: _lists(http, len(names) + 2), 60.0)
        started_s = now()
        for name in names:
            await _complete(http, name, tally)
        seconds = now() - started_s
        num_failed = len(tally.failures)
        print(f"each of {len(names)} models once: {seconds:.1f} s, {num_failed} failed", flush=True)

        num_before = tally.num_answered
        working_set = names[:_WORKING_SET]
        ends_s = now() + args.seconds
        clients = [_damaged_client(http, tally, ends_s)]
        for number in range(args.clients):
            clients.append(_client(http, working_set, number, tally=tally, ends_s=ends_s))
        await asyncio.gather(*clients)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return _report(tally, tally.num_answered - num_before, args)


def _report(tally: Tally, num_answered: int, args: argparse.Namespace) -> int:
    """Print the figures, and return the exit status.

    `num_answered` is the number of answers of the working set.
    """
    print(
        f"{args.clients} clients on {_WORKING_SET} models: {num_answered} answered in "
        f"{args.seconds:.0f} s"
    )
    num_damaged = tally.num_damaged_failed + len(tally.damaged_answers)
    print(
        f"failed: {len(tally.failures)}; of the damaged model {tally.num_damaged_failed} of "
        f"{num_damaged}"
    )
    # The first third of the time is a warm-up, in which memory may still grow.
    third = len(tally.mib) // 3
    growth = max(tally.mib[-third:]) / max(tally.mib[third : 2 * third]) - 1
    print(
        f"most in memory at once: {tally.most_loaded}; worker {tally.mib[-1]:.0f} MiB, "
        f"grew by {growth:.1%}"
    )
    for problem in (*tally.failures[:5], *tally.damaged_answers[:5]):
        print(problem)

    if tally.failures or tally.damaged_answers or tally.num_damaged_failed == 0:
        return 1
    if tally.most_loaded > args.budget or growth > args.most_growth:
        return 1
    return 0


async def _client(
    http: httpx.AsyncClient, names: Sequence[str], number: int, *, tally: Tally, ends_s: float
) -> None:
    """Send requests to one model after the other, from `number` on, until the time is over."""
    while now() < ends_s:
        await _complete(http, names[number % len(names)], tally)
        number += 1


async def _complete(http: httpx.AsyncClient, name: str, tally: Tally) -> None:
    """Send one request to a model, and count its outcome."""
    response = await http.post("/v1/completions", json={"model": name, **_BODY})
    if response.status_code == 200:
        tally.num_answered += 1
    else:
        tally.failures.append(f"{name}: {response.status_code} {response.text[:200]}")


async def _damaged_client(http: httpx.AsyncClient, tally: Tally, ends_s: float) -> None:
    """Send a request to the damaged model every second, until the time is over."""
    while now() < ends_s:
        response = await http.post("/v1/completions", json={"model": "damaged", **_BODY})
        if response.status_code == 503 and "cannot be loaded" in response.text:
            tally.num_damaged_failed += 1
        else:
            tally.damaged_answers.append(response.text)
        await asyncio.sleep(1.0)


async def _watch(running: Fleet, tally: Tally) -> None:
    """Record the loaded models and the memory of the worker, until cancelled."""
    while True:
        for worker in await _workers(running):
            num_loaded = 0
            for model in worker.models:
                if worker.residences.get(model.id, "loaded") != "unloaded":
                    num_loaded += 1
            tally.most_loaded = max(tally.most_loaded, num_loaded)
            tally.mib.append(worker.memory_bytes / _MIB)
        await asyncio.sleep(0.5)


async def _knows(running: Fleet, count: int) -> bool:
    """Return whether the worker knows `count` models."""
    return any(len(worker.models) >= count for worker in await _workers(running))


async def _lists(http: httpx.AsyncClient, count: int) -> bool:
    """Return whether the front knows `count` models."""
    response = await http.get("/v1/models")
    return len(response.json()["data"]) >= count


async def _workers(running: Fleet) -> tuple[WorkerInfo, ...]:
    return (await Presence(running.redis).fleet()).workers


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
