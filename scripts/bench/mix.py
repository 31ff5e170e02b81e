"""Ask many models of all modalities in turn, of which a worker may hold only some in memory.

    python -m scripts.bench.mix --most 4 --seconds 180 --model ID=PATH --model ID=PATH ...

A Redis and a worker run in this program. `--at-once` callers ask one model after the other for its
trial task, each from another model on, so that models have to make room for others all the time.
Printed are the requests and failures, the models loaded and evicted, how many of them were freed
while they had jobs in hand (none should), and the most memory of the process. The exit status is 1
if a request failed, if a model was freed in use, or if more than `--most` were in memory at once.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import torch
import transformers

from scripts.bench.measure import header
from scripts.cli.embedded_redis import EmbeddedRedis
from shared.artifacts.store import ArtifactStore
from shared.events.log import LogReader
from shared.events.subscriptions import Subscriptions
from shared.messages import Done, Failed, Task, Terminal, name_of
from shared.queue import keys
from shared.queue.broker import Broker, connect
from shared.queue.leases import QueuePolicy
from shared.queue.submission import QueueLimits, Quota, Submissions, SubmitRequest
from shared.settings.models import ModelEntry
from shared.settings.settings import Settings, settings_of
from shared.tasks.task_table import TASKS
from shared.telemetry.memory import resident_bytes
from worker.engine.task_runner import TaskRunnerSpec
from worker.host.budget import Budget
from worker.host.loading import load_models, survey
from worker.host.service import WorkerService

_TENANT = "bench"
_LOOK_S = 0.1
_NO_LIMIT = 1 << 40
_MIB = 2**20


@dataclass(frozen=True)
class Trial:
    """The trial task of a model, and the bytes that it takes, by the ids of their artifacts."""

    task: Task
    files: Mapping[str, bytes]


@dataclass
class Tally:
    """The events so far.

    `done` counts answers by modality, and `failures` sentences on what failed. `num_in_use` counts
    models that were freed while they had jobs in hand, and `most_loaded` is the most that were in
    memory at once. `peak_bytes` is the most memory of the process.
    """

    done: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    num_loads: int = 0
    num_evicted: int = 0
    num_in_use: int = 0
    most_loaded: int = 0
    first_bytes: int = 0
    peak_bytes: int = 0

    def lines(self) -> list[str]:
        """Return the figures as lines for people."""
        done = ", ".join(f"{name} {count}" for name, count in sorted(self.done.items()))
        grown_mib = (self.peak_bytes - self.first_bytes) / _MIB
        lines = [
            f"requests done      {self.done.total()} ({done})",
            f"requests failed    {self.failures.total()}",
            f"slowest request    {self.slowest_s:.1f} s",
            f"loads              {self.num_loads}",
            f"evictions          {self.num_evicted}",
            f"evictions in use   {self.num_in_use}",
            f"most in memory     {self.most_loaded} models",
            f"peak memory        {self.peak_bytes / _MIB:.0f} MiB ({grown_mib:+.0f} from the start)",
        ]
        for sentence, count in self.failures.most_common():
            lines.append(f"  {count} x {sentence}")
        return lines


class UseWatch(logging.Handler):
    """Counts the models that the worker frees while they have jobs in hand, by its log."""

    def __init__(self, worker: WorkerService, tally: Tally) -> None:
        super().__init__()
        self._worker = worker
        self._tally = tally

    def emit(self, record: logging.LogRecord) -> None:
        # The worker logs this when it has just freed a model, before its loop does anything else.
        if record.msg != "model unloaded":
            return
        if self._worker.ledger.claims_of(vars(record)["fields"]["model"]):
            self._tally.num_in_use += 1


def trial_of(entry: ModelEntry, settings: Settings) -> Trial:
    """Load a model, and return its trial task. Raise SettingsError."""
    [model] = load_models(settings.model_copy(update={"models": (entry,)}))
    spec = model.runner.spec
    files: Mapping[str, bytes] = {}
    if isinstance(spec, TaskRunnerSpec):
        files = spec.trial_files
    return Trial(spec.trial, files)


async def stored(trial: Trial, artifacts: ArtifactStore) -> Task:
    """Store the files of a trial, and return its task with their ids."""
    ids: dict[str, str] = {}
    for name, data in trial.files.items():
        ids[name] = (await artifacts.put(_TENANT, data)).id
    changed: dict[str, str] = {}
    for name in trial.task.__struct_fields__:
        value = getattr(trial.task, name)
        if isinstance(value, str) and value in ids:
            changed[name] = ids[value]
    return msgspec.structs.replace(trial.task, **changed)


class Callers:
    """Callers that ask for the tasks of models, by model."""

    def __init__(self, broker: Broker, tasks: Mapping[str, Task], tally: Tally) -> None:
        self._submissions = Submissions(broker)
        self._subscriptions = Subscriptions(broker.client(keys.PRESENCE))
        self._reader = LogReader(broker, self._subscriptions)
        self._tasks = tasks
        self._tally = tally

    async def run(self, seconds: float, at_once: int) -> None:
        """Ask for one task after the other, by `at_once` callers, for some seconds.

        However long it takes, each model is asked at least once.
        """
        ends_s = time.monotonic() + seconds
        least = -(-len(self._tasks) // at_once)
        callers: list[asyncio.Task[None]] = []
        for number in range(at_once):
            first = number * len(self._tasks) // at_once
            callers.append(asyncio.create_task(self._call(first, ends_s, least)))
        await asyncio.gather(*callers)
        await self._subscriptions.close()

    async def _call(self, first: int, ends_s: float, least: int) -> None:
        models = list(self._tasks)
        turn = first
        while time.monotonic() < ends_s or turn < first + least:
            model = models[turn % len(models)]
            turn += 1
            asked_s = time.monotonic()
            end = await self._ask(model)
            self._tally.slowest_s = max(self._tally.slowest_s, time.monotonic() - asked_s)
            if isinstance(end, Done):
                self._tally.done[TASKS[name_of(self._tasks[model])].modality] += 1
            elif isinstance(end, Failed):
                self._tally.failures[f"{model}: {end.code}: {end.message}"] += 1
            else:
                self._tally.failures[f"{model}: {end}"] += 1

    async def _ask(self, model: str) -> Terminal | None:
        """Submit the task of a model, and return its end, None for a log without one."""
        request = SubmitRequest(model, (self._tasks[model],), tenant=_TENANT)
        request_id, jobs = self._submissions.jobs_of(request)
        await self._submissions.submit(request, request_id, jobs, Quota(), QueueLimits(_NO_LIMIT))
        async for _, event in self._reader.follow(jobs[0].id):
            if isinstance(event, Terminal):
                return event
        return None


async def mix(
    entries: Sequence[ModelEntry], *, most: int, seconds: float, at_once: int, watermark: float
) -> Tally:
    """Ask the models in turn, and return what happened. Raise SettingsError for a bad model."""
    settings = settings_of({"models": tuple(entries), "device": "cpu", "threads": 1})
    trials = {entry.id: trial_of(entry, settings) for entry in entries}
    tally = Tally()
    with EmbeddedRedis() as server:
        redis = connect(server.url)
        broker = Broker(redis)
        artifacts = ArtifactStore(broker, server.artifact_url)
        tasks: dict[str, Task] = {}
        for name, trial in trials.items():
            tasks[name] = await stored(trial, artifacts)
        is_ready = asyncio.Event()
        worker = WorkerService(
            broker,
            QueuePolicy(lease_s=3.0, result_ttl_s=60),
            drain_timeout_s=5.0,
            budget=Budget(most, watermark),
            artifacts=artifacts,
            on_ready=is_ready.set,
        )
        worker.unloaded = [survey(entry, settings) for entry in entries]
        async with _working(worker, is_ready, tally):
            await Callers(broker, tasks, tally).run(seconds, at_once)
        await redis.aclose()
    return tally


@asynccontextmanager
async def _working(
    worker: WorkerService, is_ready: asyncio.Event, tally: Tally
) -> AsyncIterator[None]:
    """Run a worker that has no model in memory yet, and watch it. Raise RuntimeError if it broke."""
    watch = UseWatch(worker, tally)
    log = logging.getLogger("aios.host")
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(watch)
    stop = asyncio.Event()
    running = asyncio.create_task(worker.run(list, stop))
    looking = asyncio.create_task(_look(worker, tally))
    try:
        waiting = asyncio.create_task(is_ready.wait())
        await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
        yield
    finally:
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking
        stop.set()
        survived = await running
        log.removeHandler(watch)
        log.setLevel(level)
    tally.num_loads, tally.num_evicted = worker.num_loads, worker.num_evicted
    if not survived:
        raise RuntimeError("The worker broke; its log says why.")


async def _look(worker: WorkerService, tally: Tally) -> None:
    """Note the memory, and the models in it, until cancelled."""
    tally.first_bytes = resident_bytes()
    while True:
        loaded = [model for model in worker.models.values() if model.residence != "unloaded"]
        tally.most_loaded = max(tally.most_loaded, len(loaded))
        tally.peak_bytes = max(tally.peak_bytes, resident_bytes())
        await asyncio.sleep(_LOOK_S)


def main(argv: Sequence[str] | None = None) -> int:
    """Print what happened, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", required=True, metavar="ID=PATH")
    parser.add_argument("--most", type=int, default=4, help="models in memory at once")
    parser.add_argument("--watermark", type=float, default=0.85, help="of the memory")
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--at-once", type=int, default=4, help="callers")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    # Bars of loading would stand between the lines.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    print(header(models=len(args.model), most=args.most, seconds=args.seconds), flush=True)

    entries = [ModelEntry.model_validate(text) for text in args.model]
    tally = asyncio.run(
        mix(
            entries,
            most=args.most,
            seconds=args.seconds,
            at_once=args.at_once,
            watermark=args.watermark,
        )
    )
    print("\n".join(tally.lines()))
    return int(bool(tally.failures) or tally.num_in_use > 0 or tally.most_loaded > args.most)


if __name__ == "__main__":
    sys.exit(main())
