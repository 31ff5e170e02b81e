"""Sapient HRM puzzle networks: a grid in, a grid out. A step is one ACT segment of every running
row.

A row keeps its carry from step to step, and leaves at the step in which it halts; whatever waits
takes its place in the next. `max` runs the segments the network was trained to, as upstream
evaluates; `q_halt` stops a row where its q_halt exceeds its q_continue. A request may set both for
itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared.errors import FleetError, InvalidRequest
from shared.messages import Halt, Solution, Solve, Task
from shared.runner_options import PuzzleOptions
from worker.engine_stats import count_segments
from worker.models.sapient import Carry, SapientModel, SegmentOutput
from worker.models.sapient_checkpoint import load_sapient_checkpoint
from worker.puzzles import PuzzleKind
from worker.runners.allocation import tells_out_of_memory
from worker.runners.base import RunnerOptions, RunnerSpec
from worker.sampler import broken
from worker.sequence import Encoded, Slice, Solved, StepResult, TokenSequence

_LONGEST_RUN = 4
"""How many times the trained number of segments a request may ask for: more may help, without end
it would not."""


@dataclass(frozen=True)
class EncodedPuzzle(Encoded):
    """A puzzle's cells as `prompt_ids`, what it is known as, and when its row stops."""

    identifier: int = 0
    max_steps: int = 1
    may_halt: bool = False


@dataclass(frozen=True)
class _Progress:
    """A row between two segments: z_H and z_L [num_positions, H], and the segments behind it."""

    z_h: Tensor
    z_l: Tensor
    steps: int


class PuzzleRunner:
    eos_ids: frozenset[int] = frozenset()

    def __init__(
        self,
        model: SapientModel,
        kind: PuzzleKind,
        identifiers: Mapping[str, int],
        spec: RunnerSpec,
        *,
        halt: Halt,
    ) -> None:
        self.spec = spec
        self._model = model
        self._kind = kind
        self._identifiers = identifiers
        self._halt = halt
        self._progress: dict[str, _Progress] = {}

    def encode(self, task: Task) -> EncodedPuzzle:
        if not isinstance(task, Solve):
            raise InvalidRequest("This model solves puzzles and knows no text.", field="model")
        trained = self._model.config.halt_max_steps
        max_steps = trained if task.max_steps is None else task.max_steps
        if not 1 <= max_steps <= _LONGEST_RUN * trained:
            problem = f"max_steps: expected 1 to {_LONGEST_RUN * trained}, got {max_steps}."
            raise InvalidRequest(problem, field="max_steps")
        cells, identifier = self._kind.encode(task.puzzle), self._number(task.identifier)
        may_halt = (task.halt or self._halt) == "q_halt"
        return EncodedPuzzle(cells, identifier=identifier, max_steps=max_steps, may_halt=may_halt)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Nothing: an answer is a grid, which comes with the last step's result."""
        return ""

    def release(self, sequence: TokenSequence) -> None:
        self._progress.pop(sequence.key, None)

    @tells_out_of_memory
    @torch.inference_mode()
    def step(self, slices: Sequence[Slice]) -> list[StepResult | FleetError]:
        """One segment for every row. Progress is noted last: a step that raised may be repeated for
        fewer rows."""
        batch = [part.sequence for part in slices]
        puzzles = [_puzzle(item) for item in batch]
        before = [self._progress.get(item.key) or self._start() for item in batch]
        out = self._segment(puzzles, before)
        wants_halt = (out.q_halt > out.q_continue).tolist()
        steps = [row.steps + 1 for row in before]
        is_over = [
            done >= puzzle.max_steps or (puzzle.may_halt and wants)
            for puzzle, done, wants in zip(puzzles, steps, wants_halt, strict=True)
        ]
        answers = iter(
            self._answers(out, steps, wants_halt, [row for row, over in enumerate(is_over) if over])
        )
        results: list[StepResult | FleetError] = [
            next(answers) if over else None for over in is_over
        ]
        count_segments(len(batch), sum(is_over))
        for item, z_h, z_l, done in zip(batch, *out.carry, steps, strict=True):
            self._progress[item.key] = _Progress(z_h, z_l, done)
        return results

    def _start(self) -> _Progress:
        z_h, z_l = self._model.initial_carry(1)
        return _Progress(z_h[0], z_l[0], 0)

    def _segment(
        self, puzzles: Sequence[EncodedPuzzle], before: Sequence[_Progress]
    ) -> SegmentOutput:
        device = self._model.H_init.device
        ids = torch.tensor([puzzle.prompt_ids for puzzle in puzzles], device=device)
        identifiers = torch.tensor([puzzle.identifier for puzzle in puzzles], device=device)
        carry = Carry(
            torch.stack([row.z_h for row in before]), torch.stack([row.z_l for row in before])
        )
        return self._model.forward_segment(ids, identifiers, carry)

    def _answers(
        self,
        out: SegmentOutput,
        steps: Sequence[int],
        wants_halt: Sequence[bool],
        rows: Sequence[int],
    ) -> list[Solved | FleetError]:
        """What each of `rows`, which are over, has to say; a state that once was no number still is
        none."""
        if not rows:
            return []
        logits = self._model.logits(out.carry.z_h[list(rows)])
        tokens, is_sound = (
            logits.argmax(-1).tolist(),
            torch.isfinite(logits).all(dim=(1, 2)).tolist(),
        )
        confidence = out.q_halt.sigmoid().tolist()
        return [
            Solved(Solution(self._kind.decode(cells), confidence[row], steps[row], wants_halt[row]))
            if sound and math.isfinite(confidence[row])
            else broken(self.spec.name)
            for row, cells, sound in zip(rows, tokens, is_sound, strict=True)
        ]

    def _number(self, identifier: int | str | None) -> int:
        """The identifier as a row of the network's table; 0, the blank one, where none is given."""
        if isinstance(identifier, str):
            number = self._identifiers.get(identifier)
            if number is None:
                known = (
                    "one that identifiers.json names"
                    if self._identifiers
                    else "a number (it has no identifiers.json)"
                )
                raise InvalidRequest(
                    f"identifier: this model does not know it; expected {known}.",
                    field="identifier",
                )
            return number
        count = self._model.config.num_identifiers
        if identifier is not None and not 0 <= identifier < count:
            problem = f"identifier: expected a number from 0 to {count - 1}, got {identifier}."
            raise InvalidRequest(problem, field="identifier")
        return identifier or 0


def _puzzle(sequence: TokenSequence) -> EncodedPuzzle:
    assert isinstance(sequence.encoded, EncodedPuzzle)
    return sequence.encoded


def load(options: RunnerOptions) -> PuzzleRunner:
    """`segments` compat is max: upstream's evaluation runs every row to the end."""
    loaded = load_sapient_checkpoint(Path(options.path), getattr(torch, options.dtype))
    model = loaded.model.to(options.device)
    spec = RunnerSpec(
        "hrm-puzzle",
        options.name,
        f"{loaded.description}, {options.dtype}",
        loaded.kind.num_cells,
        options.max_batch,
        tasks=("solve",),
        trial=Solve(loaded.kind.blank, max_steps=1),
    )
    segments = options.declared(PuzzleOptions).segments
    halt: Halt = "q_halt" if segments == "q_halt" else "max"
    return PuzzleRunner(model, loaded.kind, loaded.identifiers, spec, halt=halt)
