"""`aios top` runs in a terminal of its own and without a terminal."""

import asyncio
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl

import pytest
from redis.asyncio import Redis

from scripts.cli import top
from scripts.cli.aios import main
from scripts.cli.top import Recent
from shared.fleet.presence import Presence
from shared.messages import ModelInfo, ModelLoad, WorkerInfo
from tests.fixtures.polling import DEADLINE_S
from tests.fixtures.redis_server import RedisServer

ENTER = "\x1b[?1049h"
LEAVE = "\x1b[?1049l"
COMMAND = [sys.executable, "-m", "scripts.cli.aios", "top", "--every", "0.1", "--redis-url"]
WORKER = WorkerInfo(
    "w1", "ready", (ModelInfo("m", "echo", "t", 9, 9, 4),), uptime_s=9, loads=(ModelLoad("m"),)
)


class Terminal:
    """A process on a terminal of its own. `printed` is all output that was waited for."""

    def __init__(self, url: str, rows: int = 24, columns: int = 80) -> None:
        self.ours, theirs = pty.openpty()
        self._theirs = theirs
        self.resize(rows, columns)
        self.printed = ""
        self.process = subprocess.Popen(
            [*COMMAND, url], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )

    def resize(self, rows: int, columns: int) -> None:
        ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def modes(self) -> int:
        """The flags for whole lines and for the echo of typed text."""
        return int(termios.tcgetattr(self._theirs)[3]) & (termios.ICANON | termios.ECHO)

    def shows(self, text: str) -> None:
        """Wait until new output has this text."""
        deadline = time.monotonic() + DEADLINE_S
        new = ""
        while text not in new:
            assert time.monotonic() < deadline, f"{text!r} is not in {new[-3000:]!r}"
            new += self.read()
        self.printed += new

    def read(self) -> str:
        ready, _, _ = select.select([self.ours], [], [], 0.05)
        if not ready:
            return ""
        return os.read(self.ours, 65_536).decode()

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self._theirs)


@contextmanager
def terminal(url: str, **size: int) -> Iterator[Terminal]:
    opened = Terminal(url, **size)
    try:
        yield opened
    finally:
        opened.close()


def ended(url: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end without a terminal."""
    return subprocess.run(
        [*COMMAND, url, *flags], check=False, capture_output=True, text=True, timeout=3 * DEADLINE_S
    )


def test_it_draws_and_q_leaves_everything_as_it_was(redis_url: str) -> None:
    with terminal(redis_url) as seen:
        before = seen.modes
        seen.shows(ENTER)
        seen.shows("no worker is alive")
        # It draws again.
        seen.shows("\x1b[H")
        assert before
        assert seen.modes != before

        seen.type("xq")
        seen.shows(LEAVE)
        assert seen.process.wait(DEADLINE_S) == 0
        assert seen.modes == before
        assert "\x1b[?25h" in seen.printed
        assert "Traceback" not in seen.printed


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_as_well(redis_url: str, how: signal.Signals) -> None:
    with terminal(redis_url) as seen:
        before = seen.modes
        seen.shows("no worker is alive")
        seen.process.send_signal(how)
        seen.shows(LEAVE)
        assert seen.process.wait(DEADLINE_S) == 0
        assert seen.modes == before
        assert "Traceback" not in seen.printed


async def test_it_keeps_to_the_size_of_the_terminal(redis: Redis, redis_url: str) -> None:
    await Presence(redis, ttl_s=60).announce(WORKER)
    with terminal(redis_url, rows=6, columns=50) as seen:
        seen.shows("more lines)")
        # What was read may hold the beginning of another drawing.
        until_its_end, end, _ = seen.printed.rpartition("more lines)")
        drawing = until_its_end.rpartition("\x1b[H")[2] + end
        lines = re.sub(r"\x1b\[\??\d*[a-zA-Z]", "", drawing).split("\r\n")
        assert len(lines) == 6
        for line in lines:
            assert len(line) <= 50

        seen.resize(40, 120)
        seen.process.send_signal(signal.SIGWINCH)
        seen.shows("WORKER")
        seen.type("q")
        assert seen.process.wait(DEADLINE_S) == 0


def test_it_outlives_a_redis_that_comes_and_goes(own_redis: RedisServer) -> None:
    with terminal(own_redis.url) as seen:
        seen.shows("NOT READY")
        own_redis.stop()
        seen.shows("REDIS IS AWAY")
        own_redis.start()
        seen.shows("NOT READY")
        seen.type("q")
        assert seen.process.wait(DEADLINE_S) == 0


def test_without_a_terminal_snapshots_follow_each_other(redis_url: str) -> None:
    done = ended(redis_url, "--count", "3")
    assert done.returncode == 1
    assert done.stderr == ""
    assert done.stdout.count("NOT READY") == 3
    assert done.stdout.count("\n\naios") == 2
    assert "\x1b" not in done.stdout


def test_who_reads_only_the_beginning_gets_no_traceback(redis_url: str) -> None:
    process = subprocess.Popen(
        [*COMMAND, redis_url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "NOT READY" in process.stdout.readline()
        process.stdout.close()
        assert process.wait(DEADLINE_S) == 0
        assert process.stderr.read() == ""
        process.stderr.close()
    finally:
        process.kill()
        process.wait()


async def test_once_ends_with_the_status_of_the_fleet(redis: Redis, redis_url: str) -> None:
    await Presence(redis, ttl_s=60).announce(WORKER)
    done = await asyncio.to_thread(ended, redis_url, "--once", "--front", "http://127.0.0.1:1")
    assert done.returncode == 0
    assert "0 of 1 fronts answer" in done.stdout
    assert "1 of 1 workers ready" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["--every", "0"],
        ["--every", "x"],
        ["--count", "0"],
        ["--front", "file:///etc/passwd"],
        ["more"],
    ],
)
def test_nonsense_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", *words]) == 2
    assert "expected" in capsys.readouterr().err or words == ["more"]


def test_the_window_of_rates_slides(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(top.time, "monotonic", lambda: now[0])
    recent: Recent[int] = Recent()
    assert recent.add(0) == (None, 0.0)

    # The window is 10 s long.
    for second in range(1, 30):
        now[0] += 1
        before, elapsed_s = recent.add(second)
        assert before == max(0, second - 10)
        assert elapsed_s == min(second, 10)

    # After a pause the last value before it is the oldest.
    now[0] += 60
    assert recent.add(99) == (29, 60)
