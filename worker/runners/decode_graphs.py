"""Decoding with CUDA graphs.

A step in which every sequence computes one token is one replay instead of many launches. A graph
has a fixed number of rows and reads its input from one buffer at a fixed address. A smaller step is
padded with rows whose one token goes to a page that belongs to no sequence. A graph of each size is
captured once, when the model is loaded.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.telemetry.logging_setup import fields
from worker.engine.runner import RunnerSpec
from worker.engine.sequence import Slice
from worker.kv.attention import AttentionPlan
from worker.kv.spans import Kernel, PagedSpan
from worker.kv.store import KVStore
from worker.runners.net import Net

logger = logging.getLogger("aios.decode_graphs")

_HEADER = 5
"""The number of a row's inputs beside its pages.

They are the token's id, its position, its row in the store, the number of stored tokens, and the id
of the sequence's first token.
"""

Forward = Callable[[], tuple[Tensor, Tensor]]
"""A forward of fixed size. It returns states and logits."""

Capture = Callable[[Forward], tuple[Callable[[], None], tuple[Tensor, Tensor]]]
"""A function that captures a forward.

It returns a function that runs the forward again, and the tensors that then hold the results.
"""


@dataclass(frozen=True)
class _Graph:
    replay: Callable[[], None]
    states: Tensor
    logits: Tensor


class DecodeGraphs:
    """Graphs of `net` that decode up to `spec.max_batch` rows.

    `store` has one page more than the `spec.num_pages` of sequences.
    """

    def __init__(
        self, net: Net, store: KVStore, kernel: Kernel, spec: RunnerSpec, capture: Capture
    ) -> None:
        self._page_size = spec.page_size
        self._spare_page = spec.num_pages
        self._pages_per_row = -(-spec.context_window // spec.page_size)
        self._sizes = batch_sizes(spec.max_batch)
        largest = self._sizes[-1]

        # A graph knows addresses, not tensors. All tensors that it reads are kept here, so that
        # they live as long as the graph.
        self._input = torch.zeros(
            largest * (_HEADER + self._pages_per_row), dtype=torch.int32, device=net.device
        )
        self._room = self._pages_per_row * spec.page_size
        self._query_starts = torch.arange(largest + 1, dtype=torch.int32, device=net.device)
        self._key_starts = self._query_starts * self._room

        # The largest first, because the others then fit into the memory pool that it has filled.
        self._graphs: dict[int, _Graph] = {}
        for size in reversed(self._sizes):
            self._load([], size)
            replay, (states, logits) = capture(self._forward(net, store, kernel, size))
            self._graphs[size] = _Graph(replay, states, logits)

    def decode(self, slices: Sequence[Slice]) -> tuple[Tensor, Tensor] | None:
        """Return the states [B, hidden] and logits [B, vocab] of each slice's token.

        The next call overwrites them. Return None for a step that does anything but decode, or that
        has more rows than any graph.
        """
        num_rows = len(slices)
        if num_rows > self._sizes[-1] or not all(_decodes(part) for part in slices):
            return None
        size = next(size for size in self._sizes if size >= num_rows)
        self._load(slices, size)
        graph = self._graphs[size]
        graph.replay()
        return graph.states[:num_rows], graph.logits[:num_rows]

    def _load(self, slices: Sequence[Slice], size: int) -> None:
        """Fill the input of a graph of `size` rows: those of the slices, then padding."""
        page_size = self._page_size
        ids = []
        positions = []
        rows = []
        lengths = []
        first_ids = []
        table: list[int] = []
        for part in slices:
            sequence = part.sequence
            position = sequence.num_computed
            page = sequence.pages[position // page_size]
            ids.append(sequence.tokens(position, position + 1)[0])
            positions.append(position)
            rows.append(page * page_size + position % page_size)
            lengths.append(position + 1)
            first_ids.append(sequence.encoded.prompt_ids[0])

            num_unused = self._pages_per_row - len(sequence.pages)
            assert num_unused >= 0, "a sequence longer than the context window"
            table += sequence.pages
            table += [self._spare_page] * num_unused

        num_padding = size - len(slices)
        ids += [0] * num_padding
        positions += [0] * num_padding
        rows += [self._spare_page * page_size] * num_padding
        lengths += [1] * num_padding
        first_ids += [0] * num_padding
        table += [self._spare_page] * (num_padding * self._pages_per_row)

        values = [*ids, *positions, *rows, *lengths, *first_ids, *table]
        # Torch does not reuse pinned memory before the copy from it is done.
        staged = torch.tensor(values, dtype=torch.int32, pin_memory=self._input.is_cuda)
        self._input[: len(values)].copy_(staged, non_blocking=True)

    def _forward(self, net: Net, store: KVStore, kernel: Kernel, size: int) -> Forward:
        """Return a forward of `size` rows that reads its input from the buffer of `_load`."""
        header = self._input[: _HEADER * size].view(_HEADER, size)
        table = self._input[_HEADER * size : (_HEADER + self._pages_per_row) * size].view(size, -1)
        span = PagedSpan(
            start=0,
            stop=size,
            query_starts=self._query_starts[: size + 1],
            key_starts=self._key_starts[: size + 1],
            lengths=header[3],
            block_table=table,
            max_queries=1,
            max_keys=self._room,
            kernel=kernel,
        )

        def run() -> tuple[Tensor, Tensor]:
            ids, positions, rows, _, first_ids = header.long()
            plan = AttentionPlan(positions, first_ids, spans=(span,), rows=rows)
            states = net.hidden(ids, plan, store)
            return states, net.logits(states)

        return run


def capture_decoding(
    net: Net, store: KVStore, kernel: Kernel, spec: RunnerSpec
) -> DecodeGraphs | None:
    """Return graphs for the network. Where it cannot be captured, log why and return None."""
    try:
        with torch.inference_mode():
            return DecodeGraphs(net, store, kernel, spec, CudaCapture(net.device))
    except RuntimeError as error:
        extra = fields(model=spec.name, error=str(error))
        logger.warning("decoding without CUDA graphs", extra=extra)
        return None


class CudaCapture:
    """Capture of forwards as CUDA graphs.

    The graphs share one memory pool, because no two of them ever run at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, forward: Forward) -> tuple[Callable[[], None], tuple[Tensor, Tensor]]:
        # Run once on a side stream, so that the one-time setup does not become part of the graph.
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            forward()
        torch.cuda.current_stream(self._device).wait_stream(stream)

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            results = forward()
        return graph.replay, results


def batch_sizes(max_batch: int) -> list[int]:
    """Return the sizes of graphs, smallest first.

    They are the powers of two, from 16 on also those halfway in between, and `max_batch`.
    """
    sizes = {max_batch}
    power = 1
    while power < max_batch:
        sizes.add(power)
        between = power + power // 2
        if power >= 16 and between < max_batch:
            sizes.add(between)
        power *= 2
    return sorted(sizes)


def _decodes(part: Slice) -> bool:
    """Return whether the slice computes one token behind others and samples the next."""
    return part.num_tokens == 1 and part.sequence.num_computed > 0 and part.samples
