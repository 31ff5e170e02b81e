"""The command line of every role: flags made from the fields of Settings, and how a process starts.

`python -m api`, `python -m worker` and the `aios` command share it, so that all of them accept the
same flags, print the same configuration and answer a bad setting with one line and status 2.
"""

import logging
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import click
from pydantic.fields import FieldInfo

from shared.commands import EXIT_INTERRUPTED as EXIT_INTERRUPTED
from shared.commands import EXIT_OK as EXIT_OK
from shared.commands import Command, Flag, completing, run_command, words_of
from shared.plugins import PluginError
from shared.queue.broker import fault_of_url
from shared.settings.layers import (
    REPEATED,
    env_names,
    flag_name,
    general_variables,
    misspelt_variables,
    switch_flags,
    switch_names,
)
from shared.settings.paths import fault_of
from shared.settings.sections import sections_of
from shared.settings.settings import (
    ModelEntry,
    Resolved,
    Settings,
    SettingsError,
    model_entries,
    resolve,
)
from shared.settings.text import choices_of, mask_secrets
from shared.settings.types import SECRETS
from shared.shipped import shipped
from shared.supervised import report_failure
from shared.tasks.model_options import options_of
from shared.tasks.runner_table import AUTO
from shared.telemetry.logging_setup import fields

# The supervisor does not start a process again that ends with this status before it was ready.
EXIT_BAD_SETTINGS = 2
CONFIG_ENV = "AIOS_CONFIG"
FLAG_ALIASES = {
    "tokenizer_path": ["--tokenizer"],
    "model_path": ["--checkpoint-path", "--hf-checkpoint"],
}
"""Other names of a flag. Only one of a setting's flags may be given."""

Run = Callable[[Settings], int]
_PATHS = ("model_path", "tokenizer_path", "prohibited_terms", "chat_template")
"""Settings whose values shells complete as names of files."""
PROCESS = "Process"
"""The section of flags that are no settings."""

log = logging.getLogger("aios.settings")


def run_role(
    prog: str,
    run: Run,
    argv: Sequence[str] | None = None,
    dry_run: Run | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
) -> int:
    """Parse the flags and call `run(settings)`; for --dry-run call `dry_run(settings)`.

    Return the exit status. A SettingsError, from parsing or from the role itself, is one line on
    stderr and status 2, and so is a PluginError. `defaults` are this command's own, by field name.
    """
    command = role_command(prog, run, dry_run, defaults=defaults)
    return run_command(command, sys.argv[1:] if argv is None else argv, prog)


def role_command(
    name: str,
    run: Run,
    dry_run: Run | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    help: str = "Flags outrank the environment, then YAML.",
    **attributes: Any,
) -> Command:
    """Return the command of a role: its flags are the settings, and `run` gets them."""

    def call(**given: Any) -> int:
        is_dry = given.get("dry_run", False)
        chosen = dry_run if is_dry and dry_run is not None else run
        return run_with_flags(click.get_current_context(), chosen, defaults=defaults)

    params = settings_flags()
    if dry_run is not None:
        params.insert(0, dry_run_flag("load the models, report and exit; serves nothing"))
    return Command(name, callback=call, params=params, help=help, **attributes)


def dry_run_flag(help: str) -> Flag:
    """Return the flag --dry-run of a role."""
    return Flag("--dry-run", is_flag=True, help=help, section=PROCESS)


def run_with_flags(
    context: click.Context, run: Run, *, defaults: Mapping[str, Any] | None = None
) -> int:
    """Resolve the settings from the flags of a command, the environment and YAML, and run it.

    Return the exit status, as `run_role` does.
    """
    values = context.params

    def resolved() -> Resolved:
        given = {name: _given(name, values) for name in Settings.model_fields}
        used = _flags_used(words_of(context))
        return _resolve(given, used, defaults or {}, config=values["config"])

    return _run(context.command_path, resolved, run, prints_config=values["print_config"])


def run_with_settings(prog: str, run: Run, given: Mapping[str, Any]) -> int:
    """Call `run` with settings of the environment, of YAML, and the `given`, by field name.

    A value of None is not given. Return the exit status, as `run_role` does.
    """
    return _run(prog, lambda: _resolve(given, {}, {}), run)


def _run(
    prog: str, resolve_all: Callable[[], Resolved], run: Run, *, prints_config: bool = False
) -> int:
    resolved = None
    try:
        resolved = resolve_all()
        if prints_config:
            print(render_config(resolved))
            return EXIT_OK
        return run(resolved.settings)
    except (SettingsError, PluginError) as error:
        reason = mask_secrets(_with_origin(str(error), resolved))
        print(f"{prog}: {reason}", file=sys.stderr)
        report_failure(reason)
        return EXIT_BAD_SETTINGS
    except click.ClickException:
        raise
    except Exception as error:
        report_failure(mask_secrets(f"{type(error).__name__}: {error}"))
        raise


def redis_url(settings: Settings) -> str:
    """Return the URL of Redis for a role that runs on its own.

    Raise SettingsError if none is given, or if it cannot be used.
    """
    if settings.redis_url is None:
        raise SettingsError(
            "redis_url: expected a URL in --redis-url or AIOS_REDIS_URL (`aios serve hrm` "
            "starts its own)"
        )
    fault = fault_of_url(settings.redis_url)
    if fault is not None:
        remedy = "name one like redis://host:6379/0 by --redis-url or AIOS_REDIS_URL"
        raise settings.refusal(
            "redis_url", f"{settings.redis_url} is no URL of a Redis: {fault}", remedy
        )
    return settings.redis_url


def resolve_environment(defaults: Mapping[str, Any]) -> Settings:
    """Return the settings of a process whose command line is not ours. Raise SettingsError."""
    return _resolve({}, {}, defaults).settings


def tell_of_variables(settings: Settings) -> None:
    """Log settings from variables that other programs use too, and variables that look misspelt.

    HOST is also set by conda, and PORT by many platforms.
    """
    general: dict[str, str] = {}
    for name in Settings.model_fields:
        for variable in general_variables(settings.origin(name)):
            # A child of `aios serve hrm` has the setting from its parent, which has logged it.
            if variable not in os.environ:
                continue
            if name in SECRETS:
                general[variable] = "***"
            else:
                general[variable] = mask_secrets(os.environ[variable])
    if general:
        log.info("settings from general variables", extra=fields(variables=general))
    for name, nearest in misspelt_variables(os.environ, Settings.model_fields).items():
        log.warning("variable sets nothing", extra=fields(variable=name, nearest=nearest))


def _with_origin(problem: str, resolved: Resolved | None) -> str:
    """Return a problem with the origin of its setting, unless the problem names the origin."""
    if resolved is None or "(from " in problem:
        return problem

    # A problem begins with the name of its setting, or with `model ID`.
    name = problem.partition(":")[0]
    if problem.startswith("model "):
        name = "models" if resolved.settings.models else "model_path"
        if ": option " in problem and resolved.settings.options:
            name = "options"
    origin = resolved.origins.get(name, "default")
    if origin == "default":
        return problem
    return f"{problem} (from {origin})"


def render_config(resolved: Resolved) -> str:
    """Return one line for each field: its value and where it came from, passwords masked.

    Lines with the options of models follow, for models that have some of their own.
    """
    values = {}
    for name in Settings.model_fields:
        values[name] = mask_secrets(shown(getattr(resolved.settings, name)))
    name_width = max(len(name) for name in values)
    value_width = min(40, max(len(value) for value in values.values()))

    lines = []
    for name, value in values.items():
        lines.append(f"{name:{name_width}}  {value:{value_width}}  # {resolved.origins[name]}")
    for entry in model_entries(resolved.settings):
        if entry.options:
            options = _shown_options(entry, resolved)
            lines.append(f"# options of model {entry.id}, runner {entry.runner}: {options}")
    return "\n".join(lines)


def _shown_options(entry: ModelEntry, resolved: Resolved) -> str:
    """Return the options of a model as text.

    They are all that its runner declares, or only those that are given if its files choose the
    runner.
    """
    values = entry.options
    if entry.runner != AUTO:
        values = options_of(entry, dict(resolved.settings), entry.runner).model_dump()
    return ", ".join(f"{name}={shown(value)}" for name, value in values.items())


def shown(value: Any) -> str:
    """Return a setting's value as people read it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, tuple):
        return str(value)
    parts = []
    for part in value:
        if isinstance(part, ModelEntry):
            parts.append(f"{part.id}={part.path}")
        else:
            parts.append(str(part))
    return f"[{', '.join(parts)}]"


def _resolve(
    values: Mapping[str, Any],
    flags: Mapping[str, str],
    defaults: Mapping[str, Any],
    *,
    config: str | None = None,
) -> Resolved:
    chosen = config or os.environ.get(CONFIG_ENV)
    path = _default_config_path()
    if chosen:
        path = Path(os.path.expanduser(chosen))
        fault = fault_of(chosen, may_be_directory=False)
        if fault is not None:
            origin = "--config" if config else CONFIG_ENV
            raise SettingsError(
                f"config: cannot read {chosen!r}: {fault} (from {origin}); "
                f"name a YAML file that this process may read by --config or {CONFIG_ENV}"
            )
    return resolve(values, os.environ, path, flags=flags, defaults=defaults)


def _flags_used(words: Sequence[str]) -> dict[str, str]:
    """Return the flag by which each setting was given, by field name.

    Raise SettingsError for two flags of one setting.
    """
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    used: dict[str, str] = {}
    for name in Settings.model_fields:
        flags = [flag_name(name), *FLAG_ALIASES.get(name, ()), *switch_flags(name)]
        matches = [flag for flag in flags if flag in given]
        if len(matches) > 1:
            both = " and ".join(matches)
            raise SettingsError(f"{name}: {both} exclude each other; expected one of them")
        if matches:
            used[name] = matches[0]
    return used


def _default_config_path() -> Path | None:
    """Return `config/default.yaml` of the current directory, else the shipped one, else None."""
    for path in (Path("config", "default.yaml"), shipped("config/default.yaml")):
        if os.path.isfile(path):
            return path
    return None


def settings_flags(taken: Collection[str] = ()) -> list[click.Parameter]:
    """Return the flags of all settings, in sections, and two on the settings themselves.

    Those that are `taken`, as flags of the command's own, are left out.
    """
    flags: list[click.Parameter] = [
        Flag(
            "--config",
            type=click.Path(),
            metavar="FILE",
            help=f"YAML file, section serve.hrm [env: {CONFIG_ENV}]",
            section=PROCESS,
        ),
        Flag(
            "--print-config",
            is_flag=True,
            help="print each setting and its origin, then exit",
            section=PROCESS,
        ),
    ]
    sections = sections_of(list(Settings.model_fields))
    for name, field in Settings.model_fields.items():
        names = [flag_name(name), *FLAG_ALIASES.get(name, [])]
        free = [flag for flag in names if flag not in taken]
        if free:
            flags.append(_flag(name, field, free, sections[name]))
        for switch, value in switch_flags(name).items():
            flags.append(
                Flag(
                    switch,
                    is_flag=True,
                    default=None,
                    help=f"the same as {flag_name(name)} {value}",
                    section=sections[name],
                )
            )
    return flags


def _flag(name: str, field: FieldInfo, flags: Sequence[str], section: str) -> Flag:
    """Return the flag of a setting, whose value is not checked here."""
    words = choices_of(field.annotation)
    attributes: dict[str, Any] = {
        "metavar": name.rsplit("_", 1)[-1].upper(),
        "type": click.Path() if name in _PATHS else click.STRING,
        "shell_complete": completing(words) if words else None,
    }
    names = list(flags)
    if field.annotation is bool:
        attributes = {}
        names = [f"{flag}/--no-{flag.removeprefix('--')}" for flag in flags]
    elif name == "models":
        attributes = {"multiple": True, "metavar": "ID=PATH"}
    elif name in REPEATED:
        attributes = {"multiple": True, "metavar": "NAME=VALUE"}
    # None is a flag that was not given: lower layers decide.
    return Flag(*names, name, default=None, help=_help(name, field), section=section, **attributes)


def _given(name: str, params: Mapping[str, Any]) -> Any:
    """Return the value of a setting as the flags give it; None if they do not."""
    for switch, meaning in switch_flags(name).items():
        if params.get(switch.removeprefix("--").replace("-", "_")):
            return meaning
    value = params.get(name)
    if isinstance(value, tuple):
        return list(value) or None
    return value


def shown_choices(field: FieldInfo) -> list[str]:
    """Return the words that a setting may have as its value, with N for a number.

    Return none for a setting that is no choice.
    """
    words = list(choices_of(field.annotation))
    if words and _may_be_number(field.annotation):
        return ["N", *words]
    return words


def _may_be_number(annotation: Any) -> bool:
    """Return whether a type is int, or a union with int in it."""
    return annotation is int or any(_may_be_number(part) for part in get_args(annotation))


def _help(name: str, field: FieldInfo) -> str:
    text = field.description or ""
    choices = shown_choices(field)
    if choices:
        text += f": {' | '.join(choices)}"
    names = ", ".join((*env_names(name), *switch_names(name)))
    return f"{text} (default {shown(field.default)}) [env: {names}]"
