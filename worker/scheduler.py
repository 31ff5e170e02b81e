"""Which sequences run in the next step. Plain Python: counts slots and pages, knows no model and no tensor.

First come, first served: a sequence is admitted when there is a slot and room for all the tokens it may ever hold, so
that a running sequence never has to give way. Long prompts wait for the next step once this step's budget is spent.
"""

from collections import deque

from worker.kv.pages import PageTable
from worker.sequence import Sequence, Status


class Scheduler:
    """`pages` is None for mechanisms that keep no keys and values. Invariant: pages held only by running sequences."""

    def __init__(self, max_batch: int, pages: PageTable | None = None, *, prefill_budget: int = 4096) -> None:
        self._max_batch = max_batch
        self._pages = pages
        self._prefill_budget = prefill_budget
        self._waiting: deque[Sequence] = deque()
        self._running: dict[str, Sequence] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def can_hold(self, sequence: Sequence) -> bool:
        """Whether there would be room for a sequence with everything else gone; one without must not be added."""
        if self._pages is None or sequence.is_scoring:
            return True
        return self._pages.pages_for(sequence.num_tokens_at_most) <= self._pages.num_pages

    def plan(self) -> list[Sequence]:
        """The sequences of the next step: everything running, and those that join it now."""
        budget = self._prefill_budget
        while self._waiting and len(self._running) < self._max_batch:
            sequence = self._waiting[0]
            if budget < sequence.num_tokens and budget < self._prefill_budget:
                break
            if not self._place(sequence):
                break
            budget -= sequence.num_tokens
            self._waiting.popleft()
            sequence.status = Status.RUNNING
            self._running[sequence.key] = sequence
        return list(self._running.values())

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, running or waiting, and free what it holds. Twice is once."""
        if sequence.status is Status.RUNNING:
            del self._running[sequence.key]
            if self._pages is not None:
                self._pages.release(sequence.pages)
            sequence.pages = []
        elif sequence.status is Status.WAITING:
            self._waiting.remove(sequence)
        sequence.status = Status.FINISHED

    def _place(self, sequence: Sequence) -> bool:
        if self._pages is None or sequence.is_scoring:
            return True
        pages = self._pages.reserve(sequence.num_tokens_at_most)
        if pages is None:
            return False
        sequence.pages = pages
        return True
