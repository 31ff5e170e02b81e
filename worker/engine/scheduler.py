"""The plan of the next step. Plain Python: it counts slots, pages and tokens, and knows no model
and no tensor.

Every step decodes all running sequences and gives the rest of its token budget to prompts, so that
neither starves the other. A prompt that cannot be cut may exceed the budget: the steps after it
take no prompt until that is paid. Of the prompts the oldest gets at least half the budget, the
shortest the rest. Better classes go first.

Pages are taken as sequences grow. When they run out, or a better class waits for the slot, the
latest arrival of the lowest class gives its pages back and is computed again later. A device that
runs out of memory gets a smaller budget for a while.
"""

from dataclasses import dataclass

from worker.engine.runner import RunnerSpec
from worker.engine.sequence import Slice, Status, TokenSequence
from worker.kv.cache import Cache

_CALM_STEPS = 64
"""Steps without trouble after which a halved budget is doubled again."""
PATIENCE_STEPS = 256
"""Steps of waiting that lift a sequence by one class, for good, so that none is paused for ever."""


@dataclass(frozen=True)
class Load:
    """The numbers that an engine shows of itself.

    `running` sequences take part in steps, `waiting` ones do not. Of `num_pages` pages
    `pages_held` belong to the former, and `pages_cached` are known to the prefix tree alone. Since
    the start `num_preempted` sequences were paused, and of the `num_started` ones `num_hits` found
    `num_hit_tokens` tokens computed. Tasks that are done whole have `steps_total` steps, of which
    `steps_done` are done.
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
    """The one writer of a sequence's status: it decides who waits, who runs and who gives way.

    Mechanisms that keep no keys and values have no cache: each step computes their rows whole.
    """

    def __init__(self, spec: RunnerSpec) -> None:
        self._spec = spec
        self.cache: Cache | None = None
        if spec.num_pages:
            self.cache = Cache(spec)
        self.waiting: list[TokenSequence] = []
        self.running: list[TokenSequence] = []
        self._arrivals = 0
        # Tokens by which a prompt that cannot be cut has exceeded the budget of its step.
        self._debt = 0
        self.budget = spec.step_tokens
        self._calm_steps = 0
        self._num_preempted = 0

    @property
    def load(self) -> Load:
        """Return the numbers of now. Any thread may ask."""
        running = len(self.running)
        waiting = len(self.waiting)
        cache = self.cache
        if cache is None:
            return Load(running, waiting, num_preempted=self._num_preempted)

        # Copies, for the engine's thread goes on. A page that moves meanwhile is counted here or
        # there.
        held: set[int] = set()
        for sequence in list(self.running):
            held.update(list(sequence.pages))
        num_pages = cache.pages.num_pages
        return Load(
            running,
            waiting,
            num_preempted=self._num_preempted,
            num_pages=num_pages,
            pages_held=len(held),
            pages_cached=max(0, num_pages - cache.pages.num_free - len(held)),
            num_started=cache.num_started,
            num_hits=cache.num_hits,
            num_hit_tokens=cache.num_hit_tokens,
        )

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: TokenSequence) -> None:
        self._arrivals += 1
        sequence.arrival = self._arrivals
        sequence.status = Status.WAITING
        self.waiting.append(sequence)

    def can_hold(self, sequence: TokenSequence) -> bool:
        """Return whether there would be room for a sequence if everything else were gone.

        One without room must not be added.
        """
        return self.cache is None or self.cache.can_hold(sequence)

    def plan(self) -> list[Slice]:
        """Return each sequence's share of the next step: those that decode come first, then prompts
        and continuations."""
        self._recover()
        self._age()
        self._make_way()

        slices: list[Slice] = []
        for sequence in sorted(self.running, key=_turn):
            # A sequence that grows may pause others, but only those behind it in turn: these do not
            # decode any more when the loop comes to them.
            if self._is_decoding(sequence) and self._grow(sequence):
                slices.append(Slice(sequence, sequence.num_remaining))

        budget = self.budget
        # The debt is paid only while something decodes: otherwise nobody waits for a next token.
        if slices:
            budget -= self._debt
        prompts: list[Slice] = []
        if budget > 0:
            prompts = self._prompts(budget)

        spent = sum(map(self.cost, prompts))
        self._debt = max(0, self._debt + spent - self.budget)
        return slices + prompts

    def commit(self, part: Slice) -> None:
        """Note that a slice has been computed."""
        if self.cache is not None and part.sequence.status is Status.RUNNING:
            self.cache.commit(part)

    def finish(self, sequence: TokenSequence, *, keep: bool = True) -> None:
        """Take a sequence out, running or waiting, and free what it holds. Twice is once.

        What it computed stays known to others, unless `keep` is false: a failed step may have left
        anything.
        """
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            if self.cache is not None:
                self.cache.give_back(sequence, keep=keep)
        elif sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        sequence.status = Status.FINISHED

    def shrink(self, num_tokens: int) -> None:
        """Plan smaller steps, because the device had no memory for one of `num_tokens`."""
        self.budget = max(1, min(self.budget, num_tokens // 2))
        self._calm_steps = 0

    def halve(self, part: Slice) -> Slice | None:
        """Return about half of a slice, for a device that has no memory for the whole.

        None if it cannot be cut.
        """
        if part.num_continuations > 1:
            return Slice(part.sequence, num_continuations=part.num_continuations // 2)
        if part.num_continuations or self.cache is None:
            return None
        size = max(self._num_uncut(part.sequence), part.num_tokens // 2)
        if not 0 < size < part.num_tokens:
            return None
        return Slice(part.sequence, size)

    def cost(self, part: Slice) -> int:
        """Return the number of tokens that a slice makes the model compute."""
        num_tokens = part.num_tokens
        for continuation in part.continuations:
            num_tokens += self._continuation_cost(part.sequence, continuation)
        return num_tokens

    def _recover(self) -> None:
        self._calm_steps += 1
        if self._calm_steps > _CALM_STEPS and self.budget < self._spec.step_tokens:
            self.budget = min(self._spec.step_tokens, 2 * self.budget)
            self._calm_steps = 0

    def _age(self) -> None:
        for sequence in self.waiting:
            sequence.num_waited += 1
            if sequence.num_waited % PATIENCE_STEPS == 0:
                sequence.rank = max(0, sequence.rank - 1)

    def _make_way(self) -> None:
        """Give a sequence that waits in a better class the slot, and the pages, of the latest one
        in the lowest class."""
        for sequence in sorted(self.waiting, key=_turn):
            if not self._is_above(sequence):
                return
            if self.cache is not None and self.cache.is_being_computed(
                sequence, self._unfinished()
            ):
                # It gains by waiting: another one computes what it would compute, too.
                continue
            while not (len(self.running) < self._spec.max_batch and self._start(sequence)):
                if not self._is_above(sequence):
                    return
                self.preempt(max(self.running, key=_turn))

    def _is_above(self, sequence: TokenSequence) -> bool:
        """Return whether something of a lower class is running."""
        return any(other.rank > sequence.rank for other in self.running)

    def _unfinished(self) -> list[TokenSequence]:
        """Return the running sequences whose prompts or continuations are not computed, by turn."""
        unfinished: list[TokenSequence] = []
        for sequence in self.running:
            if not self._is_decoding(sequence):
                unfinished.append(sequence)
        unfinished.sort(key=_turn)
        return unfinished

    def _is_decoding(self, sequence: TokenSequence) -> bool:
        if self.cache is None:
            return not sequence.encoded.continuations
        return not sequence.is_scoring and sequence.num_computed > 0 and sequence.num_remaining == 1

    def _grow(self, sequence: TokenSequence) -> bool:
        """Make room for a sequence's next token; the last in turn give way. Return False if it was
        the last itself."""
        while sequence.status is Status.RUNNING:
            if self.cache is None or self.cache.grow(sequence):
                return True
            self.preempt(max(self.running, key=_turn))
        return False

    def preempt(self, sequence: TokenSequence) -> None:
        self._num_preempted += 1
        self.running.remove(sequence)
        if self.cache is not None:
            self.cache.give_back(sequence, keep=True)
        sequence.status = Status.WAITING
        self.waiting.append(sequence)

    def _prompts(self, budget: int) -> list[Slice]:
        """Return shares for prompts and continuations.

        The oldest one gets something before any other starts, and whatever the others leave.
        """
        candidates = self._candidates()
        if not candidates:
            return []
        oldest, *others = candidates
        slices: list[Slice] = []
        left = budget

        first_budget = budget
        if others:
            first_budget = max(1, budget // 2)
        first = self._share(oldest, first_budget, must=True)
        if first is not None:
            slices.append(first)
            left -= self.cost(first)
        else:
            # The oldest has no room to start, and younger ones must not take what it waits for.
            others = [sequence for sequence in others if sequence.status is Status.RUNNING]

        for sequence in sorted(others, key=_num_remaining):
            part = self._share(sequence, left, must=False)
            if part is not None:
                slices.append(part)
                left -= self.cost(part)

        if first is not None and left > 0:
            slices[0] = self._share(oldest, self.cost(first) + left, must=True) or first
        return slices

    def _candidates(self) -> list[TokenSequence]:
        """Return unfinished prompts and continuations by turn, then those that wait, have a slot,
        and gain by starting."""
        unfinished = self._unfinished()
        room = max(0, self._spec.max_batch - len(self.running))
        ready: list[TokenSequence] = []
        for sequence in sorted(self.waiting, key=_turn):
            if len(ready) >= room:
                break
            if self.cache is None or not self.cache.is_being_computed(sequence, unfinished + ready):
                ready.append(sequence)
        return unfinished + ready

    def _share(self, sequence: TokenSequence, budget: int, *, must: bool) -> Slice | None:
        """Return a slice within the budget, or the smallest there is if there `must` be one.

        None if there is no slice now.
        """
        if budget <= 0 and not must:
            return None
        if sequence.status is Status.WAITING and not self._start(sequence):
            return None
        if self.cache is None and not sequence.encoded.continuations:
            return Slice(sequence, sequence.num_remaining)
        if self.cache is None or sequence.num_remaining == 0:
            return self._continuations(sequence, budget)

        num_uncut = self._num_uncut(sequence)
        if num_uncut > budget and not must:
            return None
        size = min(sequence.num_remaining, budget)
        return Slice(sequence, max(num_uncut, 1, size))

    def _num_uncut(self, sequence: TokenSequence) -> int:
        """Return how many of a sequence's next tokens must be computed in one step."""
        if self._spec.chunk_prefill:
            return 0
        return max(0, len(sequence.encoded.prompt_ids) - sequence.num_computed)

    def _start(self, sequence: TokenSequence) -> bool:
        """Let a sequence run. Return False where there are no pages for it."""
        if self.cache is not None:
            num_running = len(self.running)
            if not self.cache.allocate(sequence, num_running=num_running):
                return False
        self.waiting.remove(sequence)
        self.running.append(sequence)
        sequence.status = Status.RUNNING
        return True

    def _continuations(self, sequence: TokenSequence, budget: int) -> Slice:
        """Return as many unscored continuations as the budget allows, and at least one."""
        count = 0
        left = budget
        for continuation in sequence.encoded.continuations[len(sequence.scores) :]:
            left -= self._continuation_cost(sequence, continuation)
            if count and left < 0:
                break
            count += 1
        return Slice(sequence, num_continuations=count)

    def _continuation_cost(self, sequence: TokenSequence, continuation: tuple[int, ...]) -> int:
        """Return the number of tokens that are computed for one continuation."""
        if self.cache is not None:
            return len(continuation)
        # Without keys and values the context is computed again, by the strict method for each
        # token.
        num_rows = 1
        if sequence.encoded.method == "strict":
            num_rows = len(continuation)
        return num_rows * (len(sequence.encoded.prompt_ids) + len(continuation))


def _turn(sequence: TokenSequence) -> tuple[int, int]:
    """Sort the better class first, then the older one."""
    return sequence.rank, sequence.arrival


def _num_remaining(sequence: TokenSequence) -> int:
    return sequence.num_remaining
