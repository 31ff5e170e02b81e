"""Solves groups of puzzles in this process, by a model that it loads."""

from collections.abc import Iterator, Mapping
from typing import Any

from api.schemas.puzzles import solution_body
from scripts.cli.fleet_tool import ToolError
from scripts.cli.solving.groups import PUZZLE_FIELDS, Answer, Group, Refused, Solved, answers_of
from shared.errors import FleetError, InvalidRequest
from shared.tasks.samples import Sampled, usual_select
from worker.llm import LLM


class LocalSolver:
    """Solves groups by a loaded model, one after the other.

    `options` are fields of a request to `/v1/puzzles/solve`.
    """

    def __init__(self, llm: LLM, options: Mapping[str, Any]) -> None:
        self._llm = llm
        self._options = dict(options)
        count = self._options.pop("samples", 1)
        self._sampled = Sampled(
            count,
            self._options.pop("noise", 0.0),
            select=self._options.pop("select", None) or usual_select(count),
            seed=self._options.pop("seed", 0),
        )

    def solve_all(self, groups: Iterator[Group]) -> Iterator[Solved]:
        """Yield the groups as they are solved. Raise ToolError if the options are refused."""
        for group in groups:
            yield group, answers_of(group, self._solve)

    def _solve(self, group: Group) -> list[Answer]:
        puzzles = [record.puzzle for record in group]
        try:
            found = self._llm.solve_sampled(
                puzzles, self._sampled, identifier=group[0].identifier, **self._options
            )
        except FleetError as error:
            if isinstance(error, InvalidRequest) and error.field not in PUZZLE_FIELDS:
                raise ToolError(error.message) from None
            raise Refused(error.message) from None

        answers = []
        for record, answer in zip(group, found, strict=True):
            body = solution_body(answer, as_string=isinstance(record.puzzle, str))
            answers.append(body.model_dump(mode="json"))
        return answers
