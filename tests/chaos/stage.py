"""A small fleet that is driven to exact phases of a job, and clients who know what they will be told."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from scripts.chaos.clients import Ask, Client
from scripts.chaos.invariants import Trace, traces
from scripts.chaos.members import Fleet, Member
from scripts.chaos.polling import came_true
from shared.messages import Generate, Tokens, WorkerInfo
from shared.presence import Presence

LEASE_S = 0.5
DEADLINE_S = 10.0
LENGTH = 12
TAILS = ("a tail of words", "another of them", "and a third one", "more", "yet more", "the last of them")
MODES = ("sync", "sse", "scoring")

PHASES = {
    "queued": (0, 0),
    "prefill": (0, 0),
    "decode": (3, 2),
    "unsent": (LENGTH - 1, len(TAILS) - 1),
    "unacked": (LENGTH - 1, len(TAILS) - 1),
}
"""In the line; taken, nothing said; some tokens logged; the last token on its way to Redis; the answer to it on its way
back. Each with the tokens, and the scores, beyond which a job is held."""


class Stage:
    """Two workers and one front. In each scene `victim` gets all jobs, because `rescuer` is stopped at first."""

    victim: Member
    rescuer: Member
    gate: Path

    def __init__(self, made: Fleet, gates: Path) -> None:
        self.fleet = made
        self._gates = gates
        self._client = Client(lambda: [front.url for front in made.fronts])
        self._scenes = 0

    async def open(self) -> None:
        while len(self.fleet.workers) < 2:
            await self.fleet.add_worker()
        self.victim, self.rescuer = self.fleet.workers
        await self.rescuer.stop()
        self._scenes += 1
        self.gate = self._gates / f"gate{self._scenes}"
        self.gate.touch()

    def ask(self, phase: str, name: str) -> list["asyncio.Task[None]"]:
        """One client of each mode, who fails unless it gets what an undisturbed run says."""
        tokens, scores = PHASES[phase]
        return [
            asyncio.create_task(self._expect(ask(f"{self.gate.name}-{name}-{mode}", mode, self.gate.name, count)))
            for mode, count in zip(MODES, (tokens, tokens, scores), strict=True)
        ]

    async def traces(self, name: str) -> list[Trace]:
        """The jobs of the clients called `name`."""
        found = await traces(self.fleet.redis)
        return [item for item in found if item.job.request_id.startswith(f"{self.gate.name}-{name}-")]

    def is_held(self, trace: Trace) -> bool:
        return (self.gate.parent / f"{self.gate.name}.{trace.job.id}:{trace.epoch}").exists()

    async def info(self, member: Member) -> WorkerInfo | None:
        """What a worker last said of itself; None when it has left."""
        known = (await Presence(self.fleet.redis).fleet()).workers
        return next((item for item in known if f"-{member.pid}-" in item.id), None)

    async def close(self) -> None:
        await self._client.close()

    async def _expect(self, ask: Ask) -> None:
        answer = await self._client.ask(ask)
        assert answer.is_right, answer


def ask(name: str, mode: str, gate: str, held_after: int) -> Ask:
    prompt = f"hold:{gate}:{held_after} {name}"
    if mode == "scoring":
        expected = json.dumps([-float(len(tail)) for tail in TAILS])
        return Ask(name, "scoring", prompt, continuations=TAILS, expected=expected)
    return Ask(name, "sse" if mode == "sse" else "sync", prompt, LENGTH, expected=prompt[:LENGTH])


def num_tokens(trace: Trace) -> int:
    return sum(len(event.ids) for event in trace.events if isinstance(event, Tokens))


def num_logged(trace: Trace, phase: str) -> int:
    """The tokens that a job has in its log when it is held; scores come with its end."""
    return PHASES[phase][0] if isinstance(trace.job.task, Generate) else 0


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    assert await came_true(condition, DEADLINE_S), f"never happened: {what}"
