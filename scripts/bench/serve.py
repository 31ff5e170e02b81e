"""What the fleet is measured with: `aios serve hrm` as a person starts it, and engines in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_READY = "ready at "
_STOP_S = 60


@contextmanager
def fleet(flags: Sequence[str]) -> Iterator[str]:
    """The URL of a ready fleet on a free port. RuntimeError if it ends before it is ready; its log is on stderr."""
    command = ["-m", "scripts.aios", "serve", "hrm", "--host", "127.0.0.1", "--port", "0", "--log-level", "warning"]
    with _process([*command, *flags]) as process:
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith(_READY)), None)
        if line is None:
            raise RuntimeError(f"the fleet ended with {process.wait()} before it was ready")
        yield line.removeprefix(_READY).split()[0]


class Peer:
    """One engine in another process: takes a batch of prompts as a line of JSON, says how it went as another."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, request: dict[str, object]) -> None:
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)

    def answer(self) -> dict[str, list[float]]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"an engine ended with {self._process.wait()}")
        said: dict[str, list[float]] = json.loads(line)
        return said


@contextmanager
def peer(threads: int, flags: Sequence[str]) -> Iterator[Peer]:
    """A ready engine; the thread limits are those that `aios` gives to a worker."""
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with _process(["-m", "scripts.bench.peer", "--threads", str(threads), *flags], limits) as process:
        engine = Peer(process)
        engine.answer()
        yield engine


@contextmanager
def _process(command: Sequence[str], env: dict[str, str] | None = None) -> "Iterator[subprocess.Popen[str]]":
    """Ended by SIGTERM, as its user would; killed if it does not."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | (env or {}),
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
