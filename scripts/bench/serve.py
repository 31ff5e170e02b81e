"""The processes of the benchmarks: `aios serve hrm` as users start it, and engines."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

from scripts.bench.ours import Ours
from scripts.cli.parent_death import die_with

_READY = "ready at "
_STOP_S = 60


@contextmanager
def fleet(flags: Sequence[str]) -> Iterator[str]:
    """Run a fleet on a free port, and yield its URL when it is ready.

    It logs to stderr. Raise RuntimeError if it ends before it is ready.
    """
    command = ["-m", "scripts.cli.aios", "serve", "hrm"]
    command += ["--host", "127.0.0.1", "--port", "0"]
    command += ["--log-level", "warning"]
    with _process([*command, *flags]) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(_READY):
                break
        else:
            raise RuntimeError(f"the fleet ended with {process.wait()} before it was ready")
        yield line.removeprefix(_READY).split()[0]


class _Engines(BaseManager):
    """A process that holds engines, and gives out proxies of `Ours`."""


_Engines.register("Ours", Ours)


@contextmanager
def engine(path: Path, *, threads: int, **options: Any) -> Iterator[Ours]:
    """Run `Ours` alone in a process, which is the counterpart of one worker.

    The process has the limits of threads that `aios` gives to a worker.
    """
    # Libraries read these variables when they are loaded, so the process must start with them.
    before = dict(os.environ)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["MKL_NUM_THREADS"] = str(threads)
    try:
        manager = _Engines(ctx=multiprocessing.get_context("spawn"))
        manager.start(die_with, (os.getpid(),))
    finally:
        os.environ.clear()
        os.environ.update(before)
    with manager:
        yield manager.Ours(path, threads=threads, **options)  # type: ignore[attr-defined]


@contextmanager
def _process(command: Sequence[str]) -> "Iterator[subprocess.Popen[str]]":
    """Run a Python command while the context lasts.

    It is ended by SIGTERM, and killed if it still runs after a minute.
    """
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
