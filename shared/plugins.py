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
    by_name: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        first = by_name.setdefault(entry.name, entry)
        # Two entries that name the same code do no harm.
        if first.value != entry.value:
            raise PluginError(
                f"{group}: {_package(first)} and {_package(entry)} both add "
                f"{entry.name!r}; remove one."
            )
    return by_name


def load(group: str) -> dict[str, Any]:
    """Return the objects that the entry points name, imported, by name.

    Raise PluginError, with the package and its error, where an import fails.
    """
    loaded = {}
    for name, entry in entries(group).items():
        try:
            loaded[name] = entry.load()
        except Exception as error:
            # Foreign code may raise anything while it is imported.
            problem = f"{type(error).__name__}: {error}"
            raise PluginError(
                f"{group}: {name!r} of {_package(entry)} cannot be loaded: {problem}"
            ) from error
    return loaded


def import_target(target: str) -> Any:
    """Return the object that `module:attribute` names, imported.

    This is the form of entry points, and our own tables name code in it as well.
    """
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _package(entry: EntryPoint) -> str:
    """Return the name of the package that has an entry point."""
    if entry.dist is None:
        return entry.value
    return entry.dist.name
