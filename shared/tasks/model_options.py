"""The options of one model, which its runner declares: from its entry, `--option` and settings."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from shared.settings.layers import SettingsError
from shared.settings.models import GivenOption, ModelEntry
from shared.tasks import runner_table
from shared.tasks.runner_options import OptionError, Options, validated
from shared.tasks.runner_table import AUTO, RUNNERS


def options_of(entry: ModelEntry, settings: Mapping[str, Any], runner: str) -> Options:
    """Return the options of a model that `runner` serves.

    The entry's `options` outrank its fields of the same names, and these the settings. Raise
    SettingsError, whose message names the model, the option, and what is expected.
    """
    declared = runner_table.info_of(runner).options
    values: dict[str, Any] = {}
    for name in declared.model_fields.keys() & _fleet_wide(settings):
        value = getattr(entry, name, None)
        if value is None:
            value = settings[name]
        values[name] = value
    values |= entry.options

    try:
        return validated(declared, values)
    except OptionError as error:
        raise _refusal(entry, f"{error}; its runner is {runner}") from None


def _fleet_wide(settings: Mapping[str, Any]) -> set[str]:
    """Return the settings that are options of our own runners."""
    names: set[str] = set()
    for info in RUNNERS.values():
        names |= info.options.model_fields.keys() & settings.keys()
    return names


def check_options(entries: Sequence[ModelEntry], settings: Mapping[str, Any]) -> None:
    """Raise SettingsError for an option that its model cannot have.

    Where only the files of a model tell its runner, some runner must have an option of that name.
    """
    for entry in entries:
        if entry.runner != AUTO:
            options_of(entry, settings, entry.runner)
        elif entry.options:
            _check_names(entry)


def _check_names(entry: ModelEntry) -> None:
    known = sorted(runner_table.known_options())
    for name in entry.options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            expected = f"{hint}expected one of {', '.join(known)}"
            raise _refusal(entry, f"option {name!r}: no runner has it; {expected}")


def with_options(
    entries: Sequence[ModelEntry],
    given: Sequence[GivenOption],
) -> tuple[ModelEntry, ...]:
    """Return the entries with the values that `--option` gives them.

    Raise SettingsError for an option of a model that is not there, and for one that names no model
    where there are several.
    """
    ids = [entry.id for entry in entries]
    added: dict[str, dict[str, Any]] = {}
    for option in given:
        if option.model is None and len(ids) > 1:
            problem = f"options: which model is {option} for? Several are served"
            raise SettingsError(f"{problem}; expected {ids[0]}:{option}")
        if option.model is not None and option.model not in ids:
            problem = f"options: no model is called {option.model!r}"
            raise SettingsError(f"{problem}; expected one of {', '.join(ids)}")
        options_of_model = added.setdefault(option.model or ids[0], {})
        options_of_model[option.name] = option.value

    changed = []
    for entry in entries:
        options = {**entry.options, **added.get(entry.id, {})}
        changed.append(entry.model_copy(update={"options": options}))
    return tuple(changed)


def _refusal(entry: ModelEntry, problem: str) -> SettingsError:
    return SettingsError(f"model {entry.id!r}: {problem}")
