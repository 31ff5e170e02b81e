"""However sequences are cut into steps, and whoever is beside them: the same attention, to the last
bit."""

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from shared.messages import Sampling
from worker.engine.sequence import Encoded, Slice, TokenSequence
from worker.kv.attention import attend
from worker.kv.batch import BatchBuilder
from worker.kv.store import KVShape, KVStore

PAGE = 16
HEADS = 8
KV_HEADS = 4
SIZE = 32
PAGES_EACH = 20
CPU = torch.device("cpu")
BOOKS = [(1, 40), (2, 30), (31, 60), (32, 70), (33, 34), (70, 130), (200, 301), (97, 98)]
"""Of each sequence the tokens of its prompt, and all its tokens."""

Step = list[tuple[int, int]]
"""Which sequences compute how many tokens."""


class Library:
    """Sequences of `BOOKS`. A token's id is its place in the tables of queries, keys and values."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self._offsets = torch.tensor([0, *(length for _, length in BOOKS)]).cumsum(0).tolist()
        self.query = torch.randn(self._offsets[-1], HEADS, SIZE)
        self.key, self.value = torch.randn(2, self._offsets[-1], KV_HEADS, SIZE)

    def read(self, steps: list[Step], *, is_prefix: bool, window: int | None = None) -> Tensor:
        """What every token [tokens, heads, size] saw in these steps; those that were not computed
        saw zeros."""
        store = KVStore(
            KVShape(1, KV_HEADS, SIZE), len(BOOKS) * PAGES_EACH, PAGE, torch.float32, CPU
        )
        sequences = [self._sequence(number) for number in range(len(BOOKS))]
        seen = torch.zeros_like(self.query)
        for step in steps:
            slices = [Slice(sequences[number], count) for number, count in step]
            batch = BatchBuilder(PAGE, CPU, is_prefix, is_tiled=True).build(slices)
            fresh = [table[batch.ids] for table in (self.query, self.key, self.value)]
            seen[batch.ids] = attend(
                batch.plan,
                store,
                0,
                query=fresh[0],
                key=fresh[1],
                value=fresh[2],
                scale=SIZE**-0.5,
                window=window,
            )
            for part in slices:
                part.sequence.num_computed += part.num_tokens
        return seen

    def _sequence(self, number: int) -> TokenSequence:
        num_prompt, length = BOOKS[number]
        ids = range(self._offsets[number], self._offsets[number + 1])
        pages = list(range(number * PAGES_EACH, number * PAGES_EACH + -(-length // PAGE)))
        encoded = Encoded(tuple(ids[:num_prompt]))
        return TokenSequence(
            str(number), encoded, Sampling(300, 0), output_ids=list(ids[num_prompt:]), pages=pages
        )


def one_by_one() -> Iterator[Step]:
    """Each sequence alone: its prompt whole, and then token by token."""
    for number, (num_prompt, length) in enumerate(BOOKS):
        yield [(number, num_prompt)]
        yield from ([(number, 1)] for _ in range(length - num_prompt))


def together(seed: int, *, may_cut: bool) -> Iterator[Step]:
    """Sequences beside others, now and then: prompts in parts if they may be cut, and responses in
    runs."""
    draw = random.Random(seed)
    computed = [0] * len(BOOKS)
    while any(done < length for done, (_, length) in zip(computed, BOOKS, strict=True)):
        step = []
        for number in draw.sample(range(len(BOOKS)), draw.randint(1, len(BOOKS))):
            num_prompt, length = BOOKS[number]
            least = num_prompt if computed[number] == 0 and not may_cut else 1
            if computed[number] < length:
                left = length - computed[number]
                count = min(left, max(least, draw.choice([1, 1, 2, 7, 24, 50, 300])))
                computed[number] += count
                step.append((number, count))
        if step:
            yield step


@pytest.mark.parametrize("window", [None, 5, 40])
@pytest.mark.parametrize("is_prefix", [False, True])
def test_cuts_and_company_change_no_bit(is_prefix: bool, window: int | None) -> None:
    """P3: what int8 activations are rounded from is the same in every path: batched, chunked,
    resumed."""
    library = Library()
    alone = library.read(list(one_by_one()), is_prefix=is_prefix, window=window)
    for seed in range(4):
        beside = library.read(
            list(together(seed, may_cut=not is_prefix)), is_prefix=is_prefix, window=window
        )
        assert torch.equal(beside, alone)
