"""A server that is measured: started as a person would start it, watched, and ended."""

import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_POLL_S = 0.05
_READY_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 30.0
_LOG_END = 2000


@dataclass(frozen=True)
class Server:
    """A server that is ready. `start_s` is the time from its start until then."""

    url: str
    process: psutil.Process
    start_s: float

    def memory_mib(self) -> float:
        """Return the memory of all its processes, in which shared pages count once. Linux only."""
        total_mib = 0.0
        for process in [self.process, *self.process.children(recursive=True)]:
            # One may have ended just now.
            with suppress(psutil.NoSuchProcess):
                total_mib += pss_mib(process)
        return total_mib


def pss_mib(process: psutil.Process) -> float:
    """Return the proportional set size of a process."""
    return float(process.memory_full_info().pss) / 2**20


@contextmanager
def server(
    command: Sequence[str], env: Mapping[str, str], *, url: str, ready_path: str, log: Path
) -> Iterator[Server]:
    """Start a server, wait until `ready_path` is answered with 200, and end it with its children.

    Its output goes to `log`. Raise RuntimeError with the end of that if it does not get ready.
    """
    begun_s = time.perf_counter()
    with log.open("wb") as output:
        process = psutil.Popen(
            command,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        while not _answers(url + ready_path):
            elapsed_s = time.perf_counter() - begun_s
            if process.poll() is not None or elapsed_s > _READY_TIMEOUT_S:
                raise RuntimeError(f"{command[0]} did not get ready:\n{_end_of(log)}")
            time.sleep(_POLL_S)
        yield Server(url, process, time.perf_counter() - begun_s)
    finally:
        _end(process)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _end(process: psutil.Popen) -> None:
    """Ask the process to end, and kill what is left of it and its children after a while."""
    family = [process]
    with suppress(psutil.NoSuchProcess):
        family += process.children(recursive=True)
        process.terminate()
    _, alive = psutil.wait_procs(family, timeout=_STOP_TIMEOUT_S)
    for survivor in alive:
        with suppress(psutil.NoSuchProcess):
            survivor.kill()
    psutil.wait_procs(alive)


def _end_of(log: Path) -> str:
    return log.read_bytes()[-_LOG_END:].decode(errors="replace")
