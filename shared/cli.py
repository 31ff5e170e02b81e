"""Command-line flags made from the fields of Settings, and the frame in which every role's process
starts.

`python -m api`, `python -m worker` and the `aios` command share it, so that all of them accept the
same flags, print the same configuration and answer a bad setting with one line and status 2 (the
supervisor then does not try again).
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

from shared.broker import fault_of_url
from shared.logging_setup import fields
from shared.model_options import options_of
from shared.paths import fault_of
from shared.runner_table import AUTO
from shared.setting_layers import (
    REPEATED,
    env_names,
    flag_name,
    general_variables,
    misspelt_variables,
    switch_flags,
    switch_names,
)
from shared.setting_text import choices_of, mask_secrets
from shared.setting_types import SECRETS
from shared.settings import (
    REPO_ROOT,
    ModelEntry,
    Resolved,
    Settings,
    SettingsError,
    model_entries,
    resolve,
)
from shared.supervised import report_failure

EXIT_OK, EXIT_BAD_SETTINGS = 0, 2
CONFIG_ENV = "AIOS_CONFIG"
FLAG_ALIASES = {
    "tokenizer_path": ["--tokenizer"],
    "model_path": ["--checkpoint-path", "--hf-checkpoint"],
}
"""Other names of a flag. Of all that a setting has, one may be given."""

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
    """Parse the flags, then `run(settings)`, or `dry_run(settings)` for --dry-run where a role has
    one.

    Returns the exit status. A SettingsError, from parsing or from the role itself, is one line on
    stderr and status 2. `defaults` are this command's own, by field name.
    """
    resolved = None
    parser = _parser(prog)
    if dry_run is not None:
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="load the models, report and exit; serves nothing",
        )
    words = _dashed(sys.argv[1:] if argv is None else argv)
    arguments, unknown = parser.parse_known_args(words)
    try:
        if unknown:
            raise _no_such_flag(unknown[0], parser)
        resolved = _resolve(arguments, _flags_used(words), defaults or {})
        if arguments.print_config:
            print(render_config(resolved))
            return EXIT_OK
        chosen = dry_run if dry_run is not None and arguments.dry_run else run
        return chosen(resolved.settings)
    except SettingsError as error:
        reason = mask_secrets(_with_origin(str(error), resolved))
        print(f"{prog}: {reason}", file=sys.stderr)
        report_failure(reason)
        return EXIT_BAD_SETTINGS
    except Exception as error:
        report_failure(mask_secrets(f"{type(error).__name__}: {error}"))
        raise


def redis_url(settings: Settings) -> str:
    """The Redis that a role on its own must be given. Raises SettingsError if there is none."""
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
    """The settings of a process that has no flags of ours. Raises SettingsError."""
    return _resolve(_parser("").parse_args([]), {}, defaults).settings


def tell_of_variables(settings: Settings) -> None:
    """Log which settings came from variables that are not ours alone (HOST is also conda's, PORT
    many a platform's), and which variables seem to be misspelt.
    """
    found: dict[str, str] = {}
    for name in Settings.model_fields:
        for variable in general_variables(settings.origin(name)):
            if (
                variable in os.environ
            ):  # a child of `aios serve hrm` has it from its parent, who has told
                found[variable] = "***" if name in SECRETS else mask_secrets(os.environ[variable])
    if found:
        log.info("settings from general variables", extra=fields(variables=found))
    for name, meant in misspelt_variables(os.environ, Settings.model_fields).items():
        log.warning("variable sets nothing", extra=fields(variable=name, nearest=meant))


def _with_origin(problem: str, resolved: Resolved | None) -> str:
    """What was found to be wrong after all was resolved, and where it came from if that is not said
    yet."""
    name = problem.partition(":")[0]
    if problem.startswith("model ") and resolved is not None:
        name = "models" if resolved.settings.models else "model_path"
        if ": option " in problem and resolved.settings.options:
            name = "options"
    if (
        resolved is None
        or "(from " in problem
        or resolved.origins.get(name, "default") == "default"
    ):
        return problem
    return f"{problem} (from {resolved.origins[name]})"


def render_config(resolved: Resolved) -> str:
    """One line per field, its value and where it came from; passwords masked. Then the options of
    models that have some of their own."""
    rows = [
        (name, mask_secrets(shown(getattr(resolved.settings, name))))
        for name in Settings.model_fields
    ]
    name_width, value_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = []
    for name, value in rows:
        lines.append(
            f"{name:{name_width}}  {value:{min(value_width, 40)}}  # {resolved.origins[name]}"
        )
    for entry in model_entries(resolved.settings):
        if entry.options:
            lines.append(
                f"# options of model {entry.id}, runner {entry.runner}: "
                f"{_shown_options(entry, resolved)}"
            )
    return "\n".join(lines)


def _shown_options(entry: ModelEntry, resolved: Resolved) -> str:
    """All that its runner declares; of a model whose files say the runner, those that are given."""
    values = entry.options
    if entry.runner != AUTO:
        values = options_of(entry, dict(resolved.settings), entry.runner).model_dump()
    return ", ".join(f"{name}={shown(value)}" for name, value in values.items())


def shown(value: Any) -> str:
    """Return a setting's value as people read it."""
    if isinstance(value, tuple):
        parts = (
            f"{part.id}={part.path}" if isinstance(part, ModelEntry) else str(part)
            for part in value
        )
        return f"[{', '.join(parts)}]"
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _resolve(
    arguments: argparse.Namespace, flags: Mapping[str, str], defaults: Mapping[str, Any]
) -> Resolved:
    values = {name: getattr(arguments, name) for name in Settings.model_fields}
    chosen = arguments.config or os.environ.get(CONFIG_ENV)
    path = Path(os.path.expanduser(chosen)) if chosen else _default_config_path()
    fault = fault_of(chosen, may_be_directory=False) if chosen else None
    if fault is not None:
        origin = "--config" if arguments.config else CONFIG_ENV
        remedy = f"name a YAML file that this process may read by --config or {CONFIG_ENV}"
        raise SettingsError(f"config: cannot read {chosen!r}: {fault} (from {origin}); {remedy}")
    return resolve(values, os.environ, path, flags=flags, defaults=defaults)


def _flags_used(words: Sequence[str]) -> dict[str, str]:
    """By which of its flags each setting was given. Raises SettingsError for two that exclude each
    other."""
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    used: dict[str, str] = {}
    for name in Settings.model_fields:
        others = (*FLAG_ALIASES.get(name, ()), *switch_flags(name))
        found = [flag for flag in (flag_name(name), *others) if flag in given]
        if len(found) > 1:
            raise SettingsError(
                f"{name}: {' and '.join(found)} exclude each other; expected one of them"
            )
        used |= dict.fromkeys([name] if found else [], "".join(found))
    return used


def _no_such_flag(word: str, parser: argparse.ArgumentParser) -> SettingsError:
    flag = word.partition("=")[0]
    known = [name for action in parser._actions for name in action.option_strings]
    close = difflib.get_close_matches(flag, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return SettingsError(f"{flag}: there is no such flag; {hint}--help lists those there are")


def _default_config_path() -> Path | None:
    """`config/default.yaml` of the current directory, else of the repository, else None."""
    candidates = (Path("config", "default.yaml"), REPO_ROOT / "config" / "default.yaml")
    return next((path for path in candidates if os.path.isfile(path)), None)


def _dashed(argv: Sequence[str]) -> list[str]:
    """`--model_path=a_b` as `--model-path=a_b`."""
    return [_dashed_flag(word) if word.startswith("--") else word for word in argv]


def _dashed_flag(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


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
        parser.add_argument(
            *flags, dest=name, default=None, help=_help(name, field), **_argument_kind(name, field)
        )
        for flag, value in switch_flags(name).items():
            help_ = f"the same as {flag_name(name)} {value}"
            parser.add_argument(
                flag, dest=name, action="store_const", const=value, default=None, help=help_
            )
    return parser


def _argument_kind(name: str, field: FieldInfo) -> dict[str, Any]:
    if field.annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if name in REPEATED:
        return {"action": "append", "metavar": "ID=PATH" if name == "models" else "NAME=VALUE"}
    return {"metavar": name.rsplit("_", 1)[-1].upper()}


def shown_choices(field: FieldInfo) -> list[str]:
    """Return the words that a setting may be, with N for a number; none for a setting that is no
    choice."""
    words = list(choices_of(field.annotation))
    if words and int in get_args(field.annotation):
        return ["N", *words]
    return words


def _help(name: str, field: FieldInfo) -> str:
    choices = " | ".join(shown_choices(field))
    names = ", ".join((*env_names(name), *switch_names(name)))
    text = (
        f"{field.description}{': ' + choices if choices else ''} (default "
        f"{shown(field.default)}) [env: {names}]"
    )
    return text.replace("%", "%%")
