"""What the fleet is measured with: `aios serve hrm` as a person starts it, and engines in processes
of their own."""

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
from scripts.parent_death import die_with

_READY = "ready at "
_STOP_S = 60


@contextmanager
def fleet(flags: Sequence[str]) -> Iterator[str]:
    """The URL of a ready fleet on a free port. RuntimeError if it ends before it is ready; its log
    is on stderr."""
    command = [
        "-m",
        "scripts.aios",
        "serve",
        "hrm",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--log-level",
        "warning",
    ]
    with _process([*command, *flags]) as process:
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith(_READY)), None)
        if line is None:
            raise RuntimeError(f"the fleet ended with {process.wait()} before it was ready")
        yield line.removeprefix(_READY).split()[0]


class _Engines(BaseManager):
    """A process with engines in it; what it hands out are proxies of `Ours`."""


_Engines.register("Ours", Ours)


@contextmanager
def engine(path: Path, *, threads: int, **options: Any) -> Iterator[Ours]:
    """`Ours` alone in a process, the counterpart of one worker, with the thread limits that `aios`
    gives to one."""
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)))
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
    """Ended by SIGTERM, as its user would; killed if it does not."""
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
