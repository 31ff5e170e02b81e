"""The supervisor of a fleet's processes on one machine.

It starts them, restarts those that die, and stops them in order. Each child has exactly one asyncio
task, which alone starts it, waits for it and ends it. The supervisor knows argument vectors and
exit statuses; it knows nothing of models, HTTP or Redis.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from scripts.cli.parent_death import die_with_parent
from shared.signals import signals_call
from shared.supervised import REPORT_ENV, read_report
from shared.telemetry.logging_setup import fields

# The exit status of a child that would fail in the same way again.
BAD_SETTINGS = 2
GAVE_UP = 1
# The status that a shell reports for a command that it cannot start.
NOT_STARTED = 127
MOST_FAILED_STARTS = 5

_REPORT_BYTES = 4096
# How long the first copy of a role has the machine for itself, at most.
_ALONE_S = 10.0
# Signals that follow each other so closely are one request to stop.
_SAME_SIGNAL_S = 0.3

log = logging.getLogger("aios.supervisor")


@dataclass(frozen=True)
class Role:
    """A command to keep running, in one copy for each of `copies`.

    The first copy starts alone. The others start when it is ready or has ended, or after some
    seconds. So it has the machine for itself, and the fleet answers sooner.

    An entry of `copies` is added to `env` to make the environment of that copy. `grace_s` is how
    long a copy may take to end after SIGTERM. A role that is not needed is started again however
    often it dies, and never ends the fleet.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    copies: Sequence[Mapping[str, str]] = ({},)
    grace_s: float = 10.0
    is_needed: bool = True


@dataclass(frozen=True)
class Backoff:
    """The delay before a restart, which doubles from `first_s` to `longest_s`.

    A child that has lived longer than `longest_s` resets it.
    """

    first_s: float = 0.5
    longest_s: float = 10.0

    def delay_s(self, failures: int) -> float:
        """Return the seconds to wait after the n-th failure in a row (from 1)."""
        doublings = min(failures - 1, 32)  # 2**1024 is too large for a float
        return float(min(self.longest_s, self.first_s * 2**doublings))


@dataclass(frozen=True)
class Life:
    """One run of a child.

    It holds the exit status, whether the child had been ready, and the reason of its end: the one
    that the child reported, or the exit status in words.
    """

    status: int
    was_ready: bool
    reason: str


class Supervisor:
    """A supervisor that keeps `roles` running until `stop` is called or one of them cannot run.

    A role cannot run in two cases. A child that never was ready exits with BAD_SETTINGS. Or a child
    dies MOST_FAILED_STARTS times in a row before it is ready, while no other copy of its role is
    ready. A child that dies at its work, for example by one bad request, is always started again.

    In the end the roles are stopped one after the other, in the order given. All copies of a role
    get SIGTERM, then the grace of their role to drain, then SIGKILL. A second signal kills all
    children that still run.
    """

    def __init__(self, roles: Sequence[Role], backoff: Backoff | None = None) -> None:
        self._roles = roles
        self._backoff = backoff or Backoff()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._exit_code = 0
        self._ready: dict[str, set[int]] = {role.name: set() for role in roles}
        # Set for a role whose first copy is ready, or has ended before it was.
        self._begun: dict[str, asyncio.Event] = {role.name: asyncio.Event() for role in roles}

    def stop(self, exit_code: int = 0) -> None:
        """Begin the orderly stop, after which `run` returns `exit_code`.

        A second call changes nothing.
        """
        if not self._stop.is_set():
            self._exit_code = exit_code
            self._stop.set()

    def hurry(self) -> None:
        """Kill the children that still run instead of waiting for them."""
        self.stop()
        self._hurry.set()

    async def run(self) -> int:
        """Run all roles until `stop` is called, and end them in order.

        Return the exit code of the stop: 0 if it was asked for, BAD_SETTINGS or GAVE_UP when a
        role cannot run.
        """
        ends = []
        keepers = []
        stop_signals = StopSignals(self._on_signal, self.hurry)
        with signals_call(stop_signals.actions()):
            for role in self._roles:
                end = asyncio.Event()
                tasks = []
                for copy in range(len(role.copies)):
                    tasks.append(asyncio.create_task(self._keep(role, copy, end)))
                ends.append(end)
                keepers.append(tasks)

            await self._stop.wait()
            for end, tasks in zip(ends, keepers, strict=True):
                end.set()
                await asyncio.gather(*tasks)
        return self._exit_code

    def _on_signal(self, name: str) -> None:
        # The fleet may already be stopping because a role cannot run: then one signal is enough.
        if self._stop.is_set():
            self.hurry()
            return
        log.info("fleet stopping, a second signal ends it at once", extra=fields(signal=name))
        self.stop()

    async def _keep(self, role: Role, copy: int, end: asyncio.Event) -> None:
        """Run one copy of `role` again and again until `end`."""
        failures = 0
        failed_starts = 0
        ever_ready = False
        if copy > 0:
            begun = self._begun[role.name]
            await _first_of(begun.wait(), end.wait(), timeout_s=_ALONE_S)
        while not end.is_set():
            started = time.monotonic()
            life = await self._run_once(role, copy, end)
            if end.is_set():
                return

            if life.was_ready:
                ever_ready = True
                failed_starts = 0
            else:
                failed_starts += 1
            if self._cannot_run(role, copy, life, failed_starts, ever_ready=ever_ready):
                return

            if time.monotonic() - started > self._backoff.longest_s:
                failures = 0
            failures += 1
            delay_s = self._backoff.delay_s(failures)
            log.warning(
                "process ended",
                extra=fields(
                    role=role.name,
                    copy=copy,
                    status=life.status,
                    reason=life.reason,
                    restart_in_s=delay_s,
                ),
            )
            await _first_of(end.wait(), timeout_s=delay_s)

    def _cannot_run(
        self, role: Role, copy: int, life: Life, failed_starts: int, *, ever_ready: bool
    ) -> bool:
        """Return whether another start is useless.

        If so, log why and stop the fleet.
        """
        if not role.is_needed:
            return False
        end = fields(role=role.name, copy=copy, status=life.status, reason=life.reason)
        if life.status == BAD_SETTINGS and not ever_ready:
            log.error("process refuses its settings", extra=end)
            self.stop(BAD_SETTINGS)
            return True
        if failed_starts >= MOST_FAILED_STARTS and not self._ready[role.name]:
            log.error("process never gets ready, the fleet ends", extra=end)
            self.stop(GAVE_UP)
            return True
        return False

    async def _run_once(self, role: Role, copy: int, end: asyncio.Event) -> Life:
        """Run a child until it exits, or until `end` is set and it is ended."""
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        report = Report(read_end, lambda: self._on_ready(role, copy))
        try:
            status = await self._run_reporting(role, copy, end, write_end)
        finally:
            self._ready[role.name].discard(copy)
            self._begun[role.name].set()
            report.close()
        return Life(status, report.is_ready, report.reason or status_in_words(status))

    def _on_ready(self, role: Role, copy: int) -> None:
        self._ready[role.name].add(copy)
        self._begun[role.name].set()

    async def _run_reporting(
        self, role: Role, copy: int, end: asyncio.Event, write_end: int
    ) -> int:
        """Run a child that reports through the pipe `write_end`, and return its exit status.

        This method closes `write_end`.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *role.argv,
                env={**role.env, **role.copies[copy], REPORT_ENV: str(write_end)},
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=die_with_parent(),
                pass_fds=(write_end,),
            )
        except OSError as error:
            log.error(
                "process not started", extra=fields(role=role.name, copy=copy, error=str(error))
            )
            return NOT_STARTED
        finally:
            # The child has a copy. While this one is open, the read end never sees the end.
            os.close(write_end)
        log.info("process runs", extra=fields(role=role.name, copy=copy, pid=process.pid))
        await _first_of(process.wait(), end.wait())
        if process.returncode is None:
            process.terminate()
            await _first_of(process.wait(), self._hurry.wait(), timeout_s=role.grace_s)
        if process.returncode is None:
            log.warning("process killed", extra=fields(role=role.name, copy=copy, pid=process.pid))
            process.kill()
        return await process.wait()


class Report:
    """The report of a child through its pipe: that it is ready, and why it ends.

    `on_ready` is called once, when the child is ready.
    """

    def __init__(self, read_end: int, on_ready: Callable[[], object]) -> None:
        self._read_end = read_end
        self._on_ready = on_ready
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(read_end, self._read)
        self.is_ready = False
        self.reason = ""

    def close(self) -> None:
        """Read the rest of the report and close the pipe."""
        self._read()
        self._loop.remove_reader(self._read_end)
        os.close(self._read_end)

    def _read(self) -> None:
        try:
            data = os.read(self._read_end, _REPORT_BYTES)
        except BlockingIOError:
            return
        if not data:
            # At its end a pipe stays readable, and would wake the loop for ever.
            self._loop.remove_reader(self._read_end)
        is_ready, reason = read_report(data)
        if reason:
            self.reason = reason
        if is_ready and not self.is_ready:
            self.is_ready = True
            self._on_ready()


class StopSignals:
    """The signals that end a process: the first one calls `stop`, a later one `hurry`."""

    def __init__(self, stop: Callable[[str], object], hurry: Callable[[], object]) -> None:
        self._stop = stop
        self._hurry = hurry
        self._stopped_at_s: float | None = None

    def actions(self) -> dict[str, Callable[[], None]]:
        """Return the function to call for each signal that ends a process."""
        return {name: partial(self.receive, name) for name in ("SIGTERM", "SIGINT", "SIGHUP")}

    def receive(self, name: str) -> None:
        """Call `stop` for the first signal, and `hurry` for a later one."""
        now_s = time.monotonic()
        if self._stopped_at_s is None:
            self._stopped_at_s = now_s
            self._stop(name)
            return
        # `timeout` and some init systems send SIGTERM to a process and to its group, so that it
        # arrives twice. A person who presses Ctrl-C again always means a second signal.
        if name == "SIGINT" or now_s - self._stopped_at_s > _SAME_SIGNAL_S:
            self._hurry()


def status_in_words(status: int) -> str:
    """Return an exit status in words: `exit status 1` or `killed by SIGKILL`."""
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"


async def _first_of(*waits: Coroutine[Any, Any, object], timeout_s: float | None = None) -> None:
    """Wait until one coroutine is done or the time is over, and cancel the others."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
