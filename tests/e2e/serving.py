"""`aios serve hrm` as a person runs it: one command in a process of its own, found by the line it
prints."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.polling import wait_until

AIOS = (sys.executable, "-m", "scripts.aios")
_READY = re.compile(r"ready at (http://\S+)")


@dataclass
class Serving:
    process: "subprocess.Popen[str]"
    lines: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it answers; known once it is ready."""
        found = (_READY.search(line) for line in self.lines)
        return next(match[1] for match in found if match)

    @property
    def is_ready(self) -> bool:
        assert self.process.poll() is None, "".join(self.lines)
        return any(_READY.search(line) for line in self.lines)

    def children(self, role: str) -> list[psutil.Process]:
        """The running processes of one role: `api`, `worker` or `redis-server`."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in family if _plays(child, role)]

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)


def _plays(process: psutil.Process, role: str) -> bool:
    try:
        return role in process.cmdline()[-1:] or role in process.name()
    except psutil.NoSuchProcess:  # it died, or is dying, since it was listed
        return False


def _end(process: "subprocess.Popen[str]", family: list[psutil.Process]) -> None:
    """Ask it to stop, as its user would; kill what does not."""
    if process.poll() is None:
        family += psutil.Process(process.pid).children(recursive=True)
        process.terminate()
    try:
        process.wait(timeout=120)
    finally:
        for child in family:
            if child.is_running():
                child.kill()
        process.kill()
        process.wait()


@contextmanager
def serving(
    *flags: str, command: Sequence[str] = AIOS, cwd: Path | None = None
) -> Iterator[Serving]:
    """A ready fleet on a free port; whatever is left of it at the end is killed by pid."""
    words = [*command, "serve", "hrm", "--host", "127.0.0.1", "--port", "0", *flags]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd
    )
    fleet = Serving(process)
    assert process.stdout is not None
    reader = threading.Thread(
        target=lambda: fleet.lines.extend(iter(process.stdout.readline, "")), daemon=True
    )  # type: ignore[union-attr]
    reader.start()
    family: list[psutil.Process] = []
    try:
        wait_until(lambda: fleet.is_ready, "the fleet is ready", deadline_s=180)
        family = psutil.Process(process.pid).children(recursive=True)
        yield fleet
    finally:
        _end(process, family)
        reader.join(timeout=5)
        process.stdout.close()
