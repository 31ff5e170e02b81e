"""Pages of the app, and tabs of the page *Solve*, that plugins add."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from shared import plugins
from shared.plugins import PluginError

PAGES_GROUP = "aios.ui_pages"
SUBJECTS_GROUP = "aios.ui_subjects"

Part = TypeVar("Part")


@dataclass
class PluginParts(Generic[Part]):
    """Parts by the names of their entry points, and what is wrong with those that are left out."""

    parts: dict[str, Part] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def plugin_parts(group: str, kind: type[Part], taken: Collection[str]) -> PluginParts[Part]:
    """Return the parts of a group that plugins add.

    The app goes on without a part that cannot be loaded, is no `kind`, or has a name that is
    `taken`.
    """
    found: PluginParts[Part] = PluginParts()
    try:
        entries = plugins.entries(group)
    except PluginError as error:
        found.problems.append(str(error))
        return found
    for name, entry in entries.items():
        if name in taken:
            found.problems.append(f"{group}: {name!r} is a part of the app; choose another name.")
            continue
        try:
            part = plugins.load_entry(group, entry)
        except PluginError as error:
            found.problems.append(str(error))
            continue
        if isinstance(part, kind):
            found.parts[name] = part
        else:
            found.problems.append(f"{group}: {name!r}: expected a {kind.__name__}.")
    return found
