"""The work that workers got done between two looks."""

from dataclasses import dataclass

from shared.fleet.snapshot import Snapshot, Worker


@dataclass(frozen=True)
class Rates:
    """Tokens, ended jobs, and jobs that failed in an engine: a second, of all workers."""

    tokens: float = 0.0
    jobs: float = 0.0
    errors: float = 0.0

    def __add__(self, other: "Rates") -> "Rates":
        return Rates(self.tokens + other.tokens, self.jobs + other.jobs, self.errors + other.errors)


def rates(before: Snapshot, after: Snapshot) -> Rates | None:
    """Return the rates between two looks, None where no worker has renewed its record.

    Each worker's own clock counts, since they renew their records when they like.
    """
    earlier = {worker.id: worker for worker in before.workers}
    total = None
    for last in after.workers:
        first = earlier.get(last.id)
        if first is not None and last.uptime_s > first.uptime_s:
            total = (total or Rates()) + _rate(first, last)
    return total


def _rate(first: Worker, last: Worker) -> Rates:
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
