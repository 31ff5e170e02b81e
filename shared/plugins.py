"""Plugins: rows that other code adds to the tables of this project.

A plugin is an installed package with entry points, or a folder with a `plugin.toml` in the folder
that the environment's `AIOS_PLUGINS` names. Both name the same things: `aios.tasks` a `TaskInfo`,
`aios.runners` a function that loads a model, `aios.runner_options` the options that it declares,
`aios.endpoints` a `Dialect`, `aios.ui_pages` an `AppPage` and `aios.ui_subjects` a `Subject` of the
web app.
"""

import importlib
import os
import sys
import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

VARIABLE = "AIOS_PLUGINS"
"""The environment variable with the folder of plugins.

No flag, because the tables must be complete before flags are read.
"""
MANIFEST = "plugin.toml"
KINDS = ("tasks", "runners", "runner_options", "endpoints", "ui_pages", "ui_subjects")
_GROUP = "aios."


class PluginError(Exception):
    """A plugin that cannot be used; the message names it."""


@dataclass(frozen=True)
class Plugin:
    """A plugin, with the entry points that it adds. Their groups are those of packages."""

    name: str
    version: str = ""
    about: str = ""
    entries: tuple[EntryPoint, ...] = field(default=(), repr=False)

    def names(self, kind: str) -> list[str]:
        """Return the names of what it adds of one of the `KINDS`."""
        return sorted(entry.name for entry in self.entries if entry.group == _GROUP + kind)


@cache
def plugins() -> tuple[Plugin, ...]:
    """Return all plugins, packages before folders. Raise PluginError for a folder that is none."""
    packages: dict[str, Plugin] = {}
    for kind in KINDS:
        for entry in entry_points(group=_GROUP + kind):
            name = _package(entry)
            known = packages.get(name)
            if known is None:
                dist = entry.dist
                known = Plugin(name)
                if dist is not None:
                    known = Plugin(name, dist.version, dist.metadata["Summary"] or "")
            packages[name] = Plugin(name, known.version, known.about, (*known.entries, entry))
    return (*packages.values(), *_in_folder(os.environ.get(VARIABLE, "")))


def _in_folder(path: str) -> list[Plugin]:
    """Return the plugins of a folder, whose modules can be imported from now on. "" has none."""
    if not path:
        return []
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise PluginError(f"{VARIABLE}: expected a folder, there is none at {folder}.")
    # Behind all others, so that no plugin takes the place of an installed module.
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return [_read(file) for file in sorted(folder.glob(f"*/{MANIFEST}"))]


def _read(file: Path) -> Plugin:
    """Return the plugin that a manifest describes. Raise PluginError, which names the file."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PluginError(f"{file} cannot be read: {error}") from error
    entries: list[EntryPoint] = []
    for key, value in content.items():
        if key in ("version", "about") and isinstance(value, str):
            continue
        if key not in KINDS or not isinstance(value, dict):
            expected = f"version and about (texts), and the tables {', '.join(KINDS)}"
            raise PluginError(f"{file}: {key}: expected {expected}.")
        for name, target in value.items():
            if not isinstance(target, str) or ":" not in target:
                raise PluginError(f"{file}: {key}.{name}: expected a text as module:attribute.")
            entries.append(EntryPoint(name, target, _GROUP + key))
    about = content.get("about", "")
    return Plugin(file.parent.name, content.get("version", ""), about, tuple(entries))


@cache
def entries(group: str) -> dict[str, EntryPoint]:
    """Return the entry points by name. Raise PluginError if two plugins have the same name."""
    by_name: dict[str, EntryPoint] = {}
    owners: dict[str, str] = {}
    for plugin in plugins():
        for entry in plugin.entries:
            if entry.group != group:
                continue
            first = by_name.setdefault(entry.name, entry)
            owner = owners.setdefault(entry.name, plugin.name)
            # Two entries that name the same code do no harm.
            if first.value != entry.value:
                raise PluginError(
                    f"{group}: {owner} and {plugin.name} both add {entry.name!r}; remove one."
                )
    return by_name


def load(group: str) -> dict[str, Any]:
    """Return the objects that the entry points name, imported, by name.

    Raise PluginError, with the plugin and its error, where an import fails.
    """
    return {name: load_entry(group, entry) for name, entry in entries(group).items()}


def load_entry(group: str, entry: EntryPoint) -> Any:
    """Return the object that one entry point of a group names, imported.

    Raise PluginError, with the plugin and its error, where the import fails.
    """
    try:
        return entry.load()
    except Exception as error:
        # Foreign code may raise anything while it is imported.
        problem = f"{type(error).__name__}: {error}"
        owner = next(plugin.name for plugin in plugins() if entry in plugin.entries)
        raise PluginError(
            f"{group}: {entry.name!r} of {owner} cannot be loaded: {problem}"
        ) from error


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
