"""The sums over the answers of a batch's lines."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scripts.cli.watch.units import amount, span


@dataclass
class BatchTally:
    """Sums over the lines of an output.

    The tokens are those of the answers that were added since `begin`.
    """

    num_done: int = 0
    num_failed: int = 0
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    num_before: int = 0

    def begin(self) -> None:
        """Begin a run, to whose speed the lines that are done do not count."""
        self.num_before = self.num_done
        self.num_prompt_tokens = 0
        self.num_completion_tokens = 0

    @property
    def num_new(self) -> int:
        return self.num_done - self.num_before

    def add(self, line: Mapping[str, Any]) -> None:
        """Count a line. Raise KeyError or TypeError for one that is no answer."""
        response = line["response"]
        self.num_failed += line["error"] is not None
        self.num_done += 1
        usage = None
        if response is not None and isinstance(response["body"], dict):
            usage = response["body"].get("usage")
        if isinstance(usage, dict):
            self.num_prompt_tokens += usage.get("prompt_tokens") or 0
            self.num_completion_tokens += usage.get("completion_tokens") or 0

    def parts(self, seconds: float) -> list[str]:
        """Return the sums as texts for people, after so many seconds of a run."""
        parts = []
        if self.num_failed:
            parts.append(f"{self.num_failed} failed")
        num_tokens = self.num_completion_tokens or self.num_prompt_tokens
        if num_tokens and seconds > 0:
            parts.append(f"{amount(num_tokens / seconds)} tokens/s")
        return parts


def summary(tally: BatchTally, seconds: float) -> list[str]:
    """Return lines for people, of a run that took so many seconds."""
    lines = [f"{tally.num_done} lines"]
    if tally.num_failed:
        lines[0] += f", {tally.num_failed} of them failed"
    num_new = tally.num_new
    time = span(seconds) if seconds >= 60 else f"{seconds:.1f}s"
    rate = f"{num_new} in {time}, {amount(num_new / max(seconds, 1e-9))} lines/s"
    if tally.num_before:
        rate += f"; {tally.num_before} were done before"
    lines.append(rate)
    if tally.num_prompt_tokens or tally.num_completion_tokens:
        per_s = amount(tally.num_completion_tokens / max(seconds, 1e-9))
        lines.append(
            f"tokens: {tally.num_prompt_tokens} of prompts, {tally.num_completion_tokens} of "
            f"completions, {per_s}/s"
        )
    return lines
