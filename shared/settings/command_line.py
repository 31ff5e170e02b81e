"""The command line of every role: flags made from the fields of Settings, and how a process starts.

`python -m api`, `python -m worker` and the `aios` command share it, so that all of them accept the
same flags, print the same configuration and answer a bad setting with one line and status 2.
"""

import argparse
import difflib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

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

EXIT_OK = 0
# The supervisor does not start a process again that ends with this status before it was ready.
EXIT_BAD_SETTINGS = 2
# The status that a shell reports after SIGINT.
EXIT_INTERRUPTED = 130
CONFIG_ENV = "AIOS_CONFIG"
FLAG_ALIASES = {
    "tokenizer_path": ["--tokenizer"],
    "model_path": ["--checkpoint-path", "--hf-checkpoint"],
}
"""Other names of a flag. Only one of a setting's flags may be given."""

Run = Callable[[Settings], int]

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
    resolved = None
    parser = _parser(prog)
    if dry_run is not None:
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="load the models, report and exit; serves nothing",
        )
    if argv is None:
        argv = sys.argv[1:]
    words = _dashed(argv)
    arguments, unknown = parser.parse_known_args(words)
    try:
        if unknown:
            raise _no_such_flag(unknown[0], parser)
        resolved = _resolve(arguments, _flags_used(words), defaults or {})
        if arguments.print_config:
            print(render_config(resolved))
            return EXIT_OK
        if dry_run is not None and arguments.dry_run:
            return dry_run(resolved.settings)
        return run(resolved.settings)
    except (SettingsError, PluginError) as error:
        reason = mask_secrets(_with_origin(str(error), resolved))
        print(f"{prog}: {reason}", file=sys.stderr)
        report_failure(reason)
        return EXIT_BAD_SETTINGS
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
    return _resolve(_parser("").parse_args([]), {}, defaults).settings


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
    arguments: argparse.Namespace, flags: Mapping[str, str], defaults: Mapping[str, Any]
) -> Resolved:
    values = {name: getattr(arguments, name) for name in Settings.model_fields}
    chosen = arguments.config or os.environ.get(CONFIG_ENV)
    path = _default_config_path()
    if chosen:
        path = Path(os.path.expanduser(chosen))
        fault = fault_of(chosen, may_be_directory=False)
        if fault is not None:
            origin = "--config" if arguments.config else CONFIG_ENV
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


def _no_such_flag(word: str, parser: argparse.ArgumentParser) -> SettingsError:
    flag = word.partition("=")[0]
    known: list[str] = []
    for action in parser._actions:
        known += action.option_strings
    close = difflib.get_close_matches(flag, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return SettingsError(f"{flag}: there is no such flag; {hint}--help lists those there are")


def _default_config_path() -> Path | None:
    """Return `config/default.yaml` of the current directory, else the shipped one, else None."""
    for path in (Path("config", "default.yaml"), shipped("config/default.yaml")):
        if os.path.isfile(path):
            return path
    return None


def _dashed(argv: Sequence[str]) -> list[str]:
    """Return the words with dashes in flags: `--model-path=a_b` for `--model_path=a_b`."""
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            words.append(name.replace("_", "-") + equals + value)
        else:
            words.append(word)
    return words


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, allow_abbrev=False, description="Flags outrank the environment, then YAML."
    )
    parser.add_argument(
        "--config", metavar="FILE", help=f"YAML file, section serve.hrm [env: {CONFIG_ENV}]"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print each setting and its origin, then exit"
    )
    for name, field in Settings.model_fields.items():
        flags = [flag_name(name), *FLAG_ALIASES.get(name, [])]
        # None is a flag that was not given: lower layers decide.
        parser.add_argument(
            *flags, dest=name, default=None, help=_help(name, field), **_argument_kind(name, field)
        )
        for flag, value in switch_flags(name).items():
            parser.add_argument(
                flag,
                dest=name,
                action="store_const",
                const=value,
                default=None,
                help=f"the same as {flag_name(name)} {value}",
            )
    return parser


def _argument_kind(name: str, field: FieldInfo) -> dict[str, Any]:
    """Return the arguments by which argparse reads the flag of a setting."""
    if field.annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if name == "models":
        return {"action": "append", "metavar": "ID=PATH"}
    if name in REPEATED:
        return {"action": "append", "metavar": "NAME=VALUE"}
    return {"metavar": name.rsplit("_", 1)[-1].upper()}


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
    text += f" (default {shown(field.default)}) [env: {names}]"
    # argparse would read a single % as the beginning of a placeholder.
    return text.replace("%", "%%")
