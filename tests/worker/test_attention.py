"""Attention over pages, with and without a window, against one query at a time over a plain list of
keys."""

import math

import pytest
import torch
from torch import Tensor

from shared.messages import Sampling
from worker.engine.sequence import Encoded, Slice, TokenSequence
from worker.kv.attention import attend, length_groups
from worker.kv.batch import BatchBuilder
from worker.kv.store import KVShape, KVStore

PAGE = 4
HEADS = 4
KV_HEADS = 2
SIZE = 6
SLOTS = 2
SCALE = 0.7
Pair = tuple[Tensor, Tensor]


class Case:
    """Sequences at every stage in one step: rows that decode, a prompt from its start and from its
    middle, and tails.

    `sees` are, for each token of the step in flat order, the (key, value) pairs behind and at it,
    by position.
    """

    def __init__(self, slot: int, *, is_tiled: bool = False) -> None:
        torch.manual_seed(3)
        self.store = KVStore(
            KVShape(SLOTS, KV_HEADS, SIZE), 40, PAGE, torch.float32, torch.device("cpu")
        )
        self._free = iter(torch.randperm(40).tolist())
        self._slot = slot
        stages = [(7, 1), (0, 6), (5, 9), (1, 1), (16, 1), (8, 1)]
        self._known: list[list[Pair]] = []
        self.slices = [self._slice(computed, count) for computed, count in stages]
        self.slices.append(
            self._scoring(context=9, continuations=((1, 2, 3, 4, 5), (6,), (7, 8, 9)))
        )
        self.batch = BatchBuilder(
            PAGE, torch.device("cpu"), is_prefix=False, is_tiled=is_tiled
        ).build(self.slices)
        self.query = torch.randn(len(self.batch.ids), HEADS, SIZE)
        self.key, self.value = torch.randn(2, len(self.batch.ids), KV_HEADS, SIZE)

    def _slice(self, computed: int, count: int) -> Slice:
        return Slice(self._sequence(computed, computed + count), count)

    def _scoring(self, context: int, continuations: tuple[tuple[int, ...], ...]) -> Slice:
        sequence = self._sequence(context, context)
        sequence.encoded = Encoded(sequence.encoded.prompt_ids, continuations=continuations)
        sequence.sampling = None
        return Slice(sequence, num_continuations=len(continuations))

    def _sequence(self, computed: int, length: int) -> TokenSequence:
        """A sequence whose first `computed` tokens are in the store, in pages all over it."""
        pages = [next(self._free) for _ in range(-(-length // PAGE))]
        keys, values = torch.randn(2, computed, KV_HEADS, SIZE)
        rows = torch.tensor(
            [pages[at // PAGE] * PAGE + at % PAGE for at in range(computed)], dtype=torch.long
        )
        self.store.write(self._slot, rows, keys, values)
        self._known.append(list(zip(keys, values, strict=True)))
        prompt = tuple(range(1, length + 1))
        return TokenSequence(
            str(length), Encoded(prompt), Sampling(1, 0), pages=pages, num_computed=computed
        )

    def sees(self) -> list[list[Pair]]:
        fresh = list(zip(self.key, self.value, strict=True))
        flat: list[list[Pair]] = []
        decoding = [number for number, part in enumerate(self.slices) if part.num_tokens == 1]
        for group in length_groups(
            [self.slices[number].sequence.num_computed + 1 for number in decoding]
        ):
            for at in group:
                flat.append([*self._known[decoding[at]], fresh[len(flat)]])
        for number, part in enumerate(self.slices):
            known = self._known[number]
            start = len(flat)
            if part.num_tokens > 1:
                flat += [
                    [*known, *fresh[start : start + step + 1]] for step in range(part.num_tokens)
                ]
            elif part.num_continuations:
                flat.append(known)  # the context's last token once more
                for tail in part.continuations:
                    start = len(flat)
                    flat += [
                        [*known, *fresh[start : start + step + 1]] for step in range(len(tail) - 1)
                    ]
        return flat


def one_query(query: Tensor, seen: list[Pair]) -> Tensor:
    """[heads, size] for one query of that shape; two query heads share a key head."""
    out = torch.zeros(HEADS, SIZE)
    for head in range(HEADS):
        group = head // (HEADS // KV_HEADS)
        weights = [math.exp(float(query[head] @ key[group]) * SCALE) for key, _ in seen]
        for weight, (_, value) in zip(weights, seen, strict=True):
            out[head] += weight / sum(weights) * value[group]
    return out


@pytest.mark.parametrize("is_tiled", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 8, 40])
@pytest.mark.parametrize("slot", range(SLOTS))
def test_every_stage_in_one_step(slot: int, window: int | None, is_tiled: bool) -> None:
    """B59, X17: decoding rows of mixed lengths, prompts from the start and the middle, and
    continuations, together."""
    case = Case(slot, is_tiled=is_tiled)
    got = attend(
        case.batch.plan,
        case.store,
        slot,
        query=case.query,
        key=case.key,
        value=case.value,
        scale=SCALE,
        window=window,
    )
    sees = case.sees()
    assert len(sees) == len(got)
    assert [len(seen) - 1 for seen in sees] == case.batch.plan.positions.tolist()
    for place, seen in enumerate(sees):
        expected = one_query(case.query[place], seen if window is None else seen[-window:])
        torch.testing.assert_close(got[place], expected, atol=1e-5, rtol=0.0)


def test_a_window_of_one_plan_is_made_once() -> None:
    """Layers of a step share its masks, each window its own."""
    span = Case(0).batch.plan.spans[-1]
    assert span.bias(3, torch.float32) is span.bias(3, torch.float32)
    assert not torch.equal(span.bias(3, torch.float32), span.bias(2, torch.float32))
