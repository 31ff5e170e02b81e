"""A pool of generated Sudokus in arrays, and random symmetric images of them.

A pool is generated once by several processes and kept in a file, so that training never waits for
the generator. What a net is shown are images of the pool's puzzles, which it hardly sees twice.
"""

import itertools
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.train.sudoku_puzzles import Layout, Puzzle, held_out, layout_of, training_stream

Cells = NDArray[np.int64]
_GRIDS_PER_TASK = 200


@dataclass(frozen=True)
class PuzzleArrays:
    """Puzzles as tokens [puzzles, cells]: digit d is d + 1, a blank cell is 1, and 0 is padding."""

    inputs: Cells
    labels: Cells

    def __len__(self) -> int:
        return len(self.inputs)

    def first(self, count: int) -> "PuzzleArrays":
        return PuzzleArrays(self.inputs[:count], self.labels[:count])


@dataclass(frozen=True)
class Pool:
    """The puzzles that a net of one size is trained on, and those that it is measured on."""

    training: PuzzleArrays
    held_out: PuzzleArrays


def arrays_of(puzzles: Iterable[Puzzle]) -> PuzzleArrays:
    puzzles = list(puzzles)
    inputs = np.array([puzzle.givens for puzzle in puzzles], dtype=np.int64) + 1
    labels = np.array([puzzle.solution for puzzle in puzzles], dtype=np.int64) + 1
    return PuzzleArrays(inputs, labels)


@dataclass(frozen=True)
class PoolSettings:
    """Arguments of the generator. The same settings give the same pool."""

    size: int
    num_grids: int
    num_held_out: int
    seed: int = 0
    max_blanks: int | None = None

    @property
    def file_name(self) -> str:
        blanks = "all" if self.max_blanks is None else self.max_blanks
        counts = f"{self.num_grids}-{self.num_held_out}"
        return f"sudoku-{self.size}x{self.size}-{counts}-seed-{self.seed}-blanks-{blanks}.npz"


def load_pool(settings: PoolSettings, cache: Path, num_processes: int) -> Pool:
    """Return a pool from its file in the directory `cache`, or else generate it and write it."""
    file = cache / settings.file_name
    if not file.exists():
        pool = _generate(settings, num_processes)
        cache.mkdir(parents=True, exist_ok=True)
        # Written under another name first, so that a stopped run leaves no half of a file.
        unfinished = file.with_suffix(".part.npz")
        np.savez_compressed(
            unfinished,
            training_inputs=pool.training.inputs.astype(np.uint8),
            training_labels=pool.training.labels.astype(np.uint8),
            held_out_inputs=pool.held_out.inputs.astype(np.uint8),
            held_out_labels=pool.held_out.labels.astype(np.uint8),
        )
        os.replace(unfinished, file)

    with np.load(file) as arrays:
        tokens = {name: arrays[name].astype(np.int64) for name in arrays.files}
    return Pool(
        training=PuzzleArrays(tokens["training_inputs"], tokens["training_labels"]),
        held_out=PuzzleArrays(tokens["held_out_inputs"], tokens["held_out_labels"]),
    )


def _generate(settings: PoolSettings, num_processes: int) -> Pool:
    num_tasks = -(-settings.num_grids // _GRIDS_PER_TASK)
    every_task = [settings] * num_tasks
    # Not forked: the parent may have threads of torch by now.
    context = get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context) as processes:
        parts = list(processes.map(_training_part, every_task, range(num_tasks)))
    puzzles = itertools.chain.from_iterable(parts)
    measured = held_out(settings.size, settings.num_held_out, max_blanks=settings.max_blanks)
    return Pool(training=arrays_of(puzzles), held_out=arrays_of(measured))


def _training_part(settings: PoolSettings, number: int) -> list[Puzzle]:
    """Return the puzzles of one task's grids."""
    num_grids = min(_GRIDS_PER_TASK, settings.num_grids - number * _GRIDS_PER_TASK)
    stream = training_stream(settings.size, f"{settings.seed}/{number}", settings.max_blanks)
    puzzles: list[Puzzle] = []
    for of_a_grid in itertools.islice(stream, num_grids):
        puzzles.extend(of_a_grid)
    return puzzles


def images(puzzles: PuzzleArrays, size: int, rng: np.random.Generator) -> PuzzleArrays:
    """Return a random symmetric image of each puzzle.

    Digits are exchanged, bands and stacks of boxes permuted, and so are rows in their band and
    columns in their stack. Where boxes are square, half of the grids are transposed.
    """
    layout = layout_of(size)
    count = len(puzzles)
    rows = _permuted_lines(layout, layout.box_height, count, rng)
    columns = _permuted_lines(layout, layout.box_width, count, rng)
    cells = rows[:, :, None] * size + columns[:, None, :]
    if layout.box_height == layout.box_width:
        is_transposed = rng.random(count) < 0.5
        cells[is_transposed] = cells[is_transposed].transpose(0, 2, 1)
    cells = cells.reshape(count, layout.num_cells)

    # Padding and blank keep their tokens.
    tokens = np.tile(np.arange(size + 2), (count, 1))
    tokens[:, 2:] = rng.permuted(tokens[:, 2:], axis=1)
    return PuzzleArrays(
        inputs=_image(puzzles.inputs, cells, tokens),
        labels=_image(puzzles.labels, cells, tokens),
    )


def _permuted_lines(
    layout: Layout, lines_per_box: int, count: int, rng: np.random.Generator
) -> Cells:
    """Return orders [count, size] of rows (or columns) in which those of a box stay together."""
    lines = np.tile(np.arange(layout.size).reshape(-1, lines_per_box), (count, 1, 1))
    within = rng.permuted(lines, axis=2)
    order_of_boxes = rng.permuted(lines[:, :, 0] // lines_per_box, axis=1)
    permuted = np.take_along_axis(within, order_of_boxes[:, :, None], axis=1)
    return permuted.reshape(count, layout.size)


def _image(grids: Cells, cells: Cells, tokens: Cells) -> Cells:
    """Return grids [puzzles, cells] whose cell i is cell `cells[i]`, its token exchanged."""
    moved = np.take_along_axis(grids, cells, axis=1)
    return np.take_along_axis(tokens, moved, axis=1)
