"""Bodies of `/v1/puzzles/solve`: one grid or several in, as many solutions out, each in its
caller's shape.

Knows what a grid looks like in JSON; which grids a model takes is for its worker to say.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Field,
    WithJsonSchema,
    model_validator,
)

from api.schemas.fields import RequestBody, refuse, shown
from api.schemas.usage import UsageBody, usage_body
from api.stream.request_events import Outcome, total_usage
from shared.messages import Grid, Halt, Solution, Solve

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
    """A string as it is, rows as tuples."""
    if isinstance(value, str) and len(value) <= _MOST_CHARACTERS and value.isascii():
        return value
    if (
        not isinstance(value, list)
        or not 0 < len(value) <= _MOST_ROWS
        or not all(map(_is_row, value))
    ):
        raise ValueError(_EXPECTED_GRID)
    return tuple(row if isinstance(row, str) else tuple(row) for row in value)


def _is_row(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _MOST_ROWS and value.isascii()
    return (
        isinstance(value, list)
        and len(value) <= _MOST_ROWS
        and all(_is_number(item) for item in value)
    )


def _is_number(value: Any) -> bool:
    return type(value) is int and abs(value) <= _MOST


def _as_identifier(value: Any) -> Any:
    is_name = isinstance(value, str) and len(value) <= _MOST_CHARACTERS and value.isascii()
    if not is_name and not (_is_number(value) and value >= 0):
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
MaxSteps = Annotated[int, Field(strict=True, ge=1, le=_MOST)]


class SolveRequest(RequestBody):
    """Exactly one of `grid` (or `puzzle`) and `grids` (or `puzzles`)."""

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
    max_steps: MaxSteps | None = Field(
        None, description="Most ACT segments; as trained, if not given."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_shape(cls, value: Any) -> Any:
        given = [
            name for name in _SHAPES if isinstance(value, dict) and value.get(name) is not None
        ]
        if isinstance(value, dict) and len(given) != 1:
            raise refuse(
                "grid",
                (
                    f"expected exactly one of {', '.join(_SHAPES)}, got "
                    f"{' and '.join(given) or 'none'}"
                ),
            )
        return value

    @property
    def puzzles(self) -> list[str | Grid]:
        return self.grids if self.grid is None else [self.grid]

    def tasks(self) -> list[Solve]:
        return [
            Solve(puzzle, self.identifier, self.halt, self.max_steps) for puzzle in self.puzzles
        ]


class SolutionBody(BaseModel):
    """`confidence` is the network's own, from 0 to 1; `is_halted` tells whether it wanted to stop
    at that step."""

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
