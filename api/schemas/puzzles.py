"""Bodies of `/v1/puzzles/solve`: one grid or several in, as many solutions out, in the same shape.

This module knows what a grid looks like in JSON. Which grids a model takes is for its worker to
say.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Self

import msgspec
from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Field,
    WithJsonSchema,
    model_validator,
)

from api.schemas.fields import (
    MaxSteps,
    RequestBody,
    Seed,
    check_one_of,
    refuse,
    seed_of,
    shown,
)
from api.schemas.usage import UsageBody, usage_body
from api.stream.request_events import Outcome, total_usage
from shared.messages import (
    Effort,
    Grid,
    Halt,
    NoisyLatents,
    Progress,
    Segment,
    Select,
    Solution,
    Solve,
)
from shared.tasks.samples import Answer, Sampled, answer_of, tasks_of, usual_select

_MOST_ROWS = 30
_MOST_CHARACTERS = 128
_MOST = 2**31 - 1
_SHAPES = ("grid", "puzzle", "grids", "puzzles")
_EXPECTED_GRID = (
    f"expected rows of numbers or rows of text, at most {_MOST_ROWS} by {_MOST_ROWS}, or a "
    "Sudoku as a string"
)
_EXPECTED_HALT = "expected q_halt (or q), max, or steps=N with N from 1 up"
_MOST_SAMPLES = 256
_EXPECTED_IDENTIFIER = "expected a number from 0 up, or a name"


def _as_puzzle(value: Any) -> Any:
    """Return a Sudoku's string as it is, and rows as tuples. Raise ValueError for anything else."""
    if isinstance(value, str) and len(value) <= _MOST_CHARACTERS and value.isascii():
        return value
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_ROWS:
        raise ValueError(_EXPECTED_GRID)
    rows: list[Any] = []
    for row in value:
        if not _is_row(row):
            raise ValueError(_EXPECTED_GRID)
        rows.append(row if isinstance(row, str) else tuple(row))
    return tuple(rows)


def _is_row(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _MOST_ROWS and value.isascii()
    if not isinstance(value, list) or len(value) > _MOST_ROWS:
        return False
    return all(_is_number(cell) for cell in value)


def _is_number(value: Any) -> bool:
    return type(value) is int and abs(value) <= _MOST


def _as_identifier(value: Any) -> Any:
    is_name = isinstance(value, str) and len(value) <= _MOST_CHARACTERS and value.isascii()
    is_index = _is_number(value) and value >= 0
    if not is_name and not is_index:
        raise ValueError(_EXPECTED_IDENTIFIER)
    return value


def _as_halt(value: Any) -> Any:
    """Return the rule by its only name. Raise ValueError for no rule."""
    if value == "q":
        return "q_halt"
    if value in ("max", "q_halt"):
        return value
    if isinstance(value, str) and _STEPS.fullmatch(value):
        return value
    raise ValueError(_EXPECTED_HALT)


_STEPS = re.compile(r"steps=[1-9][0-9]{0,8}")
_NULL = {"type": "null"}
_SHAPES_OF_A_PUZZLE: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "array", "items": {"type": "array", "items": {"type": "integer", "minimum": 0}}},
    {"type": "array", "items": {"type": "string"}},
]
_PUZZLE_SCHEMA = {"anyOf": _SHAPES_OF_A_PUZZLE}
Puzzle = Annotated[str | Grid, BeforeValidator(_as_puzzle), WithJsonSchema(_PUZZLE_SCHEMA)]
Identifier = Annotated[
    int | str,
    BeforeValidator(_as_identifier),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]}),
]


HaltRule = Annotated[
    str,
    BeforeValidator(_as_halt),
    WithJsonSchema({"type": "string", "examples": ["q_halt", "max", "steps=4"]}),
]


class PuzzleRequest(RequestBody):
    """The fields of every request for solutions: the model, and how long it works on each."""

    model: str | None = None
    halt: HaltRule | None = Field(
        None,
        description=(
            "max runs all segments, q_halt stops where the network would, steps=N after N segments."
        ),
    )
    max_steps: MaxSteps | None = None
    effort: Effort | None = Field(None, description="A max_steps that the model's entry names.")

    @model_validator(mode="after")
    def _one_depth(self) -> Self:
        check_one_of(self, ("max_steps", "effort"))
        if self._halt_steps is not None and (self.max_steps or self.effort):
            raise refuse("halt", "expected no steps=N beside max_steps or effort")
        return self

    @property
    def _halt_steps(self) -> int | None:
        """The number of segments in a rule steps=N, None in any other."""
        if self.halt is None or not _STEPS.fullmatch(self.halt):
            return None
        return int(self.halt.removeprefix("steps="))

    def task(self, puzzle: str | Grid) -> Solve:
        """Return the task of a puzzle, with no more than these fields say."""
        halt: Halt | None = None
        if self.halt == "q_halt":
            halt = "q_halt"
        elif self.halt is not None:
            # steps=N runs all of its N segments.
            halt = "max"
        max_steps = self._halt_steps or self.max_steps
        return Solve(puzzle, halt=halt, max_steps=max_steps, effort=self.effort)


class SolveRequest(PuzzleRequest):
    """One puzzle or several: exactly one of `grid` (or `puzzle`) and `grids` (or `puzzles`).

    With several `samples` each puzzle is solved so many times, from states with `noise`, and one
    solution is selected.
    """

    model_config = shown(
        {
            "model": "sudoku",
            "grid": "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79",
        }
    )

    grid: Puzzle | None = Field(None, validation_alias=AliasChoices("grid", "puzzle"))
    grids: list[Puzzle] = Field(
        default_factory=list, min_length=1, validation_alias=AliasChoices("grids", "puzzles")
    )
    identifier: Identifier | None = Field(
        None, description="ARC: what the task is to the network, by number or name."
    )
    samples: Annotated[int, Field(strict=True, ge=1, le=_MOST_SAMPLES)] = Field(
        1, description="Times that each puzzle is solved, all but the first with noise."
    )
    noise: Annotated[float, Field(strict=True, ge=0, le=10, allow_inf_nan=False)] | None = Field(
        None, description="Standard deviation of the noise before each segment."
    )
    noise_at: NoisyLatents = Field("high", description="The latents that get it: z_H, or all.")
    select: Select | None = Field(
        None,
        description=(
            "The answer: the first sample, the surest (the default of several), the commonest grid, "
            "or the first that solves the puzzle by its rules."
        ),
    )
    seed: Seed | None = None
    stream: Annotated[bool, Field(strict=True)] = Field(
        False, description="Events, one for each segment."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_shape(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        given = [name for name in _SHAPES if value.get(name) is not None]
        if len(given) != 1:
            names = " and ".join(given) or "none"
            raise refuse("grid", f"expected exactly one of {', '.join(_SHAPES)}, got {names}")
        return value

    @model_validator(mode="after")
    def _noise_for_samples(self) -> Self:
        fault = self._sampled(seed=0).fault()
        if fault is not None:
            raise refuse(*fault)
        return self

    @property
    def puzzles(self) -> list[str | Grid]:
        """The puzzles, whichever field has them."""
        if self.grid is not None:
            return [self.grid]
        return self.grids

    def sampled(self) -> Sampled:
        """Return the samples that are asked for, with a new seed if they have none."""
        return self._sampled(seed_of(self.seed) if self.samples > 1 else 0)

    def _sampled(self, seed: int) -> Sampled:
        return Sampled(
            count=self.samples,
            noise=self.noise or 0.0,
            latents=self.noise_at,
            select=self.select or usual_select(self.samples),
            seed=seed,
        )

    def tasks(self, sampled: Sampled) -> list[Solve]:
        """Return the tasks of all puzzles, one for each sample."""
        tasks: list[Solve] = []
        for puzzle in self.puzzles:
            task = msgspec.structs.replace(
                self.task(puzzle), identifier=self.identifier, shows_segments=self.stream
            )
            tasks += tasks_of(task, sampled)
        return tasks


class SolutionBody(BaseModel):
    """The solution of a puzzle.

    `confidence` is the network's own, from 0 to 1. `is_halted` tells whether the network wanted to
    stop at that step. `valid` tells whether the grid solves the puzzle by its rules and, in a maze,
    `shortest` whether no way is shorter; null is not known. `grid` is null where a verified
    solution was asked for and there is none. `sample` is the number of the one that was selected,
    `samples_run` counts those that were computed, and `votes` those with the same grid.
    """

    grid: Annotated[str | Grid | None, WithJsonSchema({"anyOf": [*_SHAPES_OF_A_PUZZLE, _NULL]})]
    confidence: float
    steps: int
    is_halted: bool
    valid: bool | None
    shortest: bool | None
    sample: int
    samples_run: int
    votes: int


class SolveResponse(BaseModel):
    model: str
    solutions: list[SolutionBody]
    usage: UsageBody


def solve_response(
    model: str,
    as_string: Sequence[bool],
    outcomes: Sequence[Outcome],
    *,
    samples: int,
    select: Select,
) -> SolveResponse:
    """Return the answers in the order of the puzzles. The answer to a string is a string."""
    bodies = []
    for number, is_string in enumerate(as_string):
        solutions: list[Solution | None] = []
        for outcome in outcomes[number * samples : (number + 1) * samples]:
            solutions.append(None if outcome.result is None else outcome.as_a(Solution))
        bodies.append(solution_body(answer_of(solutions, select), as_string=is_string))
    return SolveResponse(model=model, solutions=bodies, usage=usage_body(total_usage(outcomes)))


def solution_body(answer: Answer, *, as_string: bool) -> SolutionBody:
    """Return the answer to a puzzle, with its grid in rows or in one string."""
    solution = answer.solution
    grid: Any = None
    if not answer.is_refused:
        grid = as_text(solution.grid) if as_string else solution.grid
    return SolutionBody(
        grid=grid,
        confidence=solution.confidence,
        steps=solution.steps,
        is_halted=solution.is_halted,
        valid=solution.is_valid,
        shortest=solution.is_shortest,
        sample=answer.sample,
        samples_run=answer.num_run,
        votes=answer.num_votes,
    )


def as_text(grid: Grid) -> str:
    """Return all cells of a grid in one string, row by row."""
    text = ""
    for row in grid:
        text += "".join(map(str, row))
    return text


def segment_payload(
    request_id: str,
    progress: Progress,
    segment: Segment,
    *,
    puzzle: int,
    sample: int,
    as_string: bool,
) -> dict[str, Any]:
    """Return the payload of a stream that shows the state after one segment of a sample."""
    return {
        "id": request_id,
        "object": "solve.segment",
        "puzzle": puzzle,
        "sample": sample,
        "step": progress.done,
        "max_steps": progress.total,
        "grid": as_text(segment.grid) if as_string else segment.grid,
        "q_halt": segment.q_halt,
        "q_continue": segment.q_continue,
        "changed": segment.changed,
    }
