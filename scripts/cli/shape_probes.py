"""The measuring of shapes: processes that load a model, and decode as workers of each shape would.

A process serves all shapes in turn, since importing torch and loading take longest. It has as many
threads as the shape wants, on the processors that the shape's worker would have.
"""

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import IO, TypeVar

import msgspec

from scripts.cli.parent_death import die_with_parent
from scripts.cli.supervisor import status_in_words
from worker.hardware.measurements import Measurement
from worker.host.shape_probe import GO, READY, Speed, Trial

MOST_S = 60.0
"""The longest that all measuring may take."""
_BATCH_S = 1.0
_ROW_S = 0.5

Answer = TypeVar("Answer")


class ProbeError(Exception):
    """Measuring failed, or took too long. The message is the reason."""


@dataclass(frozen=True)
class Measured:
    """The speeds of shapes.

    For `delay` of their time, in the worst trial, threads waited for processors that others had.
    """

    shapes: list[Measurement]
    delay: float = 0.0


@dataclass(frozen=True)
class Candidate:
    """A shape to be measured. `processors` has those of each worker ("0,1")."""

    threads: int
    processors: Sequence[str]

    @property
    def workers(self) -> int:
        return len(self.processors)


def measure(
    model_id: str,
    candidates: Sequence[Candidate],
    env: Mapping[str, str],
    *,
    rows: int,
    most_s: float = MOST_S,
) -> Measured:
    """Return the speeds of the candidates with a model of the settings that `env` holds.

    A batch has `rows` rows, which the workers of a candidate share. Call this from the main thread.
    Raise ProbeError if a process fails, or if this takes longer than `most_s`.
    """
    most_workers = max(candidate.workers for candidate in candidates)
    commands: list[Sequence[str]] = []
    for number in range(most_workers):
        threads = [one.threads for one in candidates if one.workers > number]
        # -P: a folder `worker` in the current directory must not be imported.
        command = (sys.executable, "-P", "-m", "worker.host.shape_probe")
        commands.append((*command, model_id, str(max(threads))))

    measurements: list[Measurement] = []
    delays: list[float] = []
    with _running(commands, env, most_s) as probes:
        for probe in probes:
            probe.expect_ready()
        for candidate in candidates:
            shares = _shares(rows, candidate.workers)
            batch_speed, batch_delay = _speed(probes, candidate, shares, seconds=_BATCH_S)
            row_speed, row_delay = _speed(probes, candidate, [1], seconds=_ROW_S)
            delays += [batch_delay, row_delay]
            measurements.append(
                Measurement(
                    candidate.workers,
                    candidate.threads,
                    batch_tokens_per_s=batch_speed,
                    row_tokens_per_s=row_speed,
                )
            )
    return Measured(measurements, max(delays))


class _Probe:
    """A process that decodes when it is told to."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], errors: IO[str]) -> None:
        self._late_after_s: float | None = None
        # A file, because nobody would read a pipe while the process writes to it.
        self._errors = errors
        self._process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            bufsize=1,
            start_new_session=True,
            preexec_fn=die_with_parent(),  # noqa: PLW1509 - it makes one system call
        )

    def send(self, line: str) -> None:
        """Send a line. Raise ProbeError if the process has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
        except BrokenPipeError:
            raise ProbeError(self._reason()) from None

    def expect_ready(self) -> None:
        """Wait until the process is ready. Raise ProbeError if it is not."""
        line = self._receive()
        if line != READY:
            raise ProbeError(f"a probe said {line!r}")

    def expect(self, kind: type[Answer]) -> Answer:
        """Return an answer. Raise ProbeError if there is none."""
        line = self._receive()
        try:
            return msgspec.json.decode(line, type=kind)
        except msgspec.DecodeError:
            raise ProbeError(f"a probe said {line!r}") from None

    def end_late(self, most_s: float) -> None:
        """Kill the process, because measuring takes longer than `most_s`."""
        self._late_after_s = most_s
        self._process.kill()

    def end(self) -> None:
        """Kill the process, if it still runs, and wait for its end."""
        self._process.kill()
        # A line may be left that could not be sent.
        with suppress(BrokenPipeError), self._process:
            pass

    def _receive(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ProbeError(self._reason())
        return line.strip()

    def _reason(self) -> str:
        """Return why the process has ended: that it was late, its last words, or its status."""
        status = self._process.wait()
        if self._late_after_s is not None:
            return f"took longer than {self._late_after_s:g} s"
        self._errors.seek(0)
        words = self._errors.read().strip()
        return words.splitlines()[-1] if words else status_in_words(status)


@contextmanager
def _running(
    commands: Sequence[Sequence[str]], env: Mapping[str, str], most_s: float
) -> Iterator[list[_Probe]]:
    """Run a probe for each command while the context lasts, for `most_s` at most.

    Raise ProbeError if one cannot be started.
    """
    probes: list[_Probe] = []

    def end_late() -> None:
        for probe in probes:
            probe.end_late(most_s)

    with ExitStack() as stack:
        for command in commands:
            try:
                errors = stack.enter_context(tempfile.TemporaryFile("w+"))
                probe = _Probe(command, env, errors)
            except OSError as error:
                raise ProbeError(str(error)) from error
            stack.callback(probe.end)
            probes.append(probe)
        timer = threading.Timer(most_s, end_late)
        stack.callback(timer.cancel)
        timer.start()
        yield probes


def _speed(
    probes: Sequence[_Probe], candidate: Candidate, shares: Sequence[int], *, seconds: float
) -> tuple[float, float]:
    """Return the tokens a second of workers that decode so many rows each, together.

    Return as well the share of its time for which a thread waited for a processor.
    """
    busy = probes[: len(shares)]
    for probe, rows, processors in zip(busy, shares, candidate.processors, strict=False):
        trial = Trial(rows, candidate.threads, processors, seconds)
        probe.send(msgspec.json.encode(trial).decode())
    for probe in busy:
        probe.expect_ready()
    for probe in busy:
        probe.send(GO)
    speeds = [probe.expect(Speed) for probe in busy]
    delay = max(speed.delayed_s / (speed.seconds * candidate.threads) for speed in speeds)
    # A wait is counted when it ends, and may have begun before the trial; threads that compute
    # nothing wait, too.
    return sum(speed.num_tokens / speed.seconds for speed in speeds), min(1.0, delay)


def _shares(rows: int, workers: int) -> list[int]:
    """Return the rows of each worker, whose numbers differ by one at most."""
    bounds = [rows * number // workers for number in range(workers + 1)]
    return [end - start for start, end in pairwise(bounds)]
