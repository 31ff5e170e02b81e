"""Attention over pages equals one query at a time over a plain list of keys.

This holds with and without a window, and for keys and values that are stored in fewer bits, with
which a token never sees the unrounded ones.
"""

import math

import pytest
import torch
from torch import Tensor

from shared.messages import Sampling
from worker.engine.sequence import Encoded, Slice, TokenSequence
from worker.kv.attention import attend, length_groups
from worker.kv.batch import BatchBuilder
from worker.kv.paged_native import new_rows
from worker.kv.store import KVShape, KVStore
from worker.native.library import library

PAGE = 4
HEADS = 4
KV_HEADS = 2
SIZE = 16
SLOTS = 2
SCALE = 0.4
Pair = tuple[Tensor, Tensor]


class Case:
    """A step with sequences at every stage.

    Rows decode, prompts are computed from their start and from their middle, and continuations are
    scored.
    """

    def __init__(
        self,
        slot: int,
        *,
        is_tiled: bool = False,
        is_native: bool = False,
        kv_dtype: torch.dtype = torch.float32,
    ) -> None:
        torch.manual_seed(3)
        device = torch.device("cpu")
        shape = KVShape(SLOTS, KV_HEADS, SIZE)
        self.store = KVStore(shape, 40, page_size=PAGE, dtype=kv_dtype, device=device)
        self._kv_dtype = kv_dtype
        self._free_pages = torch.randperm(40).tolist()
        self._slot = slot
        self._is_native = is_native

        # The (key, value) pairs of each sequence that are in the store, by position.
        self._stored: list[list[Pair]] = []
        self.slices = [
            self._tokens(computed=7, count=1),
            self._tokens(computed=0, count=6),
            self._tokens(computed=5, count=9),
            self._tokens(computed=1, count=1),
            self._tokens(computed=16, count=1),
            self._tokens(computed=8, count=1),
            self._scoring(context=9, continuations=((1, 2, 3, 4, 5), (6,), (7, 8, 9))),
        ]
        native = new_rows() if is_native else None
        builder = BatchBuilder(PAGE, device, is_prefix=False, native=native, is_tiled=is_tiled)
        self.batch = builder.build(self.slices)
        num_tokens = len(self.batch.ids)
        self.query = torch.randn(num_tokens, HEADS, SIZE)
        self.key, self.value = torch.randn(2, num_tokens, KV_HEADS, SIZE)

    def _tokens(self, *, computed: int, count: int) -> Slice:
        return Slice(self._sequence(computed, computed + count), count)

    def _scoring(self, *, context: int, continuations: tuple[tuple[int, ...], ...]) -> Slice:
        sequence = self._sequence(context, context)
        sequence.encoded = Encoded(sequence.encoded.prompt_ids, continuations=continuations)
        sequence.sampling = None
        return Slice(sequence, num_continuations=len(continuations))

    def _sequence(self, computed: int, length: int) -> TokenSequence:
        """Return a sequence whose first `computed` tokens are in the store, in pages all over
        it."""
        num_pages = -(-length // PAGE)
        pages = self._free_pages[:num_pages]
        del self._free_pages[:num_pages]

        keys, values = torch.randn(2, computed, KV_HEADS, SIZE)
        rows = torch.zeros(computed, dtype=torch.long)
        for position in range(computed):
            rows[position] = pages[position // PAGE] * PAGE + position % PAGE
        self.store.write(self._slot, rows, keys, values)
        self._stored.append(self._pairs(keys, values))

        prompt = tuple(range(1, length + 1))
        return TokenSequence(
            str(length), Encoded(prompt), Sampling(1, 0), pages=pages, num_computed=computed
        )

    def _pairs(self, keys: Tensor, values: Tensor) -> list[Pair]:
        """Return the (key, value) pairs of tokens, rounded as the store keeps them."""
        return list(
            zip(rounded(keys, self._kv_dtype), rounded(values, self._kv_dtype), strict=True)
        )

    def visible(self) -> list[list[Pair]]:
        """Return the (key, value) pairs that each token of the step sees without a window.

        The tokens are in flat order. A token's pairs are those before it and its own, by position.
        """
        fresh = self._pairs(self.key, self.value)
        flat: list[list[Pair]] = []

        # Rows that decode come first, without a kernel in groups of like length.
        decoding: list[int] = []
        lengths: list[int] = []
        for number, part in enumerate(self.slices):
            if part.num_tokens == 1:
                decoding.append(number)
                lengths.append(part.sequence.num_computed + 1)
        groups = length_groups(lengths)
        if self._is_native:
            groups = [list(range(len(lengths)))]
        for group in groups:
            for index in group:
                stored = self._stored[decoding[index]]
                flat.append([*stored, fresh[len(flat)]])

        for number, part in enumerate(self.slices):
            stored = self._stored[number]
            if part.num_tokens > 1:
                flat += causal(stored, fresh, start=len(flat), count=part.num_tokens)
            elif part.num_continuations:
                # The context's last token once more: it predicts the first of a continuation.
                flat.append(stored)
                for continuation in part.continuations:
                    # The last token of a continuation predicts nothing.
                    count = len(continuation) - 1
                    flat += causal(stored, fresh, start=len(flat), count=count)
        return flat


def rounded(heads: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype != torch.int8:
        return heads.to(dtype).float()
    scale = heads.abs().amax(-1, keepdim=True) / 127
    return (heads / scale).round() * scale


def causal(stored: list[Pair], fresh: list[Pair], *, start: int, count: int) -> list[list[Pair]]:
    """Return what `count` tokens from `start` on see: the stored ones, and each other up to
    themselves."""
    visible: list[list[Pair]] = []
    for stop in range(start + 1, start + count + 1):
        visible.append([*stored, *fresh[start:stop]])
    return visible


def one_query(query: Tensor, pairs: list[Pair]) -> Tensor:
    """Return the attention [heads, size] of one query of that shape.

    Two query heads share a key head.
    """
    out = torch.zeros(HEADS, SIZE)
    for head in range(HEADS):
        kv_head = head // (HEADS // KV_HEADS)
        weights: list[float] = []
        for key, _ in pairs:
            weights.append(math.exp(float(query[head] @ key[kv_head]) * SCALE))
        total = sum(weights)
        for weight, (_, value) in zip(weights, pairs, strict=True):
            out[head] += weight / total * value[kv_head]
    return out


@pytest.mark.parametrize("kind", ["native", "tiled", "gathered"])
@pytest.mark.parametrize("window", [None, 1, 3, 8, 40])
@pytest.mark.parametrize("slot", range(SLOTS))
@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_every_stage_in_one_step(
    kv_dtype: torch.dtype, slot: int, window: int | None, kind: str
) -> None:
    """Sequences at every stage are computed together, each as if alone (B59, X17)."""
    if kind == "native" and library() is None:
        pytest.skip("no kernels")
    case = Case(slot, is_tiled=kind == "tiled", is_native=kind == "native", kv_dtype=kv_dtype)
    outputs = attend(
        case.batch.plan,
        case.store,
        slot,
        query=case.query,
        key=case.key,
        value=case.value,
        scale=SCALE,
        window=window,
    )

    visible = case.visible()
    assert len(visible) == len(outputs)
    assert [len(pairs) - 1 for pairs in visible] == case.batch.plan.positions.tolist()
    for query, output, pairs in zip(case.query, outputs, visible, strict=True):
        in_window = pairs if window is None else pairs[-window:]
        torch.testing.assert_close(output, one_query(query, in_window), atol=1e-5, rtol=0.0)


def test_a_window_of_one_plan_is_made_once() -> None:
    """Layers of a step share its masks, and each window has its own."""
    span = Case(0).batch.plan.spans[-1]
    assert span.bias(3, torch.float32) is span.bias(3, torch.float32)
    assert not torch.equal(span.bias(3, torch.float32), span.bias(2, torch.float32))
