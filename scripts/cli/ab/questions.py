"""The questions of a comparison, and who judges the answers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from api.routes.extraction import answer_in
from scripts.cli.fleet_tool import ToolError
from shared.settings.text import reason

Grader = Literal["answer", "exact", "contains"]
"""`answer` compares what the answer has in its box or after "the answer is", `exact` the whole text,
`contains` looks for the right answer in it. Spaces at both ends do not count."""


@dataclass(frozen=True)
class Question:
    """A prompt, and the right answer or None if nobody judges it.

    `reference` is a text that follows the prompt, of which the log-likelihood is measured.
    """

    prompt: str
    answer: str | None = None
    reference: str | None = None
    kind: str = ""

    def is_solved_by(self, text: str, grader: Grader) -> bool:
        """Return whether an answer is right. The question must have a right one."""
        assert self.answer is not None
        expected = self.answer.strip()
        if grader == "contains":
            return expected in text
        if grader == "exact":
            return text.strip() == expected
        return (answer_in(text) or text).strip() == expected


def read_questions(file: Path) -> list[Question]:
    """Return the questions of a file: one a line, as text, or as JSON if the name ends in .jsonl.

    A line of JSON has `prompt` and perhaps `answer`, `reference` and `kind`. Raise ToolError for a
    file that cannot be read, has no questions, or has another field.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ToolError(f"{file}: cannot be read: {reason(error)}") from error
    questions = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if file.suffix == ".jsonl":
            questions.append(_question(line, f"{file}, line {number}"))
        else:
            questions.append(Question(line))
    if not questions:
        raise ToolError(f"{file}: expected at least one question")
    return questions


def _question(line: str, place: str) -> Question:
    try:
        values: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ToolError(f"{place}: {error}") from error
    names = set(Question.__dataclass_fields__)
    if not isinstance(values, dict) or "prompt" not in values or values.keys() - names:
        raise ToolError(f"{place}: expected an object of {', '.join(sorted(names))}")
    for name, value in values.items():
        if not isinstance(value, str):
            raise ToolError(f"{place}: {name}: expected a text, got {value!r}")
    return Question(**values)


def graders() -> Sequence[str]:
    return get_args(Grader)
