"""What workers got done between two looks."""

from dataclasses import dataclass

from shared.fleet.snapshot import Snapshot, Worker


@dataclass(frozen=True)
class Rates:
    """A second, of all workers; jobs that ended, and those of them in which the engine failed."""

    tokens: float = 0.0
    jobs: float = 0.0
    errors: float = 0.0

    def __add__(self, other: "Rates") -> "Rates":
        return Rates(self.tokens + other.tokens, self.jobs + other.jobs, self.errors + other.errors)


def rates(before: Snapshot, after: Snapshot) -> Rates | None:
    """By the workers' own clocks, as they renew their records when they like. None: no worker has
    told anything new."""
    earlier = {worker.id: worker for worker in before.workers}
    pairs = [(earlier[worker.id], worker) for worker in after.workers if worker.id in earlier]
    found = [_rate(first, last) for first, last in pairs if last.uptime_s > first.uptime_s]
    return sum(found, Rates()) if found else None


def _rate(first: Worker, last: Worker) -> Rates:
    elapsed_s = last.uptime_s - first.uptime_s
    earlier = {model.id: model for model in first.models}
    pairs = [(earlier[model.id], model) for model in last.models if model.id in earlier]
    return Rates(
        sum(new.tokens - old.tokens for old, new in pairs) / elapsed_s,
        sum(new.jobs - old.jobs for old, new in pairs) / elapsed_s,
        sum(new.errors - old.errors for old, new in pairs) / elapsed_s,
    )
