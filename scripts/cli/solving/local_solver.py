"""Solves groups of puzzles in this process, by a model that it loads."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from scripts.cli.fleet_tool import ToolError
from scripts.cli.solving.groups import PUZZLE_FIELDS, Answer, Group, Refused, Solved, answers_of
from shared.errors import FleetError, InvalidRequest
from worker.llm import LLM


class LocalSolver:
    """Solves groups by a loaded model, one after the other. `options` are those of `LLM.solve`."""

    def __init__(self, llm: LLM, options: Mapping[str, Any]) -> None:
        self._llm = llm
        self._options = options

    def solve_all(self, groups: Iterator[Group]) -> Iterator[Solved]:
        """Yield the groups as they are solved. Raise ToolError if the options are refused."""
        for group in groups:
            yield group, answers_of(group, self._solve)

    def _solve(self, group: Group) -> list[Answer]:
        puzzles = [record.puzzle for record in group]
        try:
            solutions = self._llm.solve(puzzles, identifier=group[0].identifier, **self._options)
        except FleetError as error:
            if isinstance(error, InvalidRequest) and error.field not in PUZZLE_FIELDS:
                raise ToolError(error.message) from None
            raise Refused(error.message) from None

        answers = []
        for record, solution in zip(group, solutions, strict=True):
            # Through JSON, so that rows are lists, as they are in the answers of a fleet.
            answer = msgspec.json.decode(msgspec.json.encode(solution))
            del answer["type"]
            if isinstance(record.puzzle, str):
                answer["grid"] = _digits(answer["grid"])
            answers.append(answer)
        return answers


def _digits(grid: list[list[int]]) -> str:
    """Return the rows of a Sudoku in one string."""
    text = ""
    for row in grid:
        text += "".join(map(str, row))
    return text
