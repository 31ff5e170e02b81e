"""The processes of an experiment: a Redis, fronts and workers.

Each has a log file of its own, and each is ended by its pid.
"""

import asyncio
import itertools
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from redis.asyncio import Redis

from scripts.chaos.polling import came_true
from scripts.chaos.proxy import Proxy
from scripts.cli.embedded_redis import EmbeddedRedis, free_port
from scripts.cli.parent_death import die_with_parent
from shared.fleet.presence import Presence
from shared.queue.broker import connect

_READY_S = 90.0
_GOING_S = 60.0


@dataclass
class FleetProcess:
    """One process of a fleet.

    `url` is the address of a front. `line` is the proxy through which the process reaches Redis, if
    it has one.
    """

    role: str
    process: asyncio.subprocess.Process
    log: Path
    url: str = ""
    line: Proxy | None = None
    is_stopped: bool = False

    @property
    def proxy(self) -> Proxy:
        """The proxy to Redis, in a fleet whose members have one each."""
        assert self.line is not None, "has no line of its own"
        return self.line

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.returncode is None

    async def kill(self) -> None:
        """Kill the process with SIGKILL, and lose the bytes that were on their way to Redis or
        from it."""
        if self.is_running:
            self.process.kill()
        await self.process.wait()
        if self.line is not None:
            self.line.cut()

    async def stop(self) -> None:
        """Stop the process with SIGSTOP, and return when the kernel says that none of its threads
        runs."""
        self.process.send_signal(signal.SIGSTOP)
        self.is_stopped = True
        await came_true(self._stands_still, _GOING_S, every_s=0.001)

    async def _stands_still(self) -> bool:
        # Stopped, stopped by a debugger, ended but not waited for, or gone.
        return set(thread_states(self.pid)) <= set("TtZX")

    def resume(self) -> None:
        self.is_stopped = False
        if self.is_running:
            self.process.send_signal(signal.SIGCONT)

    async def terminate(self) -> tuple[int, float]:
        """Ask the process to end with SIGTERM, and kill it after a minute.

        Returns its exit status, and the seconds until it ended.
        """
        begun = time.monotonic()
        self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), _GOING_S)
        except TimeoutError:
            self.process.kill()
        status = await self.process.wait()
        return status, time.monotonic() - begun


def thread_states(pid: int) -> list[str]:
    """Return the state of each thread of a process, as a letter of /proc: R (running), S
    (sleeping), T (stopped), Z (ended)... A thread that is gone has X."""
    return [_state(task / "stat") for task in Path(f"/proc/{pid}/task").iterdir()]


def _state(stat: Path) -> str:
    try:
        # The state follows the name of the program, which may itself hold spaces and brackets.
        after_name = stat.read_text().rpartition(")")[2]
        return after_name.split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


class Fleet:
    """A fleet of processes on one Redis.

    `worker_flags` and `front_flags` go to every worker and front, and `env` is added to the
    environment of this process. `worker` is the module that workers run. With `has_proxies` each
    member reaches Redis through a proxy of its own.
    """

    def __init__(
        self,
        server: EmbeddedRedis,
        *,
        worker: str = "worker",
        worker_flags: Sequence[str] = (),
        front_flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        has_proxies: bool = False,
    ) -> None:
        self.server = server
        self.redis: Redis = connect(server.url)
        self.workers: list[FleetProcess] = []
        self.fronts: list[FleetProcess] = []
        self._everybody: list[FleetProcess] = []
        self._worker = worker
        self._worker_flags = worker_flags
        self._front_flags = front_flags
        self._env = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        self._has_proxies = has_proxies
        self._numbers = itertools.count(1)
        self._http = httpx.AsyncClient()

    async def add_worker(self) -> FleetProcess:
        """Start a worker, and return it when its presence says that it is ready."""
        flags = ["--log-level", "info", *self._worker_flags]
        member = await self._start("worker", [self._worker, *flags])
        await self._await(member, lambda: self._is_announced(member))
        self.workers.append(member)
        return member

    async def add_front(self, port: int | None = None) -> FleetProcess:
        """Start a front on `port` or a free one, and return it when it answers."""
        if not port:
            port = free_port()
        flags = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
        member = await self._start("front", ["api", *flags, *self._front_flags])
        member.url = f"http://127.0.0.1:{port}"
        await self._await_answer(member, "/healthz")
        self.fronts.append(member)
        return member

    async def add_janitor(self, *flags: str) -> FleetProcess:
        """Start the background role, and do not wait until it is ready."""
        return await self._start("janitor", ["scripts.cli.jobs", *flags])

    @property
    def everybody(self) -> list[FleetProcess]:
        """All members that run now."""
        return [member for member in self._everybody if member.is_running]

    async def await_ready(self) -> None:
        """Return when every front says that it is ready, which it is when it sees a worker."""
        for front in self.fronts:
            await self._await_answer(front, "/readyz")

    def leave(self, member: FleetProcess) -> None:
        """Drop a member from `workers` and `fronts`; it is still ended with the fleet."""
        for group in (self.workers, self.fronts):
            if member in group:
                group.remove(member)

    async def close(self) -> None:
        for member in self._everybody:
            await member.kill()
            if member.line is not None:
                await member.line.close()
        await self._http.aclose()
        await self.redis.aclose()

    def log_lines(self, words: str) -> int:
        """Return how many lines of the members' logs hold `words`."""
        num_lines = 0
        for member in self._everybody:
            for line in member.log.read_text().splitlines():
                if words in line:
                    num_lines += 1
        return num_lines

    async def _start(self, role: str, command: Sequence[str]) -> FleetProcess:
        """Start `python -m` with the command and the address of Redis, or that of a new proxy."""
        port = self.server.port
        line = None
        if self._has_proxies:
            line = await Proxy("127.0.0.1", port).start()
            port = line.port
        redis_url = self.server.url.replace(f":{self.server.port}/", f":{port}/")
        path = self.server.directory / f"{role}-{next(self._numbers)}.log"
        with path.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *command,
                "--redis-url",
                redis_url,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                preexec_fn=die_with_parent(),
            )
        member = FleetProcess(role, process, path, line=line)
        self._everybody.append(member)
        return member

    async def _await(self, member: FleetProcess, holds: Callable[[], Awaitable[bool]]) -> None:
        """Return when the condition holds. Raises RuntimeError with the member's log if it ends, or
        if the condition does not hold in time."""

        async def is_over() -> bool:
            return not member.is_running or await holds()

        is_in_time = await came_true(is_over, _READY_S)
        if not is_in_time or not member.is_running:
            log = member.log.read_text()
            raise RuntimeError(f"{member.role} {member.pid} is not ready:\n{log[-2000:]}")

    async def _await_answer(self, front: FleetProcess, path: str) -> None:
        await self._await(front, lambda: self._answers(front.url + path))

    async def _is_announced(self, member: FleetProcess) -> bool:
        state = await Presence(self.redis).fleet()
        # The id of a worker is HOST-PID-RANDOM.
        pid = f"-{member.pid}-"
        return any(worker.state == "ready" and pid in worker.id for worker in state.workers)

    async def _answers(self, url: str) -> bool:
        try:
            return (await self._http.get(url)).status_code == 200
        except httpx.TransportError:
            return False


@asynccontextmanager
async def fleet(num_workers: int, num_fronts: int = 1, **options: Any) -> AsyncIterator[Fleet]:
    """Run a ready fleet on a Redis of its own, and kill all of it at the end.

    `options` are those of `Fleet`.
    """
    with EmbeddedRedis() as server:
        made = Fleet(server, **options)
        try:
            await asyncio.gather(*[made.add_worker() for _ in range(num_workers)])
            await asyncio.gather(*[made.add_front() for _ in range(num_fronts)])
            await made.await_ready()
            yield made
        finally:
            await made.close()
