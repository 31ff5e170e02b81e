"""The answers of a batch's lines that are noted, and are in no part of a file yet."""

from dataclasses import dataclass

from api.batches.lines import RawLine
from shared.queue.batches import LineOutcome


@dataclass(frozen=True)
class Part:
    """Answers of lines that follow each other, as they go into the files of a batch.

    They are those of all lines from `from_line` up to `next_line`, which begins at `next_offset` of
    the input.
    """

    outputs: list[bytes]
    errors: list[bytes]
    from_line: int
    next_line: int
    next_offset: int


class KnownAnswers:
    """The answers from the line `next_line` on, which come in any order.

    `open_line` is the first line without an answer. The answers in front of it have `ready_bytes`,
    those behind it `ahead_bytes`.
    """

    def __init__(self, next_line: int) -> None:
        # None is for blank lines, which have no answers.
        self._answers: dict[int, tuple[LineOutcome, bytes] | None] = {}
        self._ends: dict[int, int] = {}
        self._first_line = next_line
        self.open_line = next_line
        self.ready_bytes = 0
        self.ahead_bytes = 0

    def __contains__(self, line: int) -> bool:
        return line in self._answers

    def add(self, line: int, outcome: LineOutcome, text: bytes) -> None:
        self._answers[line] = (outcome, text)
        self.ahead_bytes += len(text)

    def read(self, raw: RawLine) -> None:
        """Note that a line was read. Only then it may be in a part."""
        self._ends[raw.number] = raw.end
        if raw.is_blank:
            self._answers[raw.number] = None

    def advance(self) -> None:
        """Move `open_line` behind all lines that have answers and were read."""
        while self.open_line in self._answers and self.open_line in self._ends:
            answer = self._answers[self.open_line]
            if answer is not None:
                self.ready_bytes += len(answer[1])
                self.ahead_bytes -= len(answer[1])
            self.open_line += 1

    def part(self) -> Part:
        """Return the answers in front of `open_line`, of which there must be some."""
        outputs: list[bytes] = []
        errors: list[bytes] = []
        for line in range(self._first_line, self.open_line):
            answer = self._answers[line]
            if answer is None:
                continue
            outcome, text = answer
            if outcome == "completed":
                outputs.append(text)
            else:
                errors.append(text)
        next_offset = self._ends[self.open_line - 1]
        return Part(outputs, errors, self._first_line, self.open_line, next_offset)

    def forget(self, part: Part) -> None:
        """Forget the answers of a part, which is kept elsewhere now."""
        for line in range(part.from_line, part.next_line):
            del self._answers[line], self._ends[line]
        self._first_line = part.next_line
        self.ready_bytes = 0
