"""A person starts a fleet in a terminal and leaves it with Ctrl-C."""

import fcntl
import json
import os
import pty
import re
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.fixtures.polling import is_running, wait_until


class Seen:
    """A process on a terminal of its own, and its output there."""

    def __init__(self, *command: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509 - it makes one system call
        )
        os.close(slave)
        self.printed = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def close(self) -> None:
        if self.process.poll() is None:
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            for child in family:
                if child.is_running():
                    child.kill()
        self.process.wait()
        self._reader.join(timeout=5)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 4096)
            except OSError:
                # The last process that held the other side has ended.
                return
            self.printed += data.decode(errors="replace")


def _take_terminal() -> None:
    """Make the terminal the one whose Ctrl-C this process gets."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


AIOS = (sys.executable, "-m", "scripts.cli.aios")
LOGGED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ (INFO|WARNING) (aios|uvicorn)\.[a-z_.]+: ")


@contextmanager
def on_terminal(*words: str) -> Iterator[Seen]:
    seen = Seen(*AIOS, *words)
    try:
        yield seen
    finally:
        seen.close()


def test_a_terminal_gets_lines_to_be_read_one_that_says_ready_and_a_warning() -> None:
    flags = ("--port", "0", "--workers", "1", "--threads", "1")
    with on_terminal("serve", "hrm", *flags) as seen:
        wait_until(
            lambda: "ready at " in seen.printed or seen.process.poll() is not None,
            "ready",
        )
        processes = psutil.Process(seen.process.pid).children(recursive=True)
        seen.type("\x03")
        assert seen.process.wait(timeout=180) == 0
        for process in processes:
            assert not is_running(process.pid)

    # What is drawn ends with a carriage return, and is cleared before the line that says ready.
    printed = seen.printed.replace("^C", "").replace("\x1b[K", "")
    lines = [line for line in printed.splitlines() if line]
    (ready,) = [line for line in lines if line.startswith("ready at ")]
    assert re.match(
        r"ready at (http://127\.0\.0\.1:\d+)  model: hrm-text-math \(default\), hrm-text-code, sample-trm-sudoku-9x9  "
        r"docs: \1/docs  try: curl -s \1/generate ",
        ready,
    )

    drawn = [line for line in lines if re.fullmatch(r"loading models  \d+ ?s", line)]
    assert drawn
    for line in lines:
        if line != ready and line not in drawn:
            assert LOGGED.match(line), line

    (warning,) = [line for line in lines if " WARNING " in line and "network" in line]
    assert "anybody on the network" in warning
    assert "--api-keys" in warning
    assert lines.index(warning) < lines.index(ready)
    assert "Traceback" not in seen.printed


@pytest.mark.parametrize(
    ("role", "flags"),
    [("api", ("--port", "0")), ("jobs", ()), ("worker", ("--model-path", "echo"))],
)
def test_a_role_logs_lines_for_people_there(
    role: str, flags: tuple[str, ...], redis_url: str
) -> None:
    with on_terminal(role, "--redis-url", redis_url, *flags) as seen:
        wait_until(lambda: "\n" in seen.printed, "a line")
    # The last line may have been cut off.
    *whole, _ = seen.printed.split("\n")
    for line in whole:
        assert LOGGED.match(line), line


def test_a_role_logs_json_elsewhere(redis_url: str) -> None:
    command = [*AIOS, "jobs", "--redis-url", redis_url]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = json.loads(process.stderr.readline())
        assert {"time", "level", "logger", "message"} <= set(first)
        process.terminate()
        process.communicate(timeout=60)
