"""Attention is the same to the last bit, in whatever steps and company sequences are computed."""

import math
import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from shared.messages import Sampling
from worker.engine.sequence import Encoded, Slice, TokenSequence
from worker.kv.attention import attend
from worker.kv.batch import BatchBuilder
from worker.kv.paged_native import new_rows
from worker.kv.store import KVShape, KVStore
from worker.native.library import library

PAGE = 16
HEADS = 8
KV_HEADS = 4
SIZE = 32
PAGES_EACH = 20
CPU = torch.device("cpu")
BOOKS = [(1, 40), (2, 30), (31, 60), (32, 70), (33, 34), (70, 130), (200, 301), (97, 98)]
"""The number of prompt tokens and of all tokens of each sequence."""

Step = list[tuple[int, int]]
"""Numbers of sequences, with how many tokens each computes."""


class Library:
    """Sequences of `BOOKS`. A token's id is its row in the tables of queries, keys and values."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self._offsets = [0]
        for _, length in BOOKS:
            self._offsets.append(self._offsets[-1] + length)
        self.query = torch.randn(self._offsets[-1], HEADS, SIZE)
        self.key, self.value = torch.randn(2, self._offsets[-1], KV_HEADS, SIZE)

    def read(
        self,
        steps: list[Step],
        *,
        is_prefix: bool,
        window: int | None = None,
        is_native: bool = False,
        kv_dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return the attention [tokens, heads, size] of every token after these steps.

        Tokens that were not computed have zeros.
        """
        shape = KVShape(1, KV_HEADS, SIZE)
        store = KVStore(shape, len(BOOKS) * PAGES_EACH, PAGE, kv_dtype, CPU)
        sequences = [self._sequence(number) for number in range(len(BOOKS))]
        seen = torch.zeros_like(self.query)
        for step in steps:
            slices = [Slice(sequences[number], count) for number, count in step]
            native = new_rows() if is_native else None
            builder = BatchBuilder(PAGE, CPU, is_prefix, native=native, is_tiled=not is_native)
            batch = builder.build(slices)
            seen[batch.ids] = attend(
                batch.plan,
                store,
                0,
                query=self.query[batch.ids],
                key=self.key[batch.ids],
                value=self.value[batch.ids],
                scale=SIZE**-0.5,
                window=window,
            )
            for part in slices:
                part.sequence.num_computed += part.num_tokens
        return seen

    def _sequence(self, number: int) -> TokenSequence:
        num_prompt, length = BOOKS[number]
        ids = range(self._offsets[number], self._offsets[number + 1])
        first_page = number * PAGES_EACH
        num_pages = math.ceil(length / PAGE)
        pages = list(range(first_page, first_page + num_pages))
        encoded = Encoded(tuple(ids[:num_prompt]))
        return TokenSequence(
            str(number), encoded, Sampling(300, 0), output_ids=list(ids[num_prompt:]), pages=pages
        )


def one_by_one() -> Iterator[Step]:
    """Compute each sequence alone: its whole prompt, and then token by token."""
    for number, (num_prompt, length) in enumerate(BOOKS):
        yield [(number, num_prompt)]
        for _ in range(length - num_prompt):
            yield [(number, 1)]


def together(seed: int, *, may_cut: bool) -> Iterator[Step]:
    """Compute random sequences beside each other in each step, in runs of random length.

    A prompt is computed whole unless it may be cut.
    """
    draw = random.Random(seed)
    num_left = [length for _, length in BOOKS]
    while sum(num_left) > 0:
        step = []
        for number in draw.sample(range(len(BOOKS)), draw.randint(1, len(BOOKS))):
            if num_left[number] == 0:
                continue
            count = draw.choice([1, 1, 2, 7, 24, 50, 300])
            num_prompt, length = BOOKS[number]
            is_at_start = num_left[number] == length
            if is_at_start and not may_cut:
                count = max(count, num_prompt)
            count = min(count, num_left[number])
            num_left[number] -= count
            step.append((number, count))
        if step:
            yield step


@pytest.mark.parametrize("window", [None, 5, 40])
@pytest.mark.parametrize("is_prefix", [False, True])
@pytest.mark.parametrize("is_native", [False, True])
@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_cuts_and_company_change_no_bit(
    kv_dtype: torch.dtype, is_native: bool, is_prefix: bool, window: int | None
) -> None:
    """P3: Attention is bit for bit the same in batches, in chunks and after a pause.

    int8 activations, and keys and values in fewer bits, are rounded from it, so that one other bit
    soon changes a token.
    """
    if is_native and library() is None:
        pytest.skip("no kernels")
    books = Library()

    def read(steps: list[Step]) -> Tensor:
        return books.read(
            steps, is_prefix=is_prefix, window=window, is_native=is_native, kv_dtype=kv_dtype
        )

    alone = read(list(one_by_one()))
    for seed in range(4):
        steps = list(together(seed, may_cut=not is_prefix))
        assert torch.equal(read(steps), alone)
