"""Bodies of `/v1/puzzles/arc`: an ARC task in, attempts at its test inputs out.

Tasks have the form of ARC's own files. Which tasks a model knows is for its worker to say.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Field,
    WithJsonSchema,
    model_validator,
)

from api.schemas.fields import refuse, shown
from api.schemas.puzzles import PuzzleRequest
from api.schemas.usage import UsageBody, usage_body
from api.stream.request_events import Outcome, total_usage
from shared.messages import Grid, Solution, Solve
from shared.tasks.augmentations import Attempt, attempts_of, augmented

_MOST_ROWS = 30
_MOST_COLOUR = 9
_MOST_CHARACTERS = 128
_MOST_AUGMENTATIONS = 1000
_USUAL_AUGMENTATIONS = 30
_MOST_ATTEMPTS = 10
_USUAL_ATTEMPTS = 2
_EXPECTED_GRID = (
    f"expected 1 to {_MOST_ROWS} rows of equal length, 1 to {_MOST_ROWS}, of numbers from 0 to "
    f"{_MOST_COLOUR}"
)
_EXPECTED_ID = f"expected the id of a task, in 1 to {_MOST_CHARACTERS} ASCII characters"

_NO_ID = (
    "expected the id of a task that the network was trained with, as the puzzle embedding of a "
    "task is learnt in training"
)
_NO_INPUTS = "expected the test inputs of the task, as the server has the data of no task"


def _as_grid(value: Any) -> Any:
    """Return the rows as tuples. Raise ValueError for anything but an ARC grid."""
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_ROWS:
        raise ValueError(_EXPECTED_GRID)
    rows: list[tuple[int, ...]] = []
    for row in value:
        if not isinstance(row, list) or not 0 < len(row) <= _MOST_ROWS:
            raise ValueError(_EXPECTED_GRID)
        if len(row) != len(value[0]) or not all(_is_colour(cell) for cell in row):
            raise ValueError(_EXPECTED_GRID)
        rows.append(tuple(row))
    return tuple(rows)


def _is_colour(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST_COLOUR


def _as_task_id(value: Any) -> Any:
    is_text = isinstance(value, str) and value.isascii()
    if not is_text or not 0 < len(value) <= _MOST_CHARACTERS:
        raise ValueError(_EXPECTED_ID)
    return value


_CELL_SCHEMA = {"type": "integer", "minimum": 0, "maximum": _MOST_COLOUR}
_LINE_SCHEMA = {"type": "array", "items": _CELL_SCHEMA, "minItems": 1, "maxItems": _MOST_ROWS}
_GRID_SCHEMA = {"type": "array", "items": _LINE_SCHEMA, "minItems": 1, "maxItems": _MOST_ROWS}
ArcGrid = Annotated[
    tuple[tuple[int, ...], ...], BeforeValidator(_as_grid), WithJsonSchema(_GRID_SCHEMA)
]
TaskId = Annotated[
    str,
    BeforeValidator(_as_task_id),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": _MOST_CHARACTERS}),
]


class ArcPair(BaseModel):
    """An input of a task. With its `output` the answer tells whether an attempt at it is right."""

    input: ArcGrid
    output: ArcGrid | None = None


class Demonstration(ArcPair):
    """An input of a task, and the output that belongs to it."""

    output: ArcGrid


class ArcRequest(PuzzleRequest):
    """A task in the form of ARC's own files, and the id under which the network has learnt it.

    Each test input is solved under several augmentations of the task, and they vote. In
    `/v1/jobs`, where `task` is the kind of job, the id is called `task_id`.
    """

    model_config = shown(
        {
            "model": "arc",
            "task_id": "007bbfb7",
            "test": [{"input": [[7, 0, 7], [7, 0, 7], [7, 7, 0]]}],
            "augmentations": 4,
        }
    )

    task_id: TaskId = Field(
        validation_alias=AliasChoices("task_id", "task"),
        description="A task that the network was trained with.",
    )
    test: list[ArcPair] = Field(min_length=1)
    train: list[Demonstration] = Field(default_factory=list)
    augmentations: Annotated[int, Field(strict=True, ge=1, le=_MOST_AUGMENTATIONS)] = Field(
        _USUAL_AUGMENTATIONS,
        description="Most augmentations; the network may have been trained with fewer.",
    )
    attempts: Annotated[int, Field(strict=True, ge=1, le=_MOST_ATTEMPTS)] = Field(
        _USUAL_ATTEMPTS, description="Most grids in an answer."
    )
    check_demonstrations: Annotated[bool, Field(strict=True)] = Field(
        False, description="Solve the inputs of train as well, and compare with their outputs."
    )

    @model_validator(mode="before")
    @classmethod
    def _with_id_and_inputs(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if value.get("task_id") is None and value.get("task") is None:
            raise refuse("task_id", _NO_ID)
        if value.get("test") is None:
            raise refuse("test", _NO_INPUTS)
        return value

    @property
    def checked(self) -> list[Demonstration]:
        """The demonstrations that are solved, too."""
        return self.train if self.check_demonstrations else []

    @property
    def num_jobs(self) -> int:
        return (len(self.test) + len(self.checked)) * self.augmentations

    def tasks(self) -> list[Solve]:
        """Return the tasks of the test inputs, then those of the demonstrations.

        There is one for each augmentation.
        """
        tasks: list[Solve] = []
        for pair in (*self.test, *self.checked):
            tasks += augmented(self.task(pair.input), self.task_id, self.augmentations)
        return tasks

    def notes(self) -> dict[str, Any]:
        """Return what `arc_response` needs beside the outcomes."""
        return {
            "task_id": self.task_id,
            "augmentations": self.augmentations,
            "attempts": self.attempts,
            "test": [pair.output for pair in self.test],
            "train": [pair.output for pair in self.checked],
        }


class AttemptBody(BaseModel):
    """A grid, the number of augmentations that voted for it, and their mean confidence."""

    grid: list[list[int]]
    votes: int
    mean_q: float


class ArcAnswer(BaseModel):
    """The attempts at a test input, those with the most votes first.

    `right` tells whether one of them is the output; null if that is not known.
    """

    attempts: list[AttemptBody]
    right: bool | None


class ArcResponse(BaseModel):
    """An answer for each test input, in order.

    `num_augmentations` have voted on each. `valid` tells whether the first attempt at each
    demonstration is its output; null if they were not solved.
    """

    model: str
    task_id: str
    answers: list[ArcAnswer]
    num_augmentations: int
    valid: bool | None
    usage: UsageBody


def arc_response(model: str, notes: Mapping[str, Any], outcomes: Sequence[Outcome]) -> ArcResponse:
    """Return the answers, from the notes of the request and the outcomes of its tasks."""
    count = notes["augmentations"]
    solutions: list[list[Solution | None]] = []
    for start in range(0, len(outcomes), count):
        group: list[Solution | None] = []
        for outcome in outcomes[start : start + count]:
            # The task has no augmentation for a job without a result.
            group.append(None if outcome.result is None else outcome.as_a(Solution))
        solutions.append(group)

    answers: list[ArcAnswer] = []
    for group, output in zip(solutions, notes["test"], strict=False):
        answers.append(_answer(attempts_of(group, notes["attempts"]), output))

    valid: bool | None = None
    if notes["train"]:
        valid = True
        for group, output in zip(solutions[len(answers) :], notes["train"], strict=True):
            valid = valid and _is_among(output, attempts_of(group, most=1))
    return ArcResponse(
        model=model,
        task_id=notes["task_id"],
        answers=answers,
        num_augmentations=count - solutions[0].count(None),
        valid=valid,
        usage=usage_body(total_usage(outcomes)),
    )


def _answer(attempts: Sequence[Attempt], output: Grid | None) -> ArcAnswer:
    bodies: list[AttemptBody] = []
    for attempt in attempts:
        bodies.append(
            AttemptBody(
                grid=_as_lists(attempt.grid),
                votes=attempt.num_votes,
                mean_q=attempt.mean_confidence,
            )
        )
    right = None if output is None else _is_among(output, attempts)
    return ArcAnswer(attempts=bodies, right=right)


def _is_among(output: Grid, attempts: Sequence[Attempt]) -> bool:
    # Notes that were kept have lists in place of tuples.
    return _as_lists(output) in [_as_lists(attempt.grid) for attempt in attempts]


def _as_lists(grid: Grid) -> list[list[Any]]:
    return [list(row) for row in grid]
