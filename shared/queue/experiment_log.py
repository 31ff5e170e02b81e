"""The log of experiments: how jobs of each arm ended, and what callers say of the answers.

The script that ends a job notes its outcome, so that each job is noted once, whatever becomes of
its workers and fronts. Both streams keep about the last 100,000 entries of a shard, and expire 30
days after the last one.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from shared.queue import keys
from shared.queue.broker import Broker
from shared.queue.script import Script

_PAGE = 1000
_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class JobOutcome:
    """The end of a job. `state` is done, failed or cancelled.

    `first_ms` is the time from the queue to the first token, None without one. `total_ms` is that
    to the end. `cost` is what its tenant was charged, in tokens.
    """

    job_id: str
    request_id: str
    arm: str
    state: str
    first_ms: int | None
    total_ms: int
    cost: int


@dataclass(frozen=True)
class Feedback:
    """A caller's judgement of the answer to a request. `score` is from -1 to 1."""

    request_id: str
    arm: str
    score: float
    comment: str


@dataclass(frozen=True)
class Assignment:
    """The experiment of a request, and the arm that answers it."""

    experiment: str
    arm: str


class ExperimentLog:
    """Reads the log of experiments, and takes feedback."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._feedback = Script(broker, "feedback")

    async def rate(
        self, request_id: str, tenant: str, *, score: float, comment: str
    ) -> Assignment | None:
        """Note feedback on a request, in the place of earlier feedback.

        Return None, and note nothing, for a request that is of no experiment, older than a day, or
        another tenant's.
        """
        answer = await self._feedback.call(
            keys.shard_of(request_id),
            request=request_id,
            tenant=tenant,
            # As text: Lua would write a number of its own with fewer digits.
            score=repr(score),
            comment=comment,
        )
        if not answer:
            return None
        experiment, arm = answer
        return Assignment(experiment.decode(), arm.decode())

    async def outcomes(self, experiment: str) -> list[JobOutcome]:
        """Return the outcomes of an experiment's jobs, those of each shard in their order."""
        return await self._of_all_shards(keys.outcomes, experiment, _outcome)

    async def feedback(self, experiment: str) -> list[Feedback]:
        """Return the feedback on an experiment's requests, at most one for each."""
        return await self._of_all_shards(keys.feedback, experiment, _feedback)

    async def _of_all_shards(
        self,
        key_of: Callable[[str, str], str],
        experiment: str,
        read: Callable[[dict[str, str]], _Entry],
    ) -> list[_Entry]:
        reading = []
        for shard in self._broker.shards:
            reading.append(self._on_shard(shard, key_of(shard, experiment)))
        entries = []
        for values in await asyncio.gather(*reading):
            entries += [read(fields) for fields in values]
        return entries

    async def _on_shard(self, shard: str, stream: str) -> list[dict[str, str]]:
        client: Any = self._broker.client(shard)
        entries: list[dict[str, str]] = []
        start = "-"
        while page := await client.xrange(stream, min=start, count=_PAGE):
            for entry, fields in page:
                entries.append({name.decode(): value.decode() for name, value in fields.items()})
                # The next page begins behind this entry: `(` leaves it out.
                start = f"({entry.decode()}"
        return entries


def _outcome(fields: dict[str, str]) -> JobOutcome:
    first_ms = None
    if fields["first_ms"]:
        first_ms = int(fields["first_ms"])
    return JobOutcome(
        job_id=fields["job"],
        request_id=fields["request"],
        arm=fields["arm"],
        state=fields["state"],
        first_ms=first_ms,
        total_ms=int(fields["total_ms"]),
        cost=int(fields["cost"]),
    )


def _feedback(fields: dict[str, str]) -> Feedback:
    return Feedback(
        request_id=fields["request"],
        arm=fields["arm"],
        score=float(fields["score"]),
        comment=fields["comment"],
    )
