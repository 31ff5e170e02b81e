"""The processes of an experiment: a Redis, fronts and workers, each with its log file, all ended by
their pids."""

import asyncio
import itertools
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from redis.asyncio import Redis

from scripts.chaos.polling import came_true
from scripts.chaos.proxy import Proxy
from scripts.embedded_redis import EmbeddedRedis, free_port
from scripts.parent_death import die_with_parent
from shared.broker import connect
from shared.presence import Presence

_READY_S = 90.0
_GOING_S = 60.0


@dataclass
class FleetProcess:
    """One process. `url` is a front's address, `line` what it has in place of a direct connection
    to Redis."""

    role: str
    process: asyncio.subprocess.Process
    log: Path
    url: str = ""
    line: Proxy | None = None
    is_stopped: bool = False

    @property
    def proxy(self) -> Proxy:
        """Its line to Redis, in a fleet whose members have lines of their own."""
        assert self.line is not None, "has no line of its own"
        return self.line

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.returncode is None

    async def kill(self) -> None:
        """SIGKILL; what it had sent and Redis had not got is lost, as is what Redis had
        answered."""
        if self.is_running:
            self.process.kill()
        await self.process.wait()
        if self.line is not None:
            self.line.cut()

    async def stop(self) -> None:
        """SIGSTOP; returns when the kernel says that no thread of it runs."""
        self.process.send_signal(signal.SIGSTOP)
        self.is_stopped = True
        await came_true(self._stands_still, _GOING_S, every_s=0.001)

    async def _stands_still(self) -> bool:
        return set(thread_states(self.pid)) <= set("TtZX")

    def resume(self) -> None:
        self.is_stopped = False
        if self.is_running:
            self.process.send_signal(signal.SIGCONT)

    async def terminate(self) -> tuple[int, float]:
        """SIGTERM; its exit status, and the seconds until then. It is killed after a minute."""
        begun = time.monotonic()
        self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), _GOING_S)
        except TimeoutError:
            self.process.kill()
        return await self.process.wait(), time.monotonic() - begun


def thread_states(pid: int) -> list[str]:
    """The letter of each thread of a process: R, S, T (stopped), Z...; X for one that is gone."""
    return [_state(task / "stat") for task in Path(f"/proc/{pid}/task").iterdir()]


def _state(stat: Path) -> str:
    try:
        return stat.read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


class Fleet:
    """`worker_flags` and `front_flags` go to every such process, `env` on top of the harness's own
    environment.

    `worker` is the module that workers run. With `has_proxies` each member has a line of its own to
    Redis.
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
        self._worker, self._worker_flags, self._front_flags = worker, worker_flags, front_flags
        self._env = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        self._has_proxies = has_proxies
        self._numbers = itertools.count(1)
        self._http = httpx.AsyncClient()

    async def add_worker(self) -> FleetProcess:
        """A worker that is ready: its presence says so."""
        flags = ["--log-level", "info", *self._worker_flags]
        member = await self._start("worker", [self._worker, *flags])
        await self._await(member, lambda: self._is_announced(member))
        self.workers.append(member)
        return member

    async def add_front(self, port: int | None = None) -> FleetProcess:
        """A front that answers, on `port` or a free one."""
        port = port or free_port()
        flags = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
        member = await self._start("front", ["api", *flags, *self._front_flags])
        member.url = f"http://127.0.0.1:{port}"
        await self._await(member, lambda: self._answers(f"{member.url}/healthz"))
        self.fronts.append(member)
        return member

    async def add_janitor(self, *flags: str) -> FleetProcess:
        """The background role; nobody waits for it."""
        return await self._start("janitor", ["scripts.jobs", *flags])

    @property
    def everybody(self) -> list[FleetProcess]:
        """Who runs now."""
        return [member for member in self._everybody if member.is_running]

    async def await_ready(self) -> None:
        """Every front sees a worker."""
        for front in self.fronts:
            await self._await(front, partial(self._answers, f"{front.url}/readyz"))

    def leave(self, member: FleetProcess) -> None:
        """It is no longer one of `workers` or `fronts`; it is still ended with the fleet."""
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
        """How many lines with `words` the members' logs hold."""
        return sum(
            words in line
            for member in self._everybody
            for line in member.log.read_text().splitlines()
        )

    async def _start(self, role: str, command: Sequence[str]) -> FleetProcess:
        line = await Proxy("127.0.0.1", self.server.port).start() if self._has_proxies else None
        port = line.port if line is not None else self.server.port
        command = [
            *command,
            "--redis-url",
            self.server.url.replace(f":{self.server.port}/", f":{port}/"),
        ]
        path = self.server.directory / f"{role}-{next(self._numbers)}.log"
        with path.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *command),
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
        """RuntimeError with its log when the member ends, or is not ready in time."""

        async def is_over() -> bool:
            return not member.is_running or await holds()

        if not await came_true(is_over, _READY_S) or not member.is_running:
            raise RuntimeError(
                f"{member.role} {member.pid} is not ready:\n{member.log.read_text()[-2000:]}"
            )

    async def _is_announced(self, member: FleetProcess) -> bool:
        found = (await Presence(self.redis).fleet()).workers
        return any(item.state == "ready" and f"-{member.pid}-" in item.id for item in found)

    async def _answers(self, url: str) -> bool:
        try:
            return (await self._http.get(url)).status_code == 200
        except httpx.TransportError:
            return False


@asynccontextmanager
async def fleet(num_workers: int, num_fronts: int = 1, **options: Any) -> AsyncIterator[Fleet]:
    """A ready fleet on a Redis of its own; all of it is killed at the end."""
    with EmbeddedRedis() as server:
        made = Fleet(server, **options)
        try:
            await asyncio.gather(*(made.add_worker() for _ in range(num_workers)))
            await asyncio.gather(*(made.add_front() for _ in range(num_fronts)))
            await made.await_ready()
            yield made
        finally:
            await made.close()
