"""The sums of a run: how many puzzles are right, and how many steps they took."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.cli.watch.units import amount, span

_MOST_BARS = 16
_BAR_WIDTH = 30


@dataclass
class PuzzleTally:
    """Sums over the lines of an output, one for each puzzle.

    `num_judged` are the puzzles whose solution is known, and `num_checked` those whose answer was
    checked by the rules of the puzzle.
    """

    num_done: int = 0
    num_errors: int = 0
    num_judged: int = 0
    num_right: int = 0
    num_checked: int = 0
    num_valid: int = 0
    steps: Counter[int] = field(default_factory=Counter)

    def add(self, line: Mapping[str, Any]) -> None:
        """Count a line."""
        self.num_done += 1
        if "error" in line:
            self.num_errors += 1
        if "is_right" in line:
            self.num_judged += 1
            self.num_right += line["is_right"]
        # It is null where the rules of a puzzle are not known.
        if line.get("valid") is not None:
            self.num_checked += 1
            self.num_valid += line["valid"]
        if "steps" in line:
            self.steps[line["steps"]] += 1

    def parts(self, seconds: float = 0.0) -> list[str]:
        """Return the shares of right, valid and refused puzzles, those that are known."""
        parts = []
        if self.num_judged:
            percent = 100 * self.num_right / self.num_judged
            parts.append(f"{self.num_right} right ({percent:.1f} %)")
        if self.num_checked:
            percent = 100 * self.num_valid / self.num_checked
            parts.append(f"{self.num_valid} valid ({percent:.1f} %)")
        if self.num_errors:
            parts.append(f"{self.num_errors} failed")
        return parts


def summary(tally: PuzzleTally, num_new: int, seconds: float) -> list[str]:
    """Return lines for people. `num_new` puzzles took these seconds, the others were done before."""
    lines = ["  ".join([f"{tally.num_done} puzzles", *tally.parts()])]
    if tally.steps:
        mean = sum(steps * count for steps, count in tally.steps.items()) / tally.steps.total()
        lines.append(f"steps: {mean:.2f} on average")
        lines += _histogram(tally.steps)
    rate = f"{num_new} in {_time(seconds)}, {amount(num_new / max(seconds, 1e-9))} puzzles/s"
    num_before = tally.num_done - num_new
    if num_before:
        rate += f"; {num_before} were done before"
    lines.append(rate)
    return lines


def _histogram(counts: Counter[int]) -> list[str]:
    """Return a bar for each number of steps, or for ranges of them where there are many."""
    width = -(-max(counts) // _MOST_BARS)
    ranges: Counter[int] = Counter()
    for steps, count in counts.items():
        first = (steps - 1) // width * width + 1
        ranges[first] += count

    longest = max(ranges.values())
    lines = []
    for first, count in sorted(ranges.items()):
        label = str(first)
        if width > 1:
            label += f"-{first + width - 1}"
        bar = "#" * max(1, round(_BAR_WIDTH * count / longest))
        lines.append(f"{label:>7}  {bar:{_BAR_WIDTH}}  {count}")
    return lines


def _time(seconds: float) -> str:
    return span(seconds) if seconds >= 60 else f"{seconds:.1f}s"
