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
from pathlib import Path

import torch
from torch import Tensor

from shared.errors import FleetError, InvalidRequest
from shared.messages import Depth, Halt, Sample, Solution, Solve, Task
from shared.tasks.runner_options import PuzzleOptions
from worker.engine.depth import DepthsByEffort, checked_steps, depth_of, named, spread
from worker.engine.engine_stats import count_segments
from worker.engine.noise import fold, position_key
from worker.engine.runner import RunnerOptions, RunnerSpec
from worker.engine.sampler import broken
from worker.engine.sequence import Encoded, Slice, Solved, StepResult, TokenSequence
from worker.engine.tensor_noise import normal_noise
from worker.models.linear import pack_all_linears
from worker.models.puzzle_checkpoint import PuzzleCheckpoint, load_puzzle_checkpoint
from worker.models.weight_size import weight_size
from worker.runners.accelerators import prepare
from worker.runners.allocation import tells_out_of_memory
from worker.runners.efforts import check_efforts

_MAX_STEPS_FACTOR = 4
"""The largest number of segments that a request may ask for, as a multiple of the trained number.

More segments than the trained number may help, but not without end.
"""


@dataclass(frozen=True)
class EncodedPuzzle(Encoded):
    """A puzzle. `prompt_ids` are its cells.

    Its row stops after `max_steps` segments, or earlier if it `may_halt`. `sample` says which noise
    it gets, None for no noise. A valid solution of one that `settles` makes other samples needless.
    """

    identifier: int = 0
    max_steps: int = 1
    may_halt: bool = False
    sample: Sample | None = None
    settles: bool = False


@dataclass(frozen=True)
class _Progress:
    """State of a row between two segments: its carry [latents, positions, H].

    `steps` is the number of segments that are done.
    """

    carry: Tensor
    steps: int


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
        return EncodedPuzzle(
            self._kind.encode(task.puzzle),
            asked_depth=asked,
            identifier=self._number(task.identifier),
            max_steps=max_steps,
            may_halt=(task.halt or self._halt) == "q_halt",
            sample=task.sample,
            settles=task.settles,
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

        It is None for a row that goes on.
        """
        puzzles = []
        progress = []
        steps = []
        for part in slices:
            puzzles.append(_puzzle(part.sequence))
            row_progress = self.progress.get(part.sequence.key) or self._start()
            progress.append(row_progress)
            steps.append(row_progress.steps + 1)

        carry = self._segment(puzzles, progress)
        q_halt, q_continue = self.model.q_values(carry)
        wants_halt = self.model.wants_halt(q_halt, q_continue).tolist()
        halted = []
        for row, puzzle in enumerate(puzzles):
            if steps[row] >= puzzle.max_steps or (puzzle.may_halt and wants_halt[row]):
                halted.append(row)
        results: list[StepResult | FleetError] = [None] * len(slices)
        if halted:
            confidences = q_halt.sigmoid().tolist()
            logits = self.model.logits(carry[halted])
            # One check at the end is enough: a state that was not finite at any segment stays so.
            is_finite = torch.isfinite(logits).all(dim=(1, 2)).tolist()
            answers = logits.argmax(-1).tolist()
            for number, row in enumerate(halted):
                if not is_finite[number] or not math.isfinite(confidences[row]):
                    results[row] = broken(self.spec.name)
                    continue
                results[row] = self._solved(
                    puzzles[row], answers[number], confidences[row], steps[row], wants_halt[row]
                )
        count_segments(len(slices), len(halted))

        # Last, because a step that raised may be repeated for fewer rows, from the same states.
        for row, part in enumerate(slices):
            self.progress[part.sequence.key] = _Progress(carry[row], steps[row])
        return results

    def _start(self) -> _Progress:
        return _Progress(self.model.start(1)[0], steps=0)

    def _segment(self, puzzles: Sequence[EncodedPuzzle], progress: Sequence[_Progress]) -> Tensor:
        """Run one segment of each puzzle's row, from its state in `progress`.

        Return the new carry [B, latents, positions, H].
        """
        device = progress[0].carry.device
        ids = torch.tensor([puzzle.prompt_ids for puzzle in puzzles], device=device)
        identifiers = torch.tensor([puzzle.identifier for puzzle in puzzles])
        carry = torch.stack([row.carry for row in progress])
        for row, puzzle in enumerate(puzzles):
            _add_noise(carry[row], puzzle.sample, segment=progress[row].steps)
        return self.model.segment(self.model.embed(ids, identifiers), carry)

    def _solved(
        self,
        puzzle: EncodedPuzzle,
        answer: Sequence[int],
        confidence: float,
        steps: int,
        is_halted: bool,
    ) -> Solved:
        """Return the answer of a row that has halted, checked by the rules of its puzzle."""
        verdict = self._kind.check(puzzle.prompt_ids, answer)
        return Solved(
            Solution(
                self._kind.decode(answer),
                confidence,
                steps=steps,
                is_halted=is_halted,
                is_valid=verdict.is_valid,
                is_shortest=verdict.is_shortest,
            ),
            settles=puzzle.settles and verdict.is_valid is True,
        )

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
    )
    # Here `compat` means `max`, because upstream's evaluation runs all segments of every row.
    declared = options.declared(PuzzleOptions)
    halt: Halt = "q_halt" if declared.segments == "q_halt" else "max"
    return PuzzleRunner(checkpoint, spec, halt=halt, efforts=declared.depths_by_effort)
