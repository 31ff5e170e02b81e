"""A probe: a process that loads a model as a worker does, and tells how fast it decodes.

    python -m worker.host.shape_probe MODEL THREADS

The settings come from the environment. `THREADS` is the most threads that a trial will have: the
OpenMP runtime is chosen by it, once for the life of the process.

Its parent, `scripts/cli/shape_probes.py`, sends and receives lines. The probe says READY when the
model is loaded. Then for each trial it gets a `Trial`, says READY when the rows decode, gets GO,
decodes for a while and says its `Speed`. So the probes of one shape decode at the same time. It
ends with its stdin.
"""

import os
import random
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter as now

import msgspec

from shared.errors import from_event
from shared.messages import Failed, Generate, Sampling
from shared.settings.settings import model_entries, resolve
from shared.tasks.runner_table import AUTO
from worker.engine.engine import Engine
from worker.engine.request import Emission
from worker.engine.runner import Runner
from worker.engine.take import Take
from worker.hardware.device import keep_freed_memory, use_threads
from worker.hardware.openmp import use_ready_threads
from worker.host.loading import runner_options
from worker.runners.registry import detect, load_sequence_runner

READY = "ready"
GO = "go"

_PROMPT_TOKENS = 32
_LETTERS = "The quick brown fox jumps over the lazy dog: 0123456789."
_WARM_UP_STEPS = 2
"""Steps after the first tokens: kernels are chosen and threads are started in the first one."""


class Trial(msgspec.Struct, frozen=True):
    """The work of a probe: `rows` sequences together, for `seconds` at least.

    `processors` are those to run on ("0,1"), where processors can be chosen.
    """

    rows: int
    threads: int
    processors: str
    seconds: float


class Speed(msgspec.Struct, frozen=True):
    """The tokens that were decoded, and the seconds that this took.

    For `delayed_s` in all the threads were ready to run while others had the processors.
    """

    num_tokens: int
    seconds: float
    delayed_s: float = 0.0


class EndlessRows:
    """Rows that decode together, greedily. A row at its end begins again with another prompt."""

    def __init__(self, runner: Runner, rows: int) -> None:
        self.num_tokens = 0
        self._rows = rows
        self._started: set[str] = set()
        self._engine = Engine(runner, self._receive)
        self._window = runner.spec.context_window
        self._draw = random.Random(0)
        # Ids that every vocabulary has, whatever their number.
        text = Generate(_LETTERS, Sampling(1, seed=0, temperature=0.0))
        self._known_ids = runner.encode(text).prompt_ids
        for row in range(rows):
            self._begin(str(row))

    def warm_up(self) -> None:
        """Step until all rows decode."""
        while len(self._started) < self._rows:
            self._engine.step()
        for _ in range(_WARM_UP_STEPS):
            self._engine.step()

    def decode(self, seconds: float) -> Speed:
        """Step for `seconds` at least, and return the speed."""
        self.num_tokens = 0
        delayed_before_s = delayed_s()
        begun_s = now()
        while now() - begun_s < seconds:
            self._engine.step()
        return Speed(self.num_tokens, now() - begun_s, delayed_s() - delayed_before_s)

    def end(self) -> None:
        """Drop all rows, and with them their keys and values."""
        for row in range(self._rows):
            self._engine.abort(str(row))
        self._engine.step()

    def _begin(self, key: str) -> None:
        count = min(_PROMPT_TOKENS, self._window // 2)
        ids = tuple(self._draw.choices(self._known_ids, k=count))
        sampling = Sampling(self._window, seed=0, temperature=0.0, ignore_eos=True)
        task = Generate(ids, sampling, overflow="clamp")
        self._engine.submit(self._engine.prepare(Take(key, task)))

    def _receive(self, emissions: list[Emission]) -> None:
        """Count the tokens of a step. Raise the FleetError of a row that fails."""
        for emission in emissions:
            self.num_tokens += len(emission.ids)
            if emission.ids:
                self._started.add(emission.key)
            if isinstance(emission.ended, Failed):
                raise from_event(emission.ended)
            if emission.ended is not None:
                self._begin(emission.key)


def delayed_s() -> float:
    """Return for how long all threads of this process have waited for processors.

    It is 0 where the system does not tell.
    """
    delayed_ns = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        # A thread may end meanwhile.
        with suppress(OSError, ValueError, IndexError):
            delayed_ns += int(file.read_text().split()[1])
    return delayed_ns / 1e9


def main(argv: Sequence[str]) -> None:
    """Load the model, and do the trials that stdin asks for."""
    model_id, threads = argv
    # Before torch is imported, as in a worker.
    use_threads(int(threads))
    use_ready_threads(int(threads))
    keep_freed_memory()
    # What libraries print is no answer.
    answers = sys.stdout
    sys.stdout = sys.stderr
    runner = _load(model_id)

    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        trial = msgspec.json.decode(line, type=Trial)
        _use(trial)
        rows = EndlessRows(runner, trial.rows)
        rows.warm_up()
        print(READY, file=answers, flush=True)
        if sys.stdin.readline() != f"{GO}\n":
            return
        speed = rows.decode(trial.seconds)
        rows.end()
        print(msgspec.json.encode(speed).decode(), file=answers, flush=True)


def _load(model_id: str) -> Runner:
    """Load a model of the settings. Raise SettingsError or ModelFormatError."""
    settings = resolve({}, os.environ, None).settings
    (entry,) = [entry for entry in model_entries(settings) if entry.id == model_id]
    kind = entry.runner
    if kind == AUTO:
        kind = detect(entry.path)
    return load_sequence_runner(kind, runner_options(entry, settings, kind))


def _use(trial: Trial) -> None:
    """Use the threads and the processors of a trial."""
    use_threads(trial.threads)
    if sys.platform != "linux":
        return
    processors = [int(number) for number in trial.processors.split(",")]
    # Threads that compute have been started already, and each has processors of its own.
    for task in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), processors)


if __name__ == "__main__":
    main(sys.argv[1:])
