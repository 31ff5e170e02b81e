"""Recurrent puzzle networks (HRM, TRM, URM), which turn a grid into a grid.

A step is one ACT segment of every running row. A row keeps its carry from step to step, and leaves
after the step in which it halts. Another row may join in the next step. With `max` a row runs as
many segments as the network was trained with, as upstream evaluates. With `q_halt` it stops where
the network wants to, by the rule of its checkpoint. A request may choose the rule and the number of
segments.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from shared.errors import FleetError, InvalidRequest
from shared.messages import SKIPPED, Depth, Halt, Sample, Segment, Solution, Solve, Task
from shared.tasks.runner_options import PuzzleOptions
from worker.engine.depth import DepthsByEffort, checked_steps, depth_of, named, spread
from worker.engine.engine_stats import count_segments
from worker.engine.noise import fold, position_key
from worker.engine.runner import RunnerOptions, RunnerSpec
from worker.engine.sampler import broken
from worker.engine.sequence import (
    Encoded,
    Slice,
    Solved,
    Stepped,
    StepResult,
    TokenSequence,
)
from worker.engine.tensor_noise import normal_noise
from worker.models.linear import pack_all_linears
from worker.models.puzzle_checkpoint import PuzzleCheckpoint, load_puzzle_checkpoint
from worker.models.weight_size import weight_size
from worker.puzzles.arc import GridTransform, augmentations_of
from worker.puzzles.kinds import ARC
from worker.runners.accelerators import prepare
from worker.runners.allocation import tells_out_of_memory
from worker.runners.efforts import check_efforts

_MAX_STEPS_FACTOR = 4
"""The largest number of segments that a request may ask for, as a multiple of the trained number.

More segments than the trained number may help, but not without end.
"""

# A request has a job for each augmentation of a task, and the names of all are read at once.
_MOST_TASKS_KEPT = 64

_Augmentations = tuple[tuple[GridTransform, int], ...]
"""The augmentations of an ARC task, each with the row of its embedding."""


@dataclass(frozen=True)
class EncodedPuzzle(Encoded):
    """A puzzle. `prompt_ids` are its cells.

    Its row stops after `max_steps` segments, or earlier if it `may_halt`. `sample` says which noise
    it gets, None for no noise. A valid solution of one that `settles` makes other samples needless.
    `transform` has made the cells of an augmented puzzle, and is undone in its solution.
    """

    identifier: int = 0
    max_steps: int = 1
    may_halt: bool = False
    sample: Sample | None = None
    settles: bool = False
    shows_segments: bool = False
    transform: GridTransform | None = None


@dataclass(frozen=True)
class _Progress:
    """State of a row between two segments: its carry [latents, positions, H].

    `steps` is the number of segments that are done. `tokens` are those of the last segment that was
    shown, empty before.
    """

    carry: Tensor
    steps: int
    tokens: Sequence[int] = ()


@dataclass
class _Row:
    """A row in a step: where it was `before`, and what the step finds.

    `tokens` and `is_finite` are set for a row that is read.
    """

    puzzle: EncodedPuzzle
    before: _Progress
    q_values: tuple[float, float] = (0.0, 0.0)
    confidence: float = 0.0
    wants_halt: bool = False
    tokens: Sequence[int] = ()
    is_finite: bool = True

    @property
    def steps(self) -> int:
        return self.before.steps + 1

    @property
    def has_halted(self) -> bool:
        if self.steps >= self.puzzle.max_steps:
            return True
        return self.puzzle.may_halt and self.wants_halt


class PuzzleRunner:
    """A puzzle network that is stepped over live rows.

    `halt` is the rule for requests that name none.
    """

    eos_ids: frozenset[int] = frozenset()

    def __init__(
        self,
        checkpoint: PuzzleCheckpoint,
        spec: RunnerSpec,
        *,
        halt: Halt,
        efforts: DepthsByEffort | None = None,
    ) -> None:
        self.spec = spec
        self.model = checkpoint.model
        self._kind = checkpoint.kind
        self._identifiers = checkpoint.identifiers
        names = checkpoint.identifiers
        self._augmentations_by_task = lru_cache(maxsize=_MOST_TASKS_KEPT)(
            lambda task_id: augmentations_of(task_id, names.beginning_with(task_id))
        )
        self._halt = halt
        if efforts is None:
            efforts = spread(self.model.config.halt_max_steps, lambda count: Depth(max_steps=count))
        self._efforts = efforts
        check_efforts(efforts, self._max_steps)
        self.progress: dict[str, _Progress] = {}

    def encode(self, task: Task) -> EncodedPuzzle:
        if not isinstance(task, Solve):
            raise InvalidRequest("This model solves puzzles and knows no text.", field="model")
        if task.settles and not self._kind.has_check:
            raise InvalidRequest(
                "select: this model's solutions cannot be checked; expected first, best_q or mode.",
                field="select",
            )
        max_steps = self.model.config.halt_max_steps
        asked = depth_of(task)
        if asked is not None:
            asked = named(self._efforts, asked)
            max_steps = self._max_steps(asked)

        transform: GridTransform | None = None
        if task.augmentation is None:
            cells = self._kind.encode(task.puzzle)
            identifier = self._number(task.identifier)
        else:
            augmentations = self._augmentations(task.augmentation.task_id)
            if task.augmentation.number >= len(augmentations):
                return EncodedPuzzle((), asked_depth=asked, answer=SKIPPED)
            transform, identifier = augmentations[task.augmentation.number]
            grid = ARC.decode(ARC.encode(task.puzzle))
            cells = ARC.encode(transform.apply(grid))

        return EncodedPuzzle(
            cells,
            asked_depth=asked,
            identifier=identifier,
            max_steps=max_steps,
            may_halt=(task.halt or self._halt) == "q_halt",
            sample=task.sample,
            settles=task.settles,
            shows_segments=task.shows_segments,
            transform=transform,
        )

    def _max_steps(self, depth: Depth) -> int:
        return checked_steps(depth, _MAX_STEPS_FACTOR * self.model.config.halt_max_steps)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return no text, because the answer is a grid, the result of the last step."""
        return ""

    def release(self, sequence: TokenSequence) -> None:
        self.progress.pop(sequence.key, None)

    @tells_out_of_memory
    @torch.inference_mode()
    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        """Run one segment of every row. Return one result for each slice.

        It is None for a row that goes on and shows no segments.
        """
        rows = []
        for part in slices:
            progress = self.progress.get(part.sequence.key) or self._start()
            rows.append(_Row(_puzzle(part.sequence), progress))

        carry = self._segment(rows)
        self._judge(rows, carry)
        self._read(rows, carry)
        results = [self._result(row) for row in rows]
        count_segments(len(rows), sum(row.has_halted for row in rows))

        # Last, because a step that raised may be repeated for fewer rows, from the same states.
        for number, (row, part) in enumerate(zip(rows, slices, strict=True)):
            self.progress[part.sequence.key] = _Progress(carry[number], row.steps, row.tokens)
        return results

    def _start(self) -> _Progress:
        return _Progress(self.model.start(1)[0], steps=0)

    def _segment(self, rows: Sequence["_Row"]) -> Tensor:
        """Run one segment of each row. Return the new carry [B, latents, positions, H]."""
        carry = torch.stack([row.before.carry for row in rows])
        for number, row in enumerate(rows):
            _add_noise(carry[number], row.puzzle.sample, segment=row.before.steps)
        ids = torch.tensor([row.puzzle.prompt_ids for row in rows], device=carry.device)
        identifiers = torch.tensor([row.puzzle.identifier for row in rows])
        return self.model.segment(self.model.embed(ids, identifiers), carry)

    def _judge(self, rows: Sequence["_Row"], carry: Tensor) -> None:
        """Note the q values of each row, and whether it halts."""
        q_halt, q_continue = self.model.q_values(carry)
        wants_halt = self.model.wants_halt(q_halt, q_continue).tolist()
        confidences = q_halt.sigmoid().tolist()
        values = zip(q_halt.tolist(), q_continue.tolist(), strict=True)
        for number, (row, q_values) in enumerate(zip(rows, values, strict=True)):
            row.q_values = q_values
            row.confidence = confidences[number]
            row.wants_halt = wants_halt[number]

    def _read(self, rows: Sequence["_Row"], carry: Tensor) -> None:
        """Note the tokens of the rows that halt or show their segments."""
        numbers = []
        for number, row in enumerate(rows):
            if row.has_halted or row.puzzle.shows_segments:
                numbers.append(number)
        if not numbers:
            return
        logits = self.model.logits(carry[numbers])
        is_finite = torch.isfinite(logits).all(dim=(1, 2)).tolist()
        tokens = logits.argmax(-1).tolist()
        for index, number in enumerate(numbers):
            rows[number].tokens = tokens[index]
            rows[number].is_finite = is_finite[index]

    def _result(self, row: "_Row") -> StepResult | FleetError:
        stepped = self._stepped(row) if row.puzzle.shows_segments else None
        if not row.has_halted:
            return stepped
        # One check at the end is enough: a state that was not finite at any segment stays so.
        if not row.is_finite or not math.isfinite(row.confidence):
            return broken(self.spec.name)
        verdict = self._kind.check(row.puzzle.prompt_ids, row.tokens)
        grid = self._kind.decode(row.tokens)
        if row.puzzle.transform is not None:
            grid = row.puzzle.transform.undo(ARC.decode(row.tokens))
        solution = Solution(
            grid,
            row.confidence,
            steps=row.steps,
            is_halted=row.wants_halt,
            is_valid=verdict.is_valid,
            is_shortest=verdict.is_shortest,
        )
        settles = row.puzzle.settles and verdict.is_valid is True
        return Solved(solution, settles, stepped)

    def _stepped(self, row: "_Row") -> Stepped:
        before = row.before.tokens or row.puzzle.prompt_ids
        changed = []
        for cell, (old, new) in enumerate(zip(before, row.tokens, strict=True)):
            if old != new:
                changed.append(divmod(cell, self._kind.width))
        segment = Segment(self._kind.decode(row.tokens), *row.q_values, tuple(changed))
        return Stepped(segment, row.steps, row.puzzle.max_steps)

    def _number(self, identifier: int | str | None) -> int:
        """Return the identifier's row in the network's table.

        Without an identifier it is row 0, the blank one. Raise InvalidRequest for an unknown one.
        """
        if isinstance(identifier, str):
            number = self._identifiers.index(identifier)
            if number is not None:
                return number
            expected = "a number (it has no identifiers.json)"
            if len(self._identifiers):
                expected = "one that identifiers.json names"
            raise InvalidRequest(
                f"identifier: this model does not know it; expected {expected}.",
                field="identifier",
            )

        count = self.model.config.num_identifiers
        if identifier is not None and not 0 <= identifier < count:
            problem = f"identifier: expected a number from 0 to {count - 1}, got {identifier}."
            raise InvalidRequest(problem, field="identifier")
        return identifier or 0

    def _augmentations(self, task_id: str) -> _Augmentations:
        """Return the augmentations of an ARC task that the network was trained with, at least one.

        Raise InvalidRequest for a task or a network without any.
        """
        if self._kind is not ARC:
            raise InvalidRequest(
                f"model: expected a network for ARC tasks, this one is for {self._kind.name}.",
                field="model",
            )
        if not len(self._identifiers):
            raise InvalidRequest(
                "task_id: this model does not know the names of its tasks, as the identifiers.json "
                "of its data set is not beside the checkpoint.",
                field="task_id",
            )
        augmentations = self._augmentations_by_task(task_id)
        if not augmentations:
            raise InvalidRequest(
                "task_id: expected a task that this network was trained with. The puzzle embedding "
                "of a task is learnt in training, and an unknown task has none.",
                field="task_id",
            )
        return augmentations


def _add_noise(carry: Tensor, sample: Sample | None, segment: int) -> None:
    """Add a sample's noise to the carry [latents, positions, H] of a row, in place.

    `segment` counts the segments that are done. Source: PTRM (arXiv 2605.19943), whose code adds it
    to z_H.
    """
    if sample is None or sample.number == 0 or not sample.noise:
        return
    latents = carry if sample.latents == "all" else carry[:1]
    key = position_key(fold(sample.seed, sample.number), segment)
    noise = normal_noise(key, latents.numel(), carry.device)
    latents += (sample.noise * noise).view(latents.shape).to(carry.dtype)


def _puzzle(sequence: TokenSequence) -> EncodedPuzzle:
    assert isinstance(sequence.encoded, EncodedPuzzle)
    return sequence.encoded


def load(options: RunnerOptions) -> PuzzleRunner:
    """Load a puzzle network. Raise ModelFormatError for a checkpoint that cannot be served."""
    checkpoint = load_puzzle_checkpoint(Path(options.path), getattr(torch, options.dtype))
    model = checkpoint.model.to(options.device)
    prepare(model, options)
    # A recurrent network can make a different last bit grow into another answer. In panels no row
    # depends on the other rows of its batch.
    pack_all_linears(model)
    spec = RunnerSpec(
        "hrm-puzzle",
        options.name,
        found=f"{checkpoint.description}, {options.precision}",
        context_window=checkpoint.kind.num_cells,
        max_batch=options.max_batch,
        tasks=("solve",),
        trial=Solve(checkpoint.kind.blank, max_steps=1),
        weights=weight_size(model),
        puzzle=checkpoint.kind.name,
    )
    # Here `compat` means `max`, because upstream's evaluation runs all segments of every row.
    declared = options.declared(PuzzleOptions)
    halt: Halt = "q_halt" if declared.segments == "q_halt" else "max"
    return PuzzleRunner(checkpoint, spec, halt=halt, efforts=declared.depths_by_effort)
