"""Decoding as CUDA graphs: a step in which every sequence computes one token is one replay instead
of many launches.

A graph has a fixed number of rows and reads its input from one buffer that stays where it is; a
smaller step is padded with rows whose one token goes to a page that no sequence owns. Each size is
captured once, when the model is loaded.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from shared.logging_setup import fields
from worker.kv.attention import AttentionPlan
from worker.kv.spans import Kernel, PagedSpan
from worker.kv.store import KVStore
from worker.runners.base import RunnerSpec
from worker.runners.net import Net
from worker.sequence import Slice

logger = logging.getLogger("aios.decode_graphs")

_HEADER = 5
"""Numbers of a row beside its pages: id, position, place in the store, tokens stored, id of the
row's first token."""

Forward = Callable[[], tuple[Tensor, Tensor]]
Capture = Callable[[Forward], tuple[Callable[[], None], tuple[Tensor, Tensor]]]
"""Turns a forward into what runs it again and the tensors in which its results then lie."""


@dataclass(frozen=True)
class _Graph:
    replay: Callable[[], None]
    states: Tensor
    logits: Tensor


class DecodeGraphs:
    """Steps of up to `spec.max_batch` rows of `net`; `store` has a page behind the `spec.num_pages`
    of sequences.

    A graph knows addresses, not tensors: whatever it reads must live as long as it does.
    """

    def __init__(
        self, net: Net, store: KVStore, kernel: Kernel, spec: RunnerSpec, capture: Capture
    ) -> None:
        self._page_size = spec.page_size
        self._spare_page = spec.num_pages
        self._pages_per_row = -(-spec.context_window // spec.page_size)
        self._sizes = batch_sizes(spec.max_batch)
        largest = self._sizes[-1]
        self._input = torch.zeros(
            largest * (_HEADER + self._pages_per_row), dtype=torch.int32, device=net.device
        )
        self._room = self._pages_per_row * spec.page_size
        self._counts = torch.arange(largest + 1, dtype=torch.int32, device=net.device)
        self._rooms = self._counts * self._room
        self._graphs: dict[int, _Graph] = {}
        for size in reversed(
            self._sizes
        ):  # the largest first: the others find room in the memory it leaves
            self._load([], size)
            replay, (states, logits) = capture(self._forward(net, store, kernel, size))
            self._graphs[size] = _Graph(replay, states, logits)

    def decode(self, slices: Sequence[Slice]) -> tuple[Tensor, Tensor] | None:
        """States [B, hidden] and logits [B, vocab] of each slice's token, which hold until the next
        call.

        None for a step that does anything but decode, or has more rows than any graph.
        """
        if len(slices) > self._sizes[-1] or not all(map(_decodes, slices)):
            return None
        size = next(size for size in self._sizes if size >= len(slices))
        self._load(slices, size)
        graph = self._graphs[size]
        graph.replay()
        return graph.states[: len(slices)], graph.logits[: len(slices)]

    def _load(self, slices: Sequence[Slice], size: int) -> None:
        """Fill the input of `size` rows. Pinned memory is not used again before the copy out of it
        is done."""
        num_padding = size - len(slices)
        nobody = (0, 0, self._spare_page * self._page_size, 1, 0)
        headers = [self._header(part) for part in slices] + [nobody] * num_padding
        tables = [self._table(part.sequence.pages) for part in slices] + [
            self._table([])
        ] * num_padding
        values = [*chain(*zip(*headers, strict=True)), *chain(*tables)]
        staged = torch.tensor(values, dtype=torch.int32, pin_memory=self._input.is_cuda)
        self._input[: len(values)].copy_(staged, non_blocking=True)

    def _forward(self, net: Net, store: KVStore, kernel: Kernel, size: int) -> Forward:
        header = self._input[: _HEADER * size].view(_HEADER, size)
        table = self._input[_HEADER * size : (_HEADER + self._pages_per_row) * size].view(size, -1)
        stats, rooms = self._counts[: size + 1], self._rooms[: size + 1]
        span = PagedSpan(0, size, stats, rooms, header[3], table, 1, self._room, kernel)

        def run() -> tuple[Tensor, Tensor]:
            ids, positions, rows, _, first_ids = header.long()
            states = net.hidden(ids, AttentionPlan(positions, first_ids, (span,), rows), store)
            return states, net.logits(states)

        return run

    def _header(self, part: Slice) -> tuple[int, ...]:
        sequence, at = part.sequence, part.sequence.num_computed
        place = sequence.pages[at // self._page_size] * self._page_size + at % self._page_size
        return sequence.tokens(at, at + 1)[0], at, place, at + 1, sequence.encoded.prompt_ids[0]

    def _table(self, pages: list[int]) -> list[int]:
        assert len(pages) <= self._pages_per_row, "a sequence longer than the context window"
        return pages + [self._spare_page] * (self._pages_per_row - len(pages))


def capture_decoding(
    net: Net, store: KVStore, kernel: Kernel, spec: RunnerSpec
) -> DecodeGraphs | None:
    """Graphs for the network, or None, with the reason in the log, where it cannot be captured: it
    decodes without."""
    try:
        with torch.inference_mode():
            return DecodeGraphs(net, store, kernel, spec, CudaCapture(net.device))
    except RuntimeError as error:
        logger.warning(
            "decoding without CUDA graphs", extra=fields(model=spec.name, error=str(error))
        )
        return None


class CudaCapture:
    """Captures forwards as CUDA graphs that share one memory pool, since no two of them ever run at
    once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, forward: Forward) -> tuple[Callable[[], None], tuple[Tensor, Tensor]]:
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(
            stream
        ):  # what a first run sets up, must not become part of the graph
            forward()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            results = forward()
        return graph.replay, results


def batch_sizes(max_batch: int) -> list[int]:
    """The sizes of graphs, smallest first: powers of two, from 16 on also those in between, and
    `max_batch`."""
    powers = [1 << bits for bits in range(max_batch.bit_length())]
    between = [power + power // 2 for power in powers if power >= 16]
    return sorted({*(size for size in powers + between if size < max_batch), max_batch})


def _decodes(part: Slice) -> bool:
    return part.num_tokens == 1 and part.sequence.num_computed > 0 and part.samples
