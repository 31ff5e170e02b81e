"""What the next step computes. Plain Python: counts slots, pages and tokens, knows no model and no
tensor.

Every step decodes all running sequences and gives what is left of its token budget to prompts, so
that neither starves the other: a prompt that cannot be cut may exceed the budget, and the steps
after it take no prompt until that is paid. Of the prompts the oldest gets at least half the budget,
the shortest the rest. Better classes go first. Pages are taken as sequences grow; when they run
out, or a better class wants the slot, the latest arrival of the lowest class gives its own back and
is computed again later. A device that runs out of memory gets a smaller budget for a while.
"""

from dataclasses import dataclass

from worker.kv.cache import Cache
from worker.runners.base import RunnerSpec
from worker.sequence import Slice, Status, TokenSequence

_CALM_STEPS = 64
"""Steps without trouble after which a halved budget is doubled again."""
PATIENCE_STEPS = 256
"""Steps of waiting that lift a sequence by one class, for good: so that none is paused for ever."""


@dataclass(frozen=True)
class Load:
    """How much there is: sequences that take part in steps and that wait; pages in all, held by the
    former, and known to the prefix tree alone; since the start how often one was paused, and what
    the ones that started found computed. Of tasks that are done whole, the steps that are done and
    those that there are.
    """

    running: int
    waiting: int
    num_preempted: int
    num_pages: int = 0
    pages_held: int = 0
    pages_cached: int = 0
    num_started: int = 0
    num_hits: int = 0
    num_hit_tokens: int = 0
    steps_done: int = 0
    steps_total: int = 0


class Scheduler:
    """`cache` is None for mechanisms that keep no keys and values: each step computes their rows
    whole."""

    def __init__(self, spec: RunnerSpec) -> None:
        self._spec = spec
        self._cache = Cache(spec) if spec.num_pages else None
        self._waiting: list[TokenSequence] = []
        self._running: list[TokenSequence] = []
        self._arrivals = 0
        self._debt = 0
        self._budget = spec.step_tokens
        self._calm_steps = 0
        self._num_preempted = 0

    @property
    def load(self) -> Load:
        """May be asked for by any thread, so it looks at copies; what moves meanwhile is counted
        here or there."""
        counts = len(self._running), len(self._waiting), self._num_preempted
        cache = self._cache
        if cache is None:
            return Load(*counts)
        held = len({page for item in list(self._running) for page in list(item.pages)})
        pages = cache.pages.num_pages
        cached = max(0, pages - cache.pages.num_free - held)
        return Load(
            *counts, pages, held, cached, cache.num_started, cache.num_hits, cache.num_hit_tokens
        )

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, sequence: TokenSequence) -> None:
        self._arrivals += 1
        sequence.arrival = self._arrivals
        sequence.status = Status.WAITING
        self._waiting.append(sequence)

    def can_hold(self, sequence: TokenSequence) -> bool:
        """Whether there would be room for a sequence with everything else gone; one without must
        not be added."""
        return self._cache is None or self._cache.can_hold(sequence)

    def plan(self) -> list[Slice]:
        """Each sequence's share of the next step: those that decode, then prompts and
        continuations."""
        self._recover()
        self._age()
        self._make_way()
        decoding = [
            self._grow(item) for item in sorted(self._running, key=_turn) if self._is_decoding(item)
        ]
        slices = [Slice(item, item.num_remaining) for item in decoding if item is not None]
        budget = self._budget - (self._debt if slices else 0)
        prompts = self._prompts(budget) if budget > 0 else []
        spent = sum(map(self.cost, prompts))
        self._debt = max(0, self._debt + spent - self._budget)
        return slices + prompts

    def commit(self, part: Slice) -> None:
        """Note that a slice has been computed."""
        if self._cache is not None and part.sequence.status is Status.RUNNING:
            self._cache.commit(part)

    def finish(self, sequence: TokenSequence, *, keep: bool = True) -> None:
        """Take a sequence out, running or waiting, and free what it holds. Twice is once.

        What it computed stays known to others, unless `keep` is false: a failed step may have left
        anything.
        """
        if sequence.status is Status.RUNNING:
            self._running.remove(sequence)
            if self._cache is not None:
                self._cache.give_back(sequence, keep=keep)
        elif sequence.status is Status.WAITING:
            self._waiting.remove(sequence)
        sequence.status = Status.FINISHED

    def shrink(self, num_tokens: int) -> None:
        """The device had no memory for a step of `num_tokens`: plan smaller ones."""
        self._budget = max(1, min(self._budget, num_tokens // 2))
        self._calm_steps = 0

    def halve(self, part: Slice) -> Slice | None:
        """About half of a slice, for a device that has no memory for the whole; None if it cannot
        be cut."""
        if part.num_continuations > 1:
            return Slice(part.sequence, num_continuations=part.num_continuations // 2)
        if part.num_continuations or self._cache is None:
            return None
        size = max(self._whole(part.sequence), part.num_tokens // 2)
        return Slice(part.sequence, size) if 0 < size < part.num_tokens else None

    def cost(self, part: Slice) -> int:
        """Tokens that a slice makes the model compute."""
        return part.num_tokens + sum(
            self._continuation_cost(part.sequence, continuation)
            for continuation in part.continuations
        )

    def _recover(self) -> None:
        self._calm_steps += 1
        if self._calm_steps > _CALM_STEPS and self._budget < self._spec.step_tokens:
            self._budget = min(self._spec.step_tokens, 2 * self._budget)
            self._calm_steps = 0

    def _age(self) -> None:
        for item in self._waiting:
            item.num_waited += 1
            if item.num_waited % PATIENCE_STEPS == 0:
                item.rank = max(0, item.rank - 1)

    def _make_way(self) -> None:
        """Who waits in a better class gets the slot, and the pages, of the latest in the lowest
        class."""
        for item in sorted(self._waiting, key=_turn):
            if not self._is_above(item):
                return
            if self._cache is not None and self._cache.is_being_computed(item, self._unfinished()):
                continue
            while not (len(self._running) < self._spec.max_batch and self._start(item)):
                if not self._is_above(item):
                    return
                self._preempt(max(self._running, key=_turn))

    def _is_above(self, sequence: TokenSequence) -> bool:
        """Whether something of a lower class is running."""
        return any(item.rank > sequence.rank for item in self._running)

    def _unfinished(self) -> list[TokenSequence]:
        return sorted((item for item in self._running if not self._is_decoding(item)), key=_turn)

    def _is_decoding(self, sequence: TokenSequence) -> bool:
        if self._cache is None:
            return not sequence.encoded.continuations
        return not sequence.is_scoring and sequence.num_computed > 0 and sequence.num_remaining == 1

    def _grow(self, sequence: TokenSequence) -> TokenSequence | None:
        """The sequence with room for its next token; the last in turn give way. None if it had to
        itself."""
        while sequence.status is Status.RUNNING:
            if self._cache is None or self._cache.grow(sequence):
                return sequence
            self._preempt(max(self._running, key=_turn))
        return None

    def _preempt(self, sequence: TokenSequence) -> None:
        self._num_preempted += 1
        self._running.remove(sequence)
        if self._cache is not None:
            self._cache.give_back(sequence, keep=True)
        sequence.status = Status.WAITING
        self._waiting.append(sequence)

    def _prompts(self, budget: int) -> list[Slice]:
        """Shares for prompts and continuations. The oldest one always gets something, and before
        any other starts."""
        candidates = self._candidates()
        if not candidates:
            return []
        oldest, *others = candidates
        first = self._share(oldest, budget if not others else max(1, budget // 2), must=True)
        slices, left = ([first], budget - self.cost(first)) if first else ([], budget)
        if first is None:
            others = [item for item in others if item.status is Status.RUNNING]
        for sequence in sorted(others, key=lambda item: item.num_remaining):
            part = self._share(sequence, left, must=False)
            if part is not None:
                slices.append(part)
                left -= self.cost(part)
        if first is not None and left > 0:
            slices[0] = self._share(oldest, self.cost(first) + left, must=True) or first
        return slices

    def _candidates(self) -> list[TokenSequence]:
        """Unfinished prompts and continuations by turn, then those that wait, have a slot, and gain
        by starting."""
        unfinished = self._unfinished()
        room = max(0, self._spec.max_batch - len(self._running))
        ready: list[TokenSequence] = []
        for item in sorted(self._waiting, key=_turn):
            if len(ready) >= room:
                break
            if self._cache is None or not self._cache.is_being_computed(item, unfinished + ready):
                ready.append(item)
        return unfinished + ready

    def _share(self, sequence: TokenSequence, budget: int, *, must: bool) -> Slice | None:
        """A slice within the budget, or the smallest there is if there `must` be one; None if there
        is none now."""
        if budget <= 0 and not must:
            return None
        if sequence.status is Status.WAITING and not self._start(sequence):
            return None
        if self._cache is None and not sequence.encoded.continuations:
            return Slice(sequence, sequence.num_remaining)
        if self._cache is None or sequence.num_remaining == 0:
            return self._continuations(sequence, budget)
        whole = self._whole(sequence)
        if whole > budget and not must:
            return None
        return Slice(sequence, max(whole, 1, min(sequence.num_remaining, budget)))

    def _whole(self, sequence: TokenSequence) -> int:
        """How many of its next tokens must be computed in one step."""
        return (
            0
            if self._spec.chunk_prefill
            else max(0, len(sequence.encoded.prompt_ids) - sequence.num_computed)
        )

    def _start(self, sequence: TokenSequence) -> bool:
        if self._cache is not None and not self._cache.allocate(
            sequence, num_running=len(self._running)
        ):
            return False
        self._waiting.remove(sequence)
        self._running.append(sequence)
        sequence.status = Status.RUNNING
        return True

    def _continuations(self, sequence: TokenSequence, budget: int) -> Slice:
        """As many unscored continuations as the budget allows, but one."""
        count, left = 0, budget
        for continuation in sequence.encoded.continuations[len(sequence.scores) :]:
            left -= self._continuation_cost(sequence, continuation)
            if count and left < 0:
                break
            count += 1
        return Slice(sequence, num_continuations=count)

    def _continuation_cost(self, sequence: TokenSequence, continuation: tuple[int, ...]) -> int:
        """Tokens that are computed for one continuation; without keys and values its context is
        computed again."""
        if self._cache is not None:
            return len(continuation)
        rows = len(continuation) if sequence.encoded.method == "strict" else 1
        return rows * (len(sequence.encoded.prompt_ids) + len(continuation))


def _turn(sequence: TokenSequence) -> tuple[int, int]:
    """The better class first, then the older one."""
    return sequence.rank, sequence.arrival
