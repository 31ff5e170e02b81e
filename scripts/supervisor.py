"""Runs the fleet's processes on one machine: starts them, restarts what dies, and stops them in order.

Each child has exactly one task, which alone starts, waits for and ends it. The supervisor knows argument vectors and
exit statuses; it knows nothing of models, HTTP or Redis.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.parent_death import die_with_parent
from shared.logs import fields
from shared.signals import signals_call

BAD_SETTINGS = 2  # exit status of a child that would fail in the same way again
NOT_STARTED = 127  # as a shell says it
log = logging.getLogger("aios.supervisor")


@dataclass(frozen=True)
class Role:
    """A command to keep running in one copy for each of `copies`: what its environment has on top of `env`."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    copies: Sequence[Mapping[str, str]] = ({},)


@dataclass(frozen=True)
class Backoff:
    """Delay before a restart: doubles from `first_s` to `longest_s`; a life longer than `longest_s` resets it."""

    first_s: float = 0.5
    longest_s: float = 10.0

    def delay_s(self, failures: int) -> float:
        """Seconds to wait after the n-th failure in a row (from 1)."""
        return float(min(self.longest_s, self.first_s * 2 ** min(failures - 1, 32)))


class Supervisor:
    """Keeps `roles` running until `stop` is called or a child exits with BAD_SETTINGS.

    On the way out the roles end one after the other, in the order given: all copies of a role get SIGTERM and
    `grace_s` seconds to drain, then SIGKILL.
    """

    def __init__(self, roles: Sequence[Role], grace_s: float, backoff: Backoff | None = None) -> None:
        self._roles = roles
        self._grace_s = grace_s
        self._backoff = backoff or Backoff()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._exit_code = 0

    def stop(self, exit_code: int = 0) -> None:
        """Begin the orderly stop, after which `run` returns `exit_code`; a second call changes nothing."""
        if not self._stop.is_set():
            self._exit_code = exit_code
            self._stop.set()

    def interrupt(self) -> None:
        """Ctrl-C: begin the orderly stop; a second one kills what is still running."""
        if self._stop.is_set():
            self._hurry.set()
        self.stop()

    async def run(self) -> int:
        """Returns 0 after a stop that was asked for, BAD_SETTINGS after a child gave that up."""
        ends = [asyncio.Event() for _ in self._roles]
        with signals_call({"SIGTERM": self.stop, "SIGHUP": self.stop, "SIGINT": self.interrupt}):
            keepers = [
                [asyncio.create_task(self._keep(role, copy, end)) for copy in range(len(role.copies))]
                for role, end in zip(self._roles, ends, strict=True)
            ]
            await self._stop.wait()
            for end, tasks in zip(ends, keepers, strict=True):
                end.set()
                await asyncio.gather(*tasks)
        return self._exit_code

    async def _keep(self, role: Role, copy: int, end: asyncio.Event) -> None:
        """Run one copy of `role` again and again until `end`."""
        failures = 0
        while not end.is_set():
            started = time.monotonic()
            code = await self._run_once(role, copy, end)
            if end.is_set():
                return
            if code == BAD_SETTINGS:
                log.error("process refuses its settings", extra=fields(role=role.name, copy=copy, status=code))
                return self.stop(BAD_SETTINGS)
            failures = 1 if time.monotonic() - started > self._backoff.longest_s else failures + 1
            delay_s = self._backoff.delay_s(failures)
            ended = fields(role=role.name, copy=copy, status=code, restart_in_s=delay_s)
            log.warning("process ended", extra=ended)
            await _first_of(end.wait(), timeout_s=delay_s)

    async def _run_once(self, role: Role, copy: int, end: asyncio.Event) -> int:
        """Start a child, wait until it exits or `end` is set, end it in the second case; return its exit status."""
        try:
            process = await asyncio.create_subprocess_exec(
                *role.argv,
                env={**role.env, **role.copies[copy]},
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        except OSError as error:
            log.error("process not started", extra=fields(role=role.name, copy=copy, error=str(error)))
            return NOT_STARTED
        log.info("process runs", extra=fields(role=role.name, copy=copy, pid=process.pid))
        await _first_of(process.wait(), end.wait())
        if process.returncode is None:
            process.terminate()
            await _first_of(process.wait(), self._hurry.wait(), timeout_s=self._grace_s)
        if process.returncode is None:
            log.warning("process killed", extra=fields(role=role.name, copy=copy, pid=process.pid))
            process.kill()
        return await process.wait()


async def _first_of(*waits: Coroutine[Any, Any, object], timeout_s: float | None = None) -> None:
    """Wait until one of them is done or the time is over, and drop the others."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
