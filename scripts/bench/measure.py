"""Taking turns, and saying what came of it: the sides of a row run alternately and are compared
within the run."""

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


@dataclass(frozen=True)
class Timed(Generic[T]):
    """What one turn took, and gave."""

    seconds: float
    value: T


def timed(call: Callable[..., T], *args: object) -> Timed[T]:
    begun = now()
    value = call(*args)
    return Timed(now() - begun, value)


def take_turns(rounds: int, **sides: Callable[[], T]) -> dict[str, list[Timed[T]]]:
    """Each side once per round, in turn, after one round that is thrown away: the first touches
    memory."""
    for call in sides.values():
        call()
    turns: dict[str, list[Timed[T]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            turns[name].append(timed(call))
    return turns


@dataclass(frozen=True)
class Comparison:
    """Seconds of each round on both sides, for the same work. A ratio above 1 means that ours is
    faster."""

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    def add(self, ours: float, theirs: float) -> None:
        """One more round."""
        self.ours.append(ours)
        self.theirs.append(theirs)

    def rates(
        self, name: str, amount: float, unit: str, sides: tuple[str, str] = ("ours", "theirs")
    ) -> str:
        """A row of how many of `amount` things went through in a second, in the best round."""
        mine, other = amount / min(self.ours), amount / min(self.theirs)
        return (
            f"{name:<28} {sides[0]} {mine:9.1f} {unit}  {sides[1]} {other:9.1f} {unit}  "
            f"{self._ratio()}"
        )

    def latencies(
        self, name: str, sides: tuple[str, str] = ("ours", "theirs"), parts: int = 1
    ) -> str:
        """A row of milliseconds in the best round, each of `parts` equal parts of it."""
        mine, other = 1000 * min(self.ours) / parts, 1000 * min(self.theirs) / parts
        return f"{name:<28} {sides[0]} {mine:9.1f} ms  {sides[1]} {other:9.1f} ms  {self._ratio()}"

    def _ratio(self) -> str:
        """Best against best: whatever disturbed the machine only ever made a turn longer. The
        rounds show the noise."""
        rounds = sorted(theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True))
        spread = f"median {statistics.median(rounds):.2f}, {rounds[0]:.2f} to {rounds[-1]:.2f}"
        return f"ratio {min(self.theirs) / min(self.ours):.2f}  ({spread})"


def compared(
    turns: Mapping[str, list[Timed[T]]], seconds: Callable[[Timed[T]], float]
) -> Comparison:
    """The sides called `ours` and `theirs`, by what `seconds` reads off a turn."""
    return Comparison(
        [seconds(turn) for turn in turns["ours"]], [seconds(turn) for turn in turns["theirs"]]
    )


def header(**facts: object) -> str:
    """Where, when and of what code the figures are."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    load = f"{os.getloadavg()[0]:.2f}"
    machine = (
        f"{os.cpu_count()} cores, load {load} at the start, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    return "\n".join(
        [
            f"commit {commit()}  {date}",
            machine,
            "  ".join(f"{key}={value}" for key, value in facts.items()),
        ]
    )


def commit() -> str:
    """The commit of this checkout, marked when files differ from it."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
    found = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
