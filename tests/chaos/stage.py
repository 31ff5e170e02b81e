"""A small fleet that is driven to exact phases of a job, and clients who know what they will be
told."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from scripts.chaos.clients import Client
from scripts.chaos.invariants import Trace, traces
from scripts.chaos.polling import came_true
from scripts.chaos.processes import Fleet, FleetProcess
from scripts.chaos.requests import Answer, ClientRequest, Mode
from scripts.chaos.rigged import mark_of
from shared.echo_task import EchoTask
from shared.messages import Generate, Progress, Started, Tokens, WorkerInfo
from shared.presence import Presence
from shared.task_table import places_of
from tests.polling import DEADLINE_S
from worker.outbox import GATHERED_TOKENS

LEASE_S = 0.5
TAILS = (
    "a tail of words",
    "another of them",
    "and a third one",
    "more",
    "yet more",
    "the last of them",
)
ASKED: dict[str, tuple[Mode, int]] = {
    "sync": ("sync", 1),
    "sse": ("sse", 1),
    "poll": ("poll", 1),
    "choices": ("sse", 2),
    "scoring": ("scoring", 1),
}
"""One of each: how it is asked, and for how many choices."""
PLACES = sum(n for _, n in ASKED.values())


@dataclass(frozen=True)
class QueuePosition:
    """Where a job is held: behind so many of its tokens (a choice) or scores; it will say `length`
    tokens."""

    tokens: int
    scores: int
    length: int


_LAST = QueuePosition(GATHERED_TOKENS, len(TAILS) - 1, GATHERED_TOKENS + 1)
PHASES = {
    "queued": QueuePosition(0, 0, 12),
    "prefill": QueuePosition(0, 0, 12),
    "decode": QueuePosition(GATHERED_TOKENS, 2, GATHERED_TOKENS + 12),
    "unsent": _LAST,
    "unacked": _LAST,
}
"""In the line; taken, nothing said; some tokens logged (as many as are logged at once); the last
token on its way to Redis; the answer to it on its way back."""


DONE = b"\xa4type\xa4done"
"""The tag of an answer's end, as msgpack has it; steps of a task tell what is `done`, too."""
NUM_STEPS = 4
STEP_MS = 60
"""Longer than the time between two reports of progress, so that each step is told."""
STEPS_DONE = {
    "queued": 0,
    "prefill": 0,
    "decode": 2,
    "unsent": NUM_STEPS - 1,
    "unacked": NUM_STEPS - 1,
}
"""The steps of a task that are done in each phase, when it is held in the next one."""


class Stage:
    """Two workers and two fronts. In each scene `victim` gets all jobs, because `rescuer` is
    stopped at first, and all clients ask `front`, until it is lost. `asked` are the kinds of
    clients."""

    asked: ClassVar[Sequence[str]] = tuple(ASKED)
    victim: FleetProcess
    rescuer: FleetProcess
    front: FleetProcess
    gate: Path

    def __init__(self, made: Fleet, gates: Path) -> None:
        self.fleet = made
        self.answers: list[Answer] = []
        self._asking: list[asyncio.Task[None]] = []
        self._coming: list[asyncio.Task[FleetProcess]] = []
        self._gates = gates
        self._door = ""
        self._once = Client(lambda: [self._door])
        self._again = Client(lambda: [self._door], is_persistent=True)
        self._client = self._once
        self._scenes = 0

    async def open(self, *, is_persistent: bool = False) -> None:
        """A new scene, with clients who ask once or until they have an answer."""
        await asyncio.gather(*self._coming)
        self.victim, self.rescuer = self.fleet.workers
        self.front = self.fleet.fronts[0]
        await self.fleet.await_ready()
        await self.fleet.redis.config_set("appendfsync", "always")  # what is answered is on disk
        await self.rescuer.stop()
        self._door, self._client = self.front.url, self._again if is_persistent else self._once
        self.answers, self._asking, self._coming = [], [], []
        self._scenes += 1
        self.gate = self._gates / f"gate{self._scenes}"
        self.gate.touch()

    def ask(self, phase: str, name: str) -> None:
        """One client of each mode, who should get what an undisturbed run says."""
        for kind in self.asked:
            answer = Answer(self.asking(kind, f"{self.gate.name}-{name}-{kind}", phase))
            self.answers.append(answer)
            self._asking.append(asyncio.create_task(self._client.fill(answer)))

    def asking(self, kind: str, name: str, phase: str) -> ClientRequest:
        return ask(kind, name, self.gate.name, PHASES[phase])

    def lose(self, member: FleetProcess) -> None:
        """It is no longer there; clients ask the other front, and its successor starts while the
        scene goes on."""
        self.fleet.leave(member)
        self._door = self.fleet.fronts[0].url
        is_front = member is self.front
        self._coming.append(
            asyncio.create_task(self.fleet.add_front() if is_front else self.fleet.add_worker())
        )

    async def have_come_back(self) -> bool:
        """Whether each client has been sent away and asks again."""
        return all(answer.tries > 1 for answer in self.answers)

    async def go_on(self) -> None:
        """Nothing is held any longer, the rescuer is there, and everybody gets the right answer."""
        self.gate.unlink(missing_ok=True)
        self.rescuer.resume()
        await asyncio.gather(*self._asking)
        wrong = [
            (answer.request.name, answer.error, answer.said)
            for answer in self.answers
            if not answer.is_right
        ]
        assert wrong == []

    async def all_in(self, phase: str, name: str) -> bool:
        """Whether every job of the clients called `name` has come to its place, and its log and
        stream show that."""
        found = await self.traces(name)
        if len(found) < len(self.asked):
            return False
        if phase == "queued":
            return all(trace.state == "queued" for trace in found)
        if not all(self.is_held(trace) and self.is_logged(trace, phase) for trace in found):
            return False
        streams = [answer for answer in self.streams if f"-{name}-" in answer.request.name]
        return all(self.is_told(answer, phase) for answer in streams)

    def is_logged(self, trace: Trace, phase: str) -> bool:
        return num_tokens(trace) == num_logged(trace, phase)

    def is_told(self, answer: Answer, phase: str) -> bool:
        """Return whether who streams has heard all there is."""
        return sum(map(len, answer.said.values())) == answer.request.n * PHASES[phase].tokens

    async def traces(self, name: str) -> list[Trace]:
        """The jobs of the clients called `name`."""
        found = await traces(self.fleet.redis)
        return [
            item for item in found if item.job.request_id.startswith(f"{self.gate.name}-{name}-")
        ]

    @property
    def streams(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.request.mode == "sse"]

    def is_held(self, trace: Trace) -> bool:
        """Whether each choice of a job has come to the gate."""
        choices = range(places_of(trace.job.task))
        marks = (f"{self.gate.name}.{trace.job.id}:{trace.epoch}.{choice}" for choice in choices)
        return all((self._gates / mark).exists() for mark in marks)

    async def info(self, member: FleetProcess) -> WorkerInfo | None:
        """What a worker last said of itself; None when it has left."""
        known = (await Presence(self.fleet.redis).fleet()).workers
        return next((item for item in known if f"-{member.pid}-" in item.id), None)

    async def close(self) -> None:
        """Also after a scene that failed, in which clients may wait and members may not come."""
        for asking in self._asking:
            asking.cancel()
        await asyncio.gather(*self._asking, *self._coming, return_exceptions=True)
        await self._once.close()
        await self._again.close()


class TaskStage(Stage):
    """The same for tasks that are done whole: one that waits, one that streams, one that polls."""

    asked = ("sync", "sse", "poll")

    def asking(self, kind: str, name: str, phase: str) -> ClientRequest:
        text = f"hold:{self.gate.name}:{STEPS_DONE[phase]} {name} "
        mode = ASKED[kind][0]
        return ClientRequest(
            name, mode, text, steps=NUM_STEPS, step_ms=STEP_MS, expected=text * NUM_STEPS
        )

    def is_held(self, trace: Trace) -> bool:
        assert isinstance(trace.job.task, EchoTask)
        starts = [event for event in trace.events if isinstance(event, Started)]
        if not starts or starts[-1].epoch != trace.epoch:
            return False
        pid = int(starts[-1].worker.split("-")[-2])
        return (self._gates / mark_of(trace.job.task.text, pid)).exists()

    def is_logged(self, trace: Trace, phase: str) -> bool:
        """Return whether the log has the steps. Who takes the task over may be held behind more
        that are logged."""
        told = [event.done for event in trace.events if isinstance(event, Progress)]
        return max(told, default=0) >= STEPS_DONE[phase]

    def is_told(self, answer: Answer, phase: str) -> bool:
        """Return whether who streams has heard of the last step that is done. Those of a busy
        moment come as one."""
        return max(answer.steps_done, default=0) >= STEPS_DONE[phase]


def ask(kind: str, name: str, gate: str, place: QueuePosition) -> ClientRequest:
    mode, n = ASKED[kind]
    if mode == "scoring":
        expected = json.dumps([-float(len(tail)) for tail in TAILS])
        return ClientRequest(
            name, mode, f"hold:{gate}:{place.scores} {name}", continuations=TAILS, expected=expected
        )
    prompt = f"hold:{gate}:{place.tokens} {name}"
    texts = [(prompt * place.length)[choice : choice + place.length] for choice in range(n)]
    return ClientRequest(name, mode, prompt, place.length, n=n, expected="\n".join(texts))


def num_tokens(trace: Trace) -> int:
    return sum(len(event.ids) for event in trace.events if isinstance(event, Tokens))


def num_logged(trace: Trace, phase: str) -> int:
    """The tokens that a job has in its log when it is held; scores come with its end."""
    return (
        places_of(trace.job.task) * PHASES[phase].tokens
        if isinstance(trace.job.task, Generate)
        else 0
    )


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    assert await came_true(condition, DEADLINE_S), f"never happened: {what}"
