"""The sets of an evaluation: files of `assets/eval`, one a task, each some requests with answers.

A new set is a file there. Its items are sent as they stand, beside the model and the fields that
all of them share.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from api.evaluation.scorers import SCORERS
from shared.errors import InvalidRequest
from shared.shipped import shipped
from shared.tasks.task_table import TASKS

FOLDER = "assets/eval"


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request of a set, and what its scorer expects of the answer."""

    id: str
    body: dict[str, Any]
    expected: Any = None


class EvalSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The items for one task.

    A model can be asked that does the task `needs`. `body` has the fields that all items share.
    Items that are `is_streamed` have a first token, which is timed. `source` tells how they were
    made.
    """

    task: str
    about: str
    needs: str
    scorer: str
    source: str
    items: tuple[Item, ...]
    path: str = "/api/inference"
    body: dict[str, Any] = {}
    is_streamed: bool = False

    @property
    def digest(self) -> str:
        """Short hash of all that decides the figures: those of other sets are not compared."""
        content = msgspec.json.encode(
            (self.path, self.scorer, self.body, self.items), order="deterministic"
        )
        return hashlib.sha256(content).hexdigest()[:16]

    def body_of(self, item: Item, model: str) -> dict[str, Any]:
        """Return the body of the request for an item."""
        return {**self.body, **item.body, "model": model}


def read_sets(folder: Path | None = None) -> dict[str, EvalSet]:
    """Return the sets of a folder by their tasks, by default those that ship.

    Raise ValueError for a file that is no set.
    """
    if folder is None:
        folder = shipped(FOLDER)
    sets = {}
    for file in sorted(folder.glob("*.json")):
        try:
            found = msgspec.json.decode(file.read_bytes(), type=EvalSet)
        except msgspec.DecodeError as error:
            raise ValueError(f"{file}: {error}") from error
        _check(found, file)
        sets[found.task] = found
    return sets


def _check(found: EvalSet, file: Path) -> None:
    if found.task != file.stem:
        raise ValueError(f"{file}: task: expected {file.stem!r}, got {found.task!r}")
    if found.scorer not in SCORERS:
        known = ", ".join(SCORERS)
        raise ValueError(f"{file}: scorer: expected one of {known}, got {found.scorer!r}")
    if found.needs not in TASKS:
        raise ValueError(f"{file}: needs: expected a task of the table, got {found.needs!r}")
    ids = {item.id for item in found.items}
    if not found.items or len(ids) < len(found.items):
        raise ValueError(f"{file}: items: expected at least one, each with an id of its own")


def chosen_sets(sets: dict[str, EvalSet], tasks: Sequence[str] | None) -> list[EvalSet]:
    """Return the sets of these tasks, all for None. Raise InvalidRequest for an unknown one."""
    if tasks is None:
        return list(sets.values())
    for task in tasks:
        if task not in sets:
            raise InvalidRequest(
                f"tasks: expected some of {', '.join(sets)}, got {task!r}.", field="tasks"
            )
    return [sets[task] for task in dict.fromkeys(tasks)]
