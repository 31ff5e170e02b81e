"""A runner whose keys and values are histories: every place of the store remembers which tokens led
to it.

It checks, before it answers, that each sequence finds exactly its own history in its pages -
whatever was shared, copied, evicted, preempted or computed in parts. Answers are a pure function of
the tokens, so that any schedule must give the same.
"""

import zlib
from collections.abc import Sequence
from typing import Literal

from shared.errors import FleetError
from shared.messages import ContinuationScore, Generate, Score
from worker.runners.base import RunnerSpec
from worker.sequence import Encoded, Pooled, Sampled, Scores, Slice, StepResult, TokenSequence

VOCABULARY = 50
QueuePosition = tuple[tuple[int, ...], int]


def next_token(tokens: Sequence[int], seed: int) -> int:
    return 1 + zlib.crc32(repr((tuple(tokens), seed)).encode()) % VOCABULARY


def answer(prompt: tuple[int, ...], max_tokens: int, seed: int) -> list[int]:
    """What the ghost says to a prompt."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(next_token(tokens, seed))
    return tokens[len(prompt) :]


def score(context: tuple[int, ...], tail: tuple[int, ...]) -> float:
    return -float(next_token((*context, *tail), 0))


class Ghost:
    eos_ids: frozenset[int] = frozenset()

    def __init__(
        self,
        *,
        num_pages: int,
        page_size: int = 4,
        max_batch: int = 4,
        step_tokens: int = 16,
        reuse: Literal["prefix", "prompt", "none"] = "prefix",
        is_prefix_lm: bool = False,
    ) -> None:
        self.spec = RunnerSpec(
            "ghost",
            "ghost",
            "ghost",
            10_000,
            max_batch,
            step_tokens=step_tokens,
            num_pages=num_pages,
            page_size=page_size,
            reuse=reuse,
            chunk_prefill=not is_prefix_lm,
        )
        self.is_prefix_lm = is_prefix_lm
        self.places: dict[int, QueuePosition] = {}
        self.steps: list[list[tuple[str, int, int]]] = []
        self.num_computed = 0

    def encode(self, task: Generate | Score) -> Encoded:
        raise NotImplementedError

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(f"{token} " for token in token_ids)

    def release(self, sequence: TokenSequence) -> None:
        return

    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        self.steps.append(
            [(part.sequence.key, part.num_tokens, part.num_continuations) for part in slices]
        )
        self._copy(slices)
        for part in slices:
            self._write(part)
        for part in slices:
            self._check(part)
        return [self._answer(part) for part in slices]

    def _copy(self, slices: Sequence[Slice]) -> None:
        size = self.spec.page_size
        found = dict(self.places)
        for part in slices:
            source = part.sequence.source_page
            if source is not None:
                target = part.sequence.pages[part.sequence.num_computed // size]
                for offset in range(size):
                    if source * size + offset in found:
                        self.places[target * size + offset] = found[source * size + offset]

    def _write(self, part: Slice) -> None:
        sequence, first = part.sequence, part.sequence.num_computed
        assert part.num_tokens <= sequence.num_remaining
        prompt = len(sequence.encoded.prompt_ids)
        assert not self.is_prefix_lm or first or not part.num_tokens or part.num_tokens >= prompt, (
            "prompt was cut"
        )
        self.num_computed += part.num_tokens
        for at in range(first, first + part.num_tokens):
            self.places[self._row(sequence, at)] = self._history(sequence, at)

    def _check(self, part: Slice) -> None:
        for at in range(part.sequence.num_computed + part.num_tokens):
            assert self.places.get(self._row(part.sequence, at)) == self._history(
                part.sequence, at
            ), (part, at)

    def _answer(self, part: Slice) -> StepResult:
        sequence = part.sequence
        if part.num_continuations:
            context = sequence.encoded.prompt_ids
            assert sequence.num_computed == len(context)
            return Scores(
                tuple(
                    ContinuationScore(score(context, tail), len(tail), False)
                    for tail in part.continuations
                )
            )
        if sequence.encoded.is_pooled:
            first = sequence.num_computed
            return Pooled(
                [float(sum(sequence.tokens(first, first + part.num_tokens)))], part.num_tokens
            )
        if not part.samples:
            return None
        assert sequence.sampling is not None
        return Sampled(next_token(sequence.token_ids, sequence.sampling.seed))

    def _row(self, sequence: TokenSequence, at: int) -> int:
        size = self.spec.page_size
        return sequence.pages[at // size] * size + at % size

    def _history(self, sequence: TokenSequence, at: int) -> QueuePosition:
        """What the keys and values at a position depend on: all before it, in a prefix-LM the whole
        prompt at least."""
        seen = max(at + 1, len(sequence.encoded.prompt_ids)) if self.is_prefix_lm else at + 1
        return tuple(sequence.token_ids[:seen]), at
