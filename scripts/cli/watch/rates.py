"""The work that workers got done between two snapshots of a fleet."""

from dataclasses import dataclass

from shared.fleet.snapshot import Snapshot, Worker


@dataclass(frozen=True)
class Rates:
    """Rates of all workers a second: tokens, jobs that ended, and jobs that failed in an engine."""

    tokens: float = 0.0
    jobs: float = 0.0
    errors: float = 0.0

    def __add__(self, other: "Rates") -> "Rates":
        return Rates(self.tokens + other.tokens, self.jobs + other.jobs, self.errors + other.errors)


def rates(before: Snapshot, after: Snapshot) -> Rates | None:
    """Return the rates between two snapshots, or None if no worker has renewed its record.

    Workers renew their records at different times, so each rate is over the worker's own uptime.
    """
    earlier = {worker.id: worker for worker in before.workers}
    total = None
    for last in after.workers:
        first = earlier.get(last.id)
        if first is None or last.uptime_s <= first.uptime_s:
            continue
        if total is None:
            total = Rates()
        total += _worker_rates(first, last)
    return total


def _worker_rates(first: Worker, last: Worker) -> Rates:
    """Return the rates of the models that one worker has in both snapshots."""
    elapsed_s = last.uptime_s - first.uptime_s
    earlier = {model.id: model for model in first.models}
    total = Rates()
    for new in last.models:
        old = earlier.get(new.id)
        if old is not None:
            total += Rates(
                (new.tokens - old.tokens) / elapsed_s,
                (new.jobs - old.jobs) / elapsed_s,
                (new.errors - old.errors) / elapsed_s,
            )
    return total
