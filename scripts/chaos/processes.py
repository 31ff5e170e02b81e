"""The processes of an experiment: a Redis, fronts and workers.

Each process has its own log file, and is ended by its pid.
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

_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 60.0
# Faults are what the requests are to meet: not the end of their time, on a busy machine.
_PATIENCE_S = 600


@dataclass
class FleetProcess:
    """One process of a fleet.

    `url` is that of a front. `redis_proxy` is the proxy through which the process reaches Redis, or
    None if it has none.
    """

    role: str
    process: asyncio.subprocess.Process
    log: Path
    url: str = ""
    redis_proxy: Proxy | None = None
    is_stopped: bool = False

    @property
    def proxy(self) -> Proxy:
        """The proxy to Redis of a process that has one."""
        assert self.redis_proxy is not None, "this process has no proxy"
        return self.redis_proxy

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.returncode is None

    async def kill(self) -> None:
        """Kill the process with SIGKILL. Bytes on their way to Redis or from it are lost."""
        if self.is_running:
            self.process.kill()
        await self.process.wait()
        if self.redis_proxy is not None:
            self.redis_proxy.cut()

    async def stop(self) -> None:
        """Stop the process with SIGSTOP, and wait until none of its threads runs."""
        self.process.send_signal(signal.SIGSTOP)
        self.is_stopped = True
        await came_true(self._stands_still, _STOP_TIMEOUT_S, every_s=0.001)

    async def _stands_still(self) -> bool:
        # T and t are stopped, Z has ended but was not waited for, X is gone.
        return set(thread_states(self.pid)) <= set("TtZX")

    def resume(self) -> None:
        """Let a stopped process go on with SIGCONT."""
        self.is_stopped = False
        if self.is_running:
            self.process.send_signal(signal.SIGCONT)

    async def terminate(self) -> tuple[int, float]:
        """End the process with SIGTERM, after a minute with SIGKILL.

        Return its exit status, and the seconds until it ended.
        """
        started = time.monotonic()
        self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), _STOP_TIMEOUT_S)
        except TimeoutError:
            self.process.kill()
        status = await self.process.wait()
        return status, time.monotonic() - started


def thread_states(pid: int) -> list[str]:
    """Return the state of each thread of a process, as a letter of /proc.

    R is running, S sleeping, T stopped and Z ended; proc(5) has the others. A thread that is gone
    has X.
    """
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

    `worker` is the module that workers run. `worker_flags` and `front_flags` go to each worker and
    front. `env` is added to the environment of this process for all members. With `has_proxies`
    each member reaches Redis through its own proxy.
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
        """Start a worker, and return it when its record of presence says that it is ready."""
        flags = ["--log-level", "info", *self._worker_flags]
        member = await self._start("worker", [self._worker, *flags])
        await self._await(member, lambda: self._is_announced(member))
        self.workers.append(member)
        return member

    async def add_front(self, port: int | None = None) -> FleetProcess:
        """Start a front on `port` or a free port, and return it when its `/healthz` answers."""
        if not port:
            port = free_port()
        flags = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
        flags += ["--queue-timeout-s", str(_PATIENCE_S), "--request-timeout-s", str(_PATIENCE_S)]
        member = await self._start("front", ["api", *flags, *self._front_flags])
        member.url = f"http://127.0.0.1:{port}"
        await self._await_answer(member, "/healthz")
        self.fronts.append(member)
        return member

    async def add_janitor(self, *flags: str) -> FleetProcess:
        """Start the background role, without waiting until it is ready."""
        return await self._start("janitor", ["scripts.cli.jobs", *flags])

    @property
    def everybody(self) -> list[FleetProcess]:
        """All members that run now."""
        return [member for member in self._everybody if member.is_running]

    async def await_ready(self) -> None:
        """Wait until every front is ready, which it is when it knows a ready worker."""
        for front in self.fronts:
            await self._await_answer(front, "/readyz")

    def leave(self, member: FleetProcess) -> None:
        """Remove a member from `workers` and `fronts`. It is still killed when the fleet closes."""
        for group in (self.workers, self.fronts):
            if member in group:
                group.remove(member)

    async def close(self) -> None:
        """Kill all members that were ever started, and close all connections."""
        for member in self._everybody:
            await member.kill()
            if member.redis_proxy is not None:
                await member.redis_proxy.close()
        await self._http.aclose()
        await self.redis.aclose()

    def log_lines(self, text: str) -> int:
        """Return the number of lines with `text` in the logs of all members."""
        num_lines = 0
        for member in self._everybody:
            for line in member.log.read_text().splitlines():
                if text in line:
                    num_lines += 1
        return num_lines

    async def _start(self, role: str, command: Sequence[str]) -> FleetProcess:
        """Start `python -m` with the command and the URL of Redis or of a new proxy to it."""
        port = self.server.port
        proxy = None
        if self._has_proxies:
            proxy = await Proxy("127.0.0.1", port).start()
            port = proxy.port
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
        member = FleetProcess(role, process, path, redis_proxy=proxy)
        self._everybody.append(member)
        return member

    async def _await(self, member: FleetProcess, holds: Callable[[], Awaitable[bool]]) -> None:
        """Wait until the condition `holds`.

        Raises RuntimeError, with the end of the member's log, if the member ends or if the
        condition does not hold in time.
        """

        async def is_over() -> bool:
            return not member.is_running or await holds()

        is_in_time = await came_true(is_over, _START_TIMEOUT_S)
        if not is_in_time or not member.is_running:
            log = member.log.read_text()
            raise RuntimeError(f"{member.role} {member.pid} is not ready:\n{log[-2000:]}")

    async def _await_answer(self, front: FleetProcess, path: str) -> None:
        await self._await(front, lambda: self._answers(front.url + path))

    async def _is_announced(self, member: FleetProcess) -> bool:
        known_fleet = await Presence(self.redis).fleet()
        for worker in known_fleet.workers:
            # The id of a worker is HOST-PID-RANDOM.
            if worker.state == "ready" and f"-{member.pid}-" in worker.id:
                return True
        return False

    async def _answers(self, url: str) -> bool:
        try:
            return (await self._http.get(url)).status_code == 200
        except httpx.TransportError:
            return False


@asynccontextmanager
async def fleet(num_workers: int, num_fronts: int = 1, **options: Any) -> AsyncIterator[Fleet]:
    """Run a fleet on its own Redis while the context lasts. It is ready when the context begins.

    `options` are those of `Fleet`.
    """
    with EmbeddedRedis() as server:
        members = Fleet(server, **options)
        try:
            await asyncio.gather(*[members.add_worker() for _ in range(num_workers)])
            await asyncio.gather(*[members.add_front() for _ in range(num_fronts)])
            await members.await_ready()
            yield members
        finally:
            await members.close()
