"""The plan of the next step. Plain Python: it counts rows, pages and tokens.

The scheduler knows no model and no tensor. Every step decodes all running sequences and gives a
token budget to prompts, so that neither starves the other. The budget is smaller while sequences
decode. A prompt that exceeds it is cut: between tokens or, where the model sees all tokens of a
prompt at once, between layers. Of the prompts the oldest gets at least half the budget, and the
shortest get the rest. Better classes go first: while one of them has a prompt to compute, sequences
of the lowest class, which nobody watches, decode only in every few steps.

Pages are taken as sequences grow. When pages run out, or a sequence of a better class waits for a
row, the latest arrival of the lowest class gives its pages back and is computed again later. After
a step for which the device has no memory the budget is smaller for a while.

Where the model can draft tokens, sequences that decode get drafts in the room that is left. They
take no page from a sequence that runs or could start.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shared.messages import PRIORITIES
from worker.engine.drafts import DraftPolicy
from worker.engine.runner import RunnerSpec
from worker.engine.sequence import Slice, Status, TokenSequence
from worker.kv.cache import Cache

_CALM_STEPS = 64
"""Steps without trouble after which a halved budget is doubled again."""
_DECODING_DIVISOR = 4
"""The budget for prompts is so many times smaller while a sequence decodes."""
_STAND_BACK_STEPS = 4
"""The most steps in a row in which the lowest class stands back for prompts of better ones."""
_LOWEST_RANK = len(PRIORITIES) - 1
PATIENCE_STEPS = 256
"""Steps of waiting after which a sequence rises by one class, for good.

So no sequence is paused for ever.
"""


@dataclass(frozen=True)
class Load:
    """The load of an engine, in numbers.

    `running` counts the sequences that take part in steps, and `waiting` those that do not. Of the
    `num_pages` pages, running sequences hold `pages_held`, and the prefix tree alone holds
    `pages_cached`. Since the start sequences were paused `num_preempted` times. Of `num_started`
    sequences `num_hits` shared pages with others, with `num_hit_tokens` tokens in all. The running
    tasks that are done whole have `steps_total` steps, of which `steps_done` are done.
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
    """The one writer of a sequence's status: it starts, pauses and ends sequences.

    A model that keeps no keys and values has no cache. Each step computes its rows whole.
    """

    def __init__(self, spec: RunnerSpec) -> None:
        self._spec = spec
        self.cache: Cache | None = None
        if spec.num_pages:
            self.cache = Cache(spec)
        self._drafts = DraftPolicy(spec.max_drafts, spec.draft_cost, max_batch=spec.max_batch)
        self.waiting: list[TokenSequence] = []
        self.running: list[TokenSequence] = []
        self._arrivals = 0
        self._steps_stood_back = 0
        self.budget = spec.step_tokens
        self._calm_steps = 0
        self._num_preempted = 0

    @property
    def load(self) -> Load:
        """Return the present numbers. May be called from any thread."""
        running = len(self.running)
        waiting = len(self.waiting)
        cache = self.cache
        if cache is None:
            return Load(running, waiting, num_preempted=self._num_preempted)

        # Copies, because the engine's thread goes on meanwhile. So the numbers of held and cached
        # pages may be off by those that move at this moment.
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
        """Let a new sequence wait. It must be one that `can_hold` accepts."""
        self._arrivals += 1
        sequence.arrival = self._arrivals
        sequence.status = Status.WAITING
        self.waiting.append(sequence)

    def can_hold(self, sequence: TokenSequence) -> bool:
        """Return whether the pages suffice for a sequence that has them for itself."""
        return self.cache is None or self.cache.can_hold(sequence)

    def plan(self) -> list[Slice]:
        """Return each sequence's share of the next step.

        Sequences that decode come first, then prompts and continuations.
        """
        self._recover()
        self._age()
        self._make_way()

        slices: list[Slice] = []
        lowest_rank = self._lowest_rank()
        for sequence in sorted(self.running, key=_turn):
            if sequence.rank > lowest_rank:
                break
            # A sequence that grows may pause others, but only those behind it in turn. They no
            # longer decode when the loop comes to them.
            if self._is_decoding(sequence) and self._grow(sequence):
                slices.append(Slice(sequence, sequence.num_remaining))

        budget = self.budget
        if slices:
            # Somebody waits for a next token.
            budget = max(1, budget // _DECODING_DIVISOR)
        prompts = self._prompts(budget)
        # Last, so that drafts get only the pages that nobody else needs now.
        if self._spec.max_drafts:
            slices = self._with_drafts(slices)
        return slices + prompts

    def commit(self, part: Slice, *, num_drafts: int = 0, num_accepted: int = 0) -> None:
        """Note that a slice has been computed.

        Of `num_drafts` that it has tried the first `num_accepted` were right.
        """
        if num_drafts:
            self._drafts.note(part.sequence, num_drafts=num_drafts, num_accepted=num_accepted)
        sequence = part.sequence
        if self.cache is None or sequence.status is not Status.RUNNING:
            return
        if part.has_more_layers:
            sequence.num_layers += part.num_layers
            return
        sequence.num_layers = 0
        self.cache.commit(part, num_accepted=num_accepted)

    def note_step(self, slices: Sequence[Slice], seconds: float) -> None:
        """Learn from the time of a step, of which nothing is committed yet."""
        if not self._spec.max_drafts:
            return
        for part in slices:
            # Prompts take longer, and forwards at another depth are of another cost.
            if not self._is_decoding(part.sequence) or part.sequence.encoded.depth is not None:
                return
        self._drafts.note_step([part.max_drafts for part in slices], seconds)

    def pause_drafts(self) -> None:
        """Plan no drafts for a while, because a step with drafts has failed."""
        self._drafts.pause()

    def finish(self, sequence: TokenSequence, *, keep: bool = True) -> None:
        """Take a sequence out, running or waiting, and free its pages.

        With `keep` other sequences may use what it has computed. After a failed step `keep` must be
        False, because its pages may hold anything. A second call does nothing.
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
        """Return about half of a slice, for a device that has no memory for the whole slice.

        Return None for a slice that cannot be cut.
        """
        if part.num_continuations > 1:
            return Slice(part.sequence, num_continuations=part.num_continuations // 2)
        if part.num_continuations or self.cache is None:
            return None
        size = max(self._num_uncut(part.sequence), part.num_tokens // 2)
        if not 0 < size < part.num_tokens:
            return None
        return Slice(part.sequence, size)

    def num_tokens(self, part: Slice) -> int:
        """Return the number of tokens that a slice makes the model compute."""
        num_tokens = part.num_tokens
        for continuation in part.continuations:
            num_tokens += self._continuation_cost(part.sequence, continuation)
        return num_tokens

    def cost(self, part: Slice) -> int:
        """Return the share of a budget, in tokens, that a slice takes."""
        num_tokens = self.num_tokens(part)
        if part.num_layers:
            return -(-num_tokens * part.num_layers // self._num_layers(part.sequence))
        return num_tokens

    def _recover(self) -> None:
        """Double a budget that `shrink` has lowered, after enough steps without trouble."""
        self._calm_steps += 1
        if self._calm_steps > _CALM_STEPS and self.budget < self._spec.step_tokens:
            self.budget = min(self._spec.step_tokens, 2 * self.budget)
            self._calm_steps = 0

    def _age(self) -> None:
        """Count a step for all sequences that wait. Raise the class of those that waited long."""
        for sequence in self.waiting:
            sequence.num_waited += 1
            if sequence.num_waited % PATIENCE_STEPS == 0:
                sequence.rank = max(0, sequence.rank - 1)

    def _lowest_rank(self) -> int:
        """Return the rank of the lowest class whose sequences decode in this step."""
        # Looking for prompts takes time in each step, which most fleets, without bulk work, save.
        has_lowest = any(sequence.rank == _LOWEST_RANK for sequence in self.running)
        if not has_lowest or self._steps_stood_back == _STAND_BACK_STEPS:
            self._steps_stood_back = 0
            return _LOWEST_RANK
        if all(sequence.rank == _LOWEST_RANK for sequence in self._candidates()):
            self._steps_stood_back = 0
            return _LOWEST_RANK
        self._steps_stood_back += 1
        return _LOWEST_RANK - 1

    def _make_way(self) -> None:
        """Start the waiting sequences that are of a better class than a running one.

        For each of them the last running sequences in turn are paused until it has a row and pages.
        """
        for sequence in sorted(self.waiting, key=_turn):
            if not self._is_above(sequence):
                return
            cache = self.cache
            if cache is not None and cache.is_being_computed(sequence, self._unfinished()):
                # It gains by waiting: a running sequence computes the same tokens.
                continue
            while not self._start_in_batch(sequence):
                if not self._is_above(sequence):
                    return
                self.preempt(max(self.running, key=_turn))

    def _start_in_batch(self, sequence: TokenSequence) -> bool:
        """Let a sequence run. Return False where there is no row, or are no pages, for it."""
        if len(self.running) >= self._spec.max_batch:
            return False
        return self._start(sequence)

    def _is_above(self, sequence: TokenSequence) -> bool:
        """Return whether a sequence of a lower class is running."""
        return any(other.rank > sequence.rank for other in self.running)

    def _unfinished(self) -> list[TokenSequence]:
        """Return the running sequences with uncomputed prompts or continuations, by turn."""
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
        """Make room for a sequence's next token, if need be by pausing the last ones in turn.

        Return False if the sequence was the last itself, and is paused.
        """
        while sequence.status is Status.RUNNING:
            if self.cache is None or self.cache.grow(sequence):
                return True
            self.preempt(max(self.running, key=_turn))
        return False

    def _with_drafts(self, slices: list[Slice]) -> list[Slice]:
        """Return the slices of sequences that decode, with the drafts that pay and have room."""
        assert self.cache is not None, "drafts need stored keys and values"
        sequences = [part.sequence for part in slices]
        rooms: list[int] = []
        for sequence in sequences:
            # A step yields one token more than its drafts.
            num_missing = sequence.encoded.max_tokens - len(sequence.output_ids)
            room = max(0, num_missing - 1)
            # The draft is a part of the whole model, and no part of it at another depth.
            if sequence.encoded.depth is not None:
                room = 0
            rooms.append(room)

        counts = self._drafts.plan(sequences, rooms)
        if not any(counts):
            return slices
        drafting: list[Slice] = []
        for part, count in zip(slices, counts, strict=True):
            max_drafts = count
            if count and not self.cache.grow(part.sequence, num_drafts=count):
                max_drafts = min(count, self.cache.num_free_tokens(part.sequence))
            drafting.append(replace(part, max_drafts=max_drafts))
        return drafting

    def preempt(self, sequence: TokenSequence) -> None:
        """Pause a running sequence. It gives its pages back and is computed again later."""
        self._num_preempted += 1
        self.running.remove(sequence)
        sequence.num_layers = 0
        if self.cache is not None:
            self.cache.give_back(sequence, keep=True)
        sequence.status = Status.WAITING
        self.waiting.append(sequence)

    def _prompts(self, budget: int) -> list[Slice]:
        """Return shares for prompts and continuations.

        The oldest gets half the budget before any other starts, and then what the others leave.
        """
        candidates = self._candidates()
        if not candidates:
            return []
        oldest, *others = candidates
        slices: list[Slice] = []
        remaining = budget

        first_budget = budget
        if others:
            first_budget = max(1, budget // 2)
        first = self._share(oldest, first_budget, must=True)
        if first is not None:
            slices.append(first)
            remaining -= self.cost(first)
        else:
            # The oldest has no room to start, and younger ones must not take what it waits for.
            others = [sequence for sequence in others if sequence.status is Status.RUNNING]

        for sequence in sorted(others, key=_num_remaining):
            part = self._share(sequence, remaining, must=False)
            if part is not None:
                slices.append(part)
                remaining -= self.cost(part)

        if first is not None and remaining > 0:
            slices[0] = self._share(oldest, self.cost(first) + remaining, must=True) or first
        return slices

    def _candidates(self) -> list[TokenSequence]:
        """Return the sequences that may compute a prompt or continuations in this step.

        Running ones come first, by turn. Behind them come the waiting ones that have a row and gain
        nothing by waiting.
        """
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
        """Return a slice within the budget, or None if there is none now.

        With `must` the slice may exceed the budget where there is no smaller one.
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
        if num_uncut > budget or sequence.num_layers:
            return self._some_layers(sequence, num_uncut, budget, must=must)
        return Slice(sequence, max(1, min(sequence.num_remaining, budget)))

    def _num_uncut(self, sequence: TokenSequence) -> int:
        """Return how many of a sequence's next tokens must be computed together."""
        if not self._spec.num_layers:
            return 0
        return max(0, len(sequence.encoded.prompt_ids) - sequence.num_computed)

    def _num_layers(self, sequence: TokenSequence) -> int:
        """Return the number of layers of the model at the sequence's depth."""
        num_layers = sequence.encoded.num_layers
        return self._spec.num_layers if num_layers is None else num_layers

    def _some_layers(
        self, sequence: TokenSequence, num_tokens: int, budget: int, *, must: bool
    ) -> Slice | None:
        """Return a slice of these tokens with as many of the next layers as the budget allows.

        It has one at least with `must`. Return None without.
        """
        total = self._num_layers(sequence)
        num_left = total - sequence.num_layers
        num_layers = min(num_left, budget * total // num_tokens)
        if num_layers == 0:
            if not must:
                return None
            num_layers = 1
        return Slice(
            sequence,
            num_tokens,
            num_layers=num_layers,
            has_more_layers=num_layers < num_left,
        )

    def _start(self, sequence: TokenSequence) -> bool:
        """Let a waiting sequence run. Return False where there are no pages for it."""
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
        remaining = budget
        for continuation in sequence.encoded.continuations[len(sequence.scores) :]:
            remaining -= self._continuation_cost(sequence, continuation)
            if count and remaining < 0:
                break
            count += 1
        return Slice(sequence, num_continuations=count)

    def _continuation_cost(self, sequence: TokenSequence, continuation: tuple[int, ...]) -> int:
        """Return the number of tokens that are computed for one continuation."""
        if self.cache is not None:
            return len(continuation)
        # Without keys and values the context is computed again: once, or by the strict method once
        # for each token.
        num_rows = 1
        if sequence.encoded.method == "strict":
            num_rows = len(continuation)
        return num_rows * (len(sequence.encoded.prompt_ids) + len(continuation))


def _turn(sequence: TokenSequence) -> tuple[int, int]:
    """Return the sort key of a sequence's turn: the better class first, then the older one."""
    return sequence.rank, sequence.arrival


def _num_remaining(sequence: TokenSequence) -> int:
    return sequence.num_remaining
