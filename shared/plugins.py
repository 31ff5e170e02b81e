"""Plugins: rows that installed packages add to the tables of this project, by entry points.

`aios.tasks` names a `TaskInfo`, `aios.runners` a function that loads a model, `aios.endpoints` a
`Dialect`.
"""

import importlib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any


class PluginError(Exception):
    """A package that is installed and cannot be used; the message names it."""


@cache
def entries(group: str) -> dict[str, EntryPoint]:
    """Return the entry points by name. Raise PluginError if two packages have the same name."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        before = found.setdefault(entry.name, entry)
        if before.value != entry.value:
            raise PluginError(
                f"{group}: {_package(before)} and {_package(entry)} both add "
                f"{entry.name!r}; remove one."
            )
    return found


def load(group: str) -> dict[str, Any]:
    """Import what the entry points name. Raise PluginError with the package and its error."""
    found = {}
    for name, entry in entries(group).items():
        try:
            found[name] = entry.load()
        except Exception as error:  # foreign code
            problem = f"{type(error).__name__}: {error}"
            raise PluginError(
                f"{group}: {name!r} of {_package(entry)} cannot be loaded: {problem}"
            ) from error
    return found


def import_target(target: str) -> Any:
    """Import what `module:attribute` names: the form of entry points, in which our own tables name
    code too."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value
