"""Bodies of `/v1/puzzles/solve`: one grid or several in, as many solutions out, in the same shape.

This module knows what a grid looks like in JSON. Which grids a model takes is for its worker to
say.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Field,
    WithJsonSchema,
    model_validator,
)

from api.schemas.fields import MaxSteps, RequestBody, check_one_of, refuse, shown
from api.schemas.usage import UsageBody, usage_body
from api.stream.request_events import Outcome, total_usage
from shared.messages import Effort, Grid, Halt, Solution, Solve

_MOST_ROWS = 30
_MOST_CHARACTERS = 128
_MOST = 2**31 - 1
_SHAPES = ("grid", "puzzle", "grids", "puzzles")
_EXPECTED_GRID = (
    f"expected rows of numbers or rows of text, at most {_MOST_ROWS} by {_MOST_ROWS}, or a "
    "Sudoku as a string"
)
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


_PUZZLE_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}},
        },
        {"type": "array", "items": {"type": "string"}},
    ]
}
Puzzle = Annotated[str | Grid, BeforeValidator(_as_puzzle), WithJsonSchema(_PUZZLE_SCHEMA)]
Identifier = Annotated[
    int | str,
    BeforeValidator(_as_identifier),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]}),
]


class SolveRequest(RequestBody):
    """One puzzle or several: exactly one of `grid` (or `puzzle`) and `grids` (or `puzzles`)."""

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
    model: str | None = None
    identifier: Identifier | None = Field(
        None, description="ARC: what the task is to the network, by number or name."
    )
    halt: Halt | None = Field(
        None, description="max runs all segments, q_halt stops where the network would."
    )
    max_steps: MaxSteps | None = None
    effort: Effort | None = Field(None, description="A max_steps that the model's entry names.")

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
    def _one_depth(self) -> Self:
        check_one_of(self, ("max_steps", "effort"))
        return self

    @property
    def puzzles(self) -> list[str | Grid]:
        """The puzzles, whichever field has them."""
        if self.grid is not None:
            return [self.grid]
        return self.grids

    def tasks(self) -> list[Solve]:
        tasks = []
        for puzzle in self.puzzles:
            tasks.append(Solve(puzzle, self.identifier, self.halt, self.max_steps, self.effort))
        return tasks


class SolutionBody(BaseModel):
    """The solution of a puzzle.

    `confidence` is the network's own, from 0 to 1. `is_halted` tells whether the network wanted to
    stop at that step.
    """

    grid: Annotated[str | Grid, WithJsonSchema(_PUZZLE_SCHEMA)]
    confidence: float
    steps: int
    is_halted: bool


class SolveResponse(BaseModel):
    model: str
    solutions: list[SolutionBody]
    usage: UsageBody


def solve_response(
    model: str, as_string: Sequence[bool], outcomes: Sequence[Outcome]
) -> SolveResponse:
    """Return the answers in the order of the puzzles. The answer to a string is a string."""
    bodies = []
    for is_string, outcome in zip(as_string, outcomes, strict=True):
        bodies.append(_solution_body(outcome.as_a(Solution), as_string=is_string))
    return SolveResponse(model=model, solutions=bodies, usage=usage_body(total_usage(outcomes)))


def _solution_body(solution: Solution, *, as_string: bool) -> SolutionBody:
    grid: Any = solution.grid
    if as_string:
        grid = ""
        for row in solution.grid:
            grid += "".join(map(str, row))
    return SolutionBody(
        grid=grid,
        confidence=solution.confidence,
        steps=solution.steps,
        is_halted=solution.is_halted,
    )
