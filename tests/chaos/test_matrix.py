"""The small kill matrix: {SIGKILL, SIGSTOP, SIGTERM} x every phase of a job x {sync, SSE, scoring}, on real processes.

Nothing here is left to timing. The rigged echo runner holds three jobs at their exact tokens, the other worker is
stopped so that the first gets them all, and a proxy holds what passes between the first and Redis.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from scripts.chaos.clients import Ask, Client
from scripts.chaos.invariants import Trace, traces, violations
from scripts.chaos.members import Fleet, Member, fleet
from scripts.chaos.rigged import GATES_ENV
from shared.messages import Generate, Terminal, Tokens, WorkerInfo
from shared.presence import Presence

pytestmark = pytest.mark.asyncio(loop_scope="module")

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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    gates = tmp_path_factory.mktemp("gates")
    flags = ("--model", "echo=echo", "--lease-s", str(LEASE_S), "--max-batch-size", "3", "--step-tokens", "4000")
    rig = {"worker": "scripts.chaos.worker", "env": {GATES_ENV: str(gates)}, "has_proxies": True}
    async with fleet(2, 1, worker_flags=flags, **rig) as made:
        stage = Stage(made, gates)
        yield stage
        await stage.close()


def ask(name: str, mode: str, gate: str, held_after: int) -> Ask:
    prompt = f"hold:{gate}:{held_after} {name}"
    if mode == "scoring":
        expected = json.dumps([-float(len(tail)) for tail in TAILS])
        return Ask(name, "scoring", prompt, continuations=TAILS, expected=expected)
    return Ask(name, "sse" if mode == "sse" else "sync", prompt, LENGTH, expected=prompt[:LENGTH])


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("fault", ["SIGKILL", "SIGSTOP", "SIGTERM"])
async def test_nobody_notices(stage: Stage, fault: str, phase: str) -> None:
    """P1, P4: each client gets the undisturbed answer, and Redis is left as if nothing had happened."""
    await stage.open()
    clients = stage.ask("prefill", "filler") if phase == "queued" else []
    if phase == "queued":
        await until(lambda: all_in(stage, "filler", "prefill"), "the victim is full")
    clients += stage.ask(phase, "client")
    await until(lambda: all_in(stage, "client", phase), f"all jobs are in phase {phase}")
    if phase in ("unsent", "unacked"):
        await let_the_end_go(stage, phase)
    await FAULTS[fault](stage, phase, clients)
    assert await violations(stage.fleet.redis) == []
    takeovers = [trace.epoch - 1 for trace in await stage.traces("client")]
    if fault != "SIGTERM" and phase in ("prefill", "decode", "unsent"):
        assert takeovers == [1, 1, 1], "the fault hit nothing, so this proved nothing"


async def all_in(stage: Stage, name: str, phase: str) -> bool:
    """Whether every job of these clients has come to its place, and its log shows that."""
    found = await stage.traces(name)
    if len(found) < len(MODES):
        return False
    if phase == "queued":
        return all(trace.state == "queued" for trace in found)
    return all(stage.is_held(trace) and num_tokens(trace) == num_logged(trace, phase) for trace in found)


async def let_the_end_go(stage: Stage, phase: str) -> None:
    """The victim says the last tokens; they get as far as the phase wants."""
    proxy = stage.victim.proxy
    assert proxy is not None
    proxy.trap(b"done", proxy.to_server if phase == "unsent" else proxy.to_client)
    stage.gate.unlink()

    async def have_gone() -> bool:
        ends = [isinstance(trace.events[-1], Terminal) for trace in await stage.traces("client")]
        return proxy.is_sprung and (phase == "unsent" or any(ends))

    await until(have_gone, "the last tokens have left the victim")


async def kill(stage: Stage, phase: str, clients: list["asyncio.Task[None]"]) -> None:
    """What was on its way is lost."""
    await stage.victim.kill()
    stage.fleet.leave(stage.victim)
    stage.gate.unlink(missing_ok=True)
    stage.rescuer.resume()
    await asyncio.gather(*clients)


async def stop(stage: Stage, phase: str, clients: list["asyncio.Task[None]"]) -> None:
    """The victim comes back when others have answered for it; what it still has to say is refused."""
    await stage.victim.stop()
    stage.gate.unlink(missing_ok=True)
    stage.rescuer.resume()
    await asyncio.gather(*clients)
    proxy = stage.victim.proxy
    assert proxy is not None
    proxy.restore()
    stage.victim.resume()

    async def is_idle() -> bool:
        info = await stage.info(stage.victim)
        is_answered = phase != "unsent" or proxy.answer != b""
        return is_answered and info is not None and info.in_flight == 0

    await until(is_idle, "the victim has dropped what it held")
    if phase == "unsent":
        assert proxy.answer in (b"*%d\r\n" % count + count * b":0\r\n" for count in (1, 2, 3)), "refused, each of them"


async def terminate(stage: Stage, phase: str, clients: list["asyncio.Task[None]"]) -> None:
    """It drains: what it holds is ended by it or by the other, and it goes with 0."""
    stage.victim.process.terminate()
    assert stage.victim.proxy is not None
    stage.victim.proxy.restore()

    async def drains() -> bool:
        info = await stage.info(stage.victim)
        return info is None or info.state == "draining"

    await until(drains, "the victim drains")
    stage.gate.unlink(missing_ok=True)
    stage.rescuer.resume()
    await asyncio.gather(*clients)
    assert await asyncio.wait_for(stage.victim.process.wait(), DEADLINE_S) == 0
    stage.fleet.leave(stage.victim)


FAULTS = {"SIGKILL": kill, "SIGSTOP": stop, "SIGTERM": terminate}


def num_tokens(trace: Trace) -> int:
    return sum(len(event.ids) for event in trace.events if isinstance(event, Tokens))


def num_logged(trace: Trace, phase: str) -> int:
    """The tokens that a job has in its log when it is held; scores come with its end."""
    return PHASES[phase][0] if isinstance(trace.job.task, Generate) else 0


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Return once `condition()` holds; AssertionError naming `what` after DEADLINE_S."""
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.01)
