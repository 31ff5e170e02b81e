"""How full the queues are: what `/metrics` and people are told. One round trip for each server;
nothing is changed."""

from collections.abc import Sequence
from dataclasses import dataclass

from shared import keys
from shared.broker import Broker
from shared.messages import PRIORITIES, Priority
from shared.script import Script


@dataclass(frozen=True)
class WaitingLine:
    """What waits of one class: jobs, their expected cost in tokens (exact: it is counted as jobs
    come and go), and the seconds since the oldest came (0: none waits)."""

    jobs: int = 0
    cost: int = 0
    oldest_s: float = 0.0

    def __add__(self, other: "WaitingLine") -> "WaitingLine":
        return WaitingLine(
            self.jobs + other.jobs, self.cost + other.cost, max(self.oldest_s, other.oldest_s)
        )


@dataclass(frozen=True)
class QueueState:
    """One model's: what waits, by class, bytes of that, and jobs in workers' hands."""

    lines: dict[Priority, WaitingLine]
    num_bytes: int
    running: int

    @property
    def queued(self) -> int:
        return sum(line.jobs for line in self.lines.values())


class QueueStats:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._queues = Script(broker, "queues")

    async def look(self, models: Sequence[str]) -> tuple[dict[str, QueueState], int]:
        """The queue of each model, all shards together, and how many convicted jobs are kept."""
        calls = {shard: {"models": models, "classes": PRIORITIES} for shard in self._broker.shards}
        found = await self._queues.call_all(calls)
        states = {
            model: _sum([_state(*answer[1 + place]) for answer in found])
            for place, model in enumerate(models)
        }
        return states, sum(answer[0] for answer in found)


class WaitingModels:
    """Which of many models have work, in one round trip for each server."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._waiting = Script(broker, "waiting")

    async def among(self, models: Sequence[str]) -> set[str]:
        """Return those of the models for which a job waits, or has been left by its worker."""
        found: set[str] = set()
        if not models:
            return found
        for part in self._broker.together(self._broker.shards):
            prefixes = [keys.prefix(shard) for shard in part]
            places = await self._waiting.call(
                part[0], shards=prefixes, models=models, classes=PRIORITIES
            )
            found.update(models[place] for place in places)
        return found


def _state(running: int, num_bytes: int, *lines: tuple[int, int, int]) -> QueueState:
    named = zip(PRIORITIES, lines, strict=True)
    return QueueState(
        {name: WaitingLine(jobs, cost, ms / 1000) for name, (jobs, cost, ms) in named},
        num_bytes,
        running,
    )


def _sum(states: Sequence[QueueState]) -> QueueState:
    lines = {
        name: sum((state.lines[name] for state in states), WaitingLine()) for name in PRIORITIES
    }
    return QueueState(
        lines, sum(state.num_bytes for state in states), sum(state.running for state in states)
    )
