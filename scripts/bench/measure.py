"""Measurements in turns: the sides of a row run alternately and are compared within the run."""

import datetime
import os
import statistics
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter as now
from typing import Generic, TypeVar

import torch
import transformers

T = TypeVar("T")

_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


@dataclass(frozen=True)
class Timed(Generic[T]):
    """The seconds of a turn and its result."""

    seconds: float
    value: T


def timed(call: Callable[..., T], *args: object) -> Timed[T]:
    """Call a function, and return its result with the seconds that it took."""
    started = now()
    value = call(*args)
    return Timed(now() - started, value)


def take_turns(rounds: int, **sides: Callable[[], T]) -> dict[str, list[Timed[T]]]:
    """Call the sides in turn, each once a round, and return the turns of each side."""
    # A first round does not count: it touches memory for the first time.
    for call in sides.values():
        call()
    turns: dict[str, list[Timed[T]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            turns[name].append(timed(call))
    return turns


@dataclass(frozen=True)
class Comparison:
    """The seconds of each round on both sides, for the same work.

    A ratio above 1 means that our side is faster.
    """

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    def add(self, ours: float, theirs: float) -> None:
        """Add a round."""
        self.ours.append(ours)
        self.theirs.append(theirs)

    def rates(
        self, name: str, amount: float, unit: str, sides: tuple[str, str] = ("ours", "theirs")
    ) -> str:
        """Return a row with the rates of both sides in their best rounds.

        `amount` is the work of each round in `unit`.
        """
        our_rate = amount / min(self.ours)
        their_rate = amount / min(self.theirs)
        return (
            f"{name:<28} {sides[0]} {our_rate:9.1f} {unit}  {sides[1]} {their_rate:9.1f} {unit}  "
            f"{self._ratio()}"
        )

    def latencies(
        self, name: str, sides: tuple[str, str] = ("ours", "theirs"), parts: int = 1
    ) -> str:
        """Return a row with the milliseconds of both sides in their best rounds.

        They are those of one of the `parts` equal parts of a round.
        """
        our_ms = 1000 * min(self.ours) / parts
        their_ms = 1000 * min(self.theirs) / parts
        return (
            f"{name:<28} {sides[0]} {our_ms:9.1f} ms  {sides[1]} {their_ms:9.1f} ms  "
            f"{self._ratio()}"
        )

    def _ratio(self) -> str:
        """Return the ratio of the best rounds, and the spread of the ratios of all rounds."""
        rounds = []
        for ours, theirs in zip(self.ours, self.theirs, strict=True):
            rounds.append(theirs / ours)
        rounds.sort()
        spread = f"median {statistics.median(rounds):.2f}, {rounds[0]:.2f} to {rounds[-1]:.2f}"
        # The best rounds are compared, as disturbances can only make a turn longer.
        best = min(self.theirs) / min(self.ours)
        return f"ratio {best:.2f}  ({spread})"


def compared(
    turns: Mapping[str, list[Timed[T]]], seconds: Callable[[Timed[T]], float]
) -> Comparison:
    """Return the comparison of the sides `ours` and `theirs`.

    `seconds` returns the time of a turn that is compared.
    """
    return Comparison(
        [seconds(turn) for turn in turns["ours"]], [seconds(turn) for turn in turns["theirs"]]
    )


def header(**facts: object) -> str:
    """Return the first lines of a report: its commit and date, the machine, and the facts."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    load = f"{os.getloadavg()[0]:.2f}"
    lines = [
        f"commit {commit()}  {date}",
        f"{os.cpu_count()} cores, load {load} at the start, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        "  ".join(f"{key}={value}" for key, value in facts.items()),
    ]
    return "\n".join(lines)


def cpu() -> str:
    """Return the name of the CPU, with those of its flags that kernels ask for."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    has = set(facts.get("flags", "").split())
    flags = [flag for flag in _CPU_FLAGS if flag in has]
    return f"{os.cpu_count()} x {facts.get('model name', 'unknown')} ({' '.join(flags)})"


def commit() -> str:
    """Return the commit of this checkout, with `-dirty` behind it if files differ from it."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
    result = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
