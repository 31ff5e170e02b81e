"""The state of the queues, for `/metrics` and people.

It takes one round trip for each server, and changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.messages import PRIORITIES, Priority
from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.script import Script


@dataclass(frozen=True)
class WaitingLine:
    """The waiting jobs of one class: their number, their cost in tokens, the age of the oldest.

    The cost is exact, as it is counted when jobs come and go. An age of 0 means that none waits.
    """

    jobs: int = 0
    cost: int = 0
    oldest_s: float = 0.0

    def __add__(self, other: "WaitingLine") -> "WaitingLine":
        return WaitingLine(
            jobs=self.jobs + other.jobs,
            cost=self.cost + other.cost,
            oldest_s=max(self.oldest_s, other.oldest_s),
        )


@dataclass(frozen=True)
class QueueState:
    """The queue of one model.

    It has the waiting jobs by class, their bytes, and the number of jobs in workers' hands.
    """

    lines: dict[Priority, WaitingLine]
    num_bytes: int
    running: int

    @property
    def queued(self) -> int:
        return sum(line.jobs for line in self.lines.values())


class QueueStats:
    """Reads the queues of all shards."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._queues = Script(broker, "queues")

    async def look(self, models: Sequence[str]) -> tuple[dict[str, QueueState], int]:
        """Return each model's queue, over all shards, and the number of convicted jobs."""
        calls = {shard: {"models": models, "classes": PRIORITIES} for shard in self._broker.shards}
        answers = await self._queues.call_all(calls)
        num_convicted = sum(answer[0] for answer in answers)
        states = {}
        for index, model in enumerate(models):
            # The first value of an answer is the number of convicted jobs; the models follow.
            states[model] = _sum([_state(*answer[1 + index]) for answer in answers])
        return states, num_convicted


class WaitingModels:
    """Finds the models that have work, in one round trip for each server."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._waiting = Script(broker, "waiting")

    async def among(self, models: Sequence[str]) -> dict[str, int]:
        """Return those of the models for which a job waits, or has a lapsed lease.

        They come with the best class of their work, as its index in PRIORITIES.
        """
        waiting: dict[str, int] = {}
        if not models:
            return waiting
        for part in self._broker.together(self._broker.shards):
            prefixes = [keys.prefix(shard) for shard in part]
            with_work = await self._waiting.call(
                part[0], shards=prefixes, models=models, classes=PRIORITIES
            )
            for index, rank in with_work:
                name = models[index]
                waiting[name] = min(rank, waiting.get(name, rank))
        return waiting


def _state(running: int, num_bytes: int, *lines: tuple[int, int, int]) -> QueueState:
    """Return the queue of a model on one shard, from the values of `queues.lua`."""
    by_class = {}
    for name, (jobs, cost, oldest_ms) in zip(PRIORITIES, lines, strict=True):
        by_class[name] = WaitingLine(jobs, cost, oldest_ms / 1000)
    return QueueState(by_class, num_bytes, running)


def _sum(states: Sequence[QueueState]) -> QueueState:
    """Return the queue of a model over all shards."""
    lines = {name: WaitingLine() for name in PRIORITIES}
    num_bytes = 0
    running = 0
    for state in states:
        for name in PRIORITIES:
            lines[name] += state.lines[name]
        num_bytes += state.num_bytes
        running += state.running
    return QueueState(lines, num_bytes, running)
