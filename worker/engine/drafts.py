"""The number of tokens that a step drafts for each sequence. Plain Python over numbers.

A part of a network drafts tokens one by one, and the whole network verifies them in one forward of
more rows. This pays where drafts are mostly right and where a forward of more rows takes hardly
longer, so with few sequences. The policy expects of each sequence that as many drafts will be right
as of its last ones, and chooses the numbers of drafts with the most tokens per cost.

What a draft costs depends on more than the part's size: a small network takes as long as calling
it, and rows of a network that lies in the caches are not free. So the policy learns it from the
time of steps with drafts and of steps without.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from worker.engine.sequence import TokenSequence

_FREE_ROWS = 6
"""The rows of a forward that cost as much as one row, because weights are read once for them."""
_COST_PER_ROW = 0.2
"""The cost of every further row, as a share of a forward of one row.

On AVX-512 forwards of 1 and 16 rows took 17.3 and 53.4 ms in fp32, 7.3 and 28.9 in bf16
(docs/benchmarks.md).
"""
_LEAST_GAIN = 1.1
"""The gain in tokens per cost from which a step drafts."""

_MEMORY = 0.1
"""The weight of the newest draft in a sequence's acceptance."""
_MODEL_MEMORY = 0.02
"""Its weight in the acceptance of the model, from which new sequences begin."""
_FIRST_ACCEPTANCE = 0.8
"""The acceptance of a model that has drafted nothing yet."""
_PROBE_STEPS = 64
"""Steps without drafts after which a sequence tries one draft, because texts change."""
_PAUSE_STEPS = 256
"""Steps without drafts after a step with drafts has failed."""

_NUM_PLAIN = 3
"""Steps without drafts that show together how long one takes."""
_PLAIN_PERIOD = 128
"""Steps with drafts between them."""
_FIRST_PERIOD = 4
"""Steps with drafts before the first of them."""
_LARGEST_MOVE = 0.1
"""The largest share by which one step changes what is known of costs: some steps are disturbed."""
_LEAST_COST = 0.1
_COST_DIGITS = 1
"""The digits of a draft's cost. With more, every step would ask something new."""


@dataclass
class _Timing:
    """The known costs of steps of a number of sequences.

    A draft costs `draft_cost` of a forward. A step without drafts takes `plain_s` seconds, as
    `num_plain` of them have shown. The next `num_drafting` steps may draft, and `_NUM_PLAIN` behind
    them do not.
    """

    draft_cost: float
    plain_s: float = 0.0
    num_plain: int = 0
    num_drafting: int = _FIRST_PERIOD

    def may_draft(self) -> bool:
        """Return whether the next step may draft. Steps that may not are counted by this call."""
        if self.num_drafting > 0:
            return True
        self.num_drafting -= 1
        if self.num_drafting == -_NUM_PLAIN:
            self.num_drafting = _PLAIN_PERIOD
        return False

    def note_plain(self, seconds: float) -> None:
        """Learn from a step without drafts."""
        if self.num_plain == 0:
            self.plain_s = seconds
        elif self.num_plain < _NUM_PLAIN:
            # Steps are disturbed to take longer, and never less.
            self.plain_s = min(self.plain_s, seconds)
        else:
            self.plain_s = moved(self.plain_s, seconds)
        self.num_plain += 1


class DraftPolicy:
    """The policy of one model: up to `max_drafts` a sequence, each for `cost` of a forward at first.

    No step decodes more than `max_batch` sequences.
    """

    def __init__(self, max_drafts: int, cost: float, *, max_batch: int) -> None:
        self._max_drafts = max_drafts
        self._cost = cost
        self._most_sequences = 0
        while self._most_sequences < max_batch and self._may_pay(self._most_sequences + 1):
            self._most_sequences += 1
        self._acceptance = _FIRST_ACCEPTANCE
        self._num_paused = 0
        # By the number of sequences.
        self._timings: dict[int, _Timing] = {}

    def plan(self, sequences: Sequence[TokenSequence], rooms: Sequence[int]) -> list[int]:
        """Return how many tokens to draft for each sequence that decodes in the next step.

        `rooms` are the largest numbers for which each has room.
        """
        if not 0 < len(sequences) <= self._most_sequences:
            return [0] * len(sequences)
        if self._num_paused:
            self._num_paused -= 1
            return [0] * len(sequences)

        timing = self._timing(len(sequences))
        if not timing.may_draft():
            return [0] * len(sequences)

        percents: list[int] = []
        bounds: list[int] = []
        for sequence, room in zip(sequences, rooms, strict=True):
            percents.append(round(100 * self._expected(sequence)))
            bounds.append(min(room, self._max_drafts))
        cost = round(timing.draft_cost, _COST_DIGITS)
        counts = list(best_counts(tuple(percents), tuple(bounds), cost))

        for index, sequence in enumerate(sequences):
            if not counts[index] and sequence.num_undrafted >= _PROBE_STEPS:
                counts[index] = min(1, bounds[index])
            sequence.num_undrafted = 0 if counts[index] else sequence.num_undrafted + 1
        if any(counts):
            timing.num_drafting -= 1
        return counts

    def note_step(self, counts: Sequence[int], seconds: float) -> None:
        """Learn from the time of a step that decoded a sequence for each of `counts`.

        They are the numbers of drafts.
        """
        timing = self._timing(len(counts))
        if not any(counts):
            timing.note_plain(seconds)
        elif timing.num_plain:
            # What is left of the step's cost when its rows are verified.
            num_rows = len(counts)
            cost = seconds / timing.plain_s * cost_of_rows(num_rows)
            cost -= cost_of_rows(num_rows + sum(counts))
            seen = max(_LEAST_COST, cost / cost_of_drafts(tuple(counts)))
            timing.draft_cost = moved(timing.draft_cost, seen)

    def note(self, sequence: TokenSequence, *, num_drafts: int, num_accepted: int) -> None:
        """Learn from the drafts of a step, of which the first `num_accepted` were right.

        The one behind them was wrong, and nothing is known of the others.
        """
        acceptance = self._expected(sequence)
        outcomes = [1.0] * num_accepted
        if num_accepted < num_drafts:
            outcomes.append(0.0)
        for outcome in outcomes:
            acceptance += _MEMORY * (outcome - acceptance)
            self._acceptance += _MODEL_MEMORY * (outcome - self._acceptance)
        sequence.acceptance = acceptance

    def pause(self) -> None:
        """Draft nothing for a while, because a step with drafts has failed."""
        self._num_paused = _PAUSE_STEPS

    def _timing(self, num_sequences: int) -> "_Timing":
        if num_sequences not in self._timings:
            self._timings[num_sequences] = _Timing(self._cost)
        return self._timings[num_sequences]

    def _may_pay(self, num_sequences: int) -> bool:
        """Return whether drafts gain enough beside so many sequences if all of them are right."""
        percents = (100,) * num_sequences
        for num_drafts in range(1, self._max_drafts + 1):
            if gain((num_drafts,) * num_sequences, percents, self._cost) >= _LEAST_GAIN:
                return True
        return False

    def _expected(self, sequence: TokenSequence) -> float:
        """Return the probability that a draft of the sequence is right."""
        if sequence.acceptance is None:
            return self._acceptance
        return sequence.acceptance


# Acceptances change slowly, so most steps ask what an earlier one has asked.
@lru_cache(maxsize=4096)
def best_counts(
    percents: tuple[int, ...], rooms: tuple[int, ...], draft_cost: float
) -> tuple[int, ...]:
    """Return the number of drafts of each sequence that gives the most tokens per cost.

    `percents` are the probabilities, in percent, that a draft of each sequence is right, and
    `rooms` the largest numbers. Return zeros where drafts gain too little.
    """
    best = (0,) * len(rooms)
    best_gain = _LEAST_GAIN
    for num_drafts in range(1, max(rooms) + 1):
        counts: list[int] = []
        for percent, room in zip(percents, rooms, strict=True):
            count = min(num_drafts, room)
            # A sequence whose drafts would not even pay alone drafts nothing beside others.
            if gain((count,), (percent,), draft_cost) < _LEAST_GAIN:
                count = 0
            counts.append(count)
        expected = gain(tuple(counts), percents, draft_cost)
        if expected > best_gain:
            best = tuple(counts)
            best_gain = expected
    return best


def gain(counts: tuple[int, ...], percents: tuple[int, ...], draft_cost: float) -> float:
    """Return the tokens per cost of a step with these numbers of drafts, by those without drafts.

    `percents` are the probabilities, in percent, that a draft of each sequence is right.
    """
    num_rows = len(counts)
    cost = cost_of_rows(num_rows + sum(counts)) + draft_cost * cost_of_drafts(counts)
    tokens = 0.0
    for count, percent in zip(counts, percents, strict=True):
        # One token, and each draft up to the first wrong one.
        for number in range(count + 1):
            tokens += (percent / 100) ** number
    return (tokens / cost) / (num_rows / cost_of_rows(num_rows))


def cost_of_drafts(counts: tuple[int, ...]) -> float:
    """Return the cost of drafting these numbers of tokens, in drafts of one row."""
    cost = 0.0
    for number in range(1, max(counts) + 1):
        cost += cost_of_rows(sum(count >= number for count in counts))
    return cost


def moved(known: float, seen: float) -> float:
    """Return what is known after another observation, by at most a share of what was known."""
    most = _LARGEST_MOVE * known
    return known + min(most, max(-most, seen - known))


def cost_of_rows(num_rows: int) -> float:
    """Return the cost of a forward of few rows, in forwards of one row."""
    return 1.0 + _COST_PER_ROW * max(0, num_rows - _FREE_ROWS)
