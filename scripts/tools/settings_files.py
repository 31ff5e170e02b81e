"""Generate what lists settings, and options of runners: config/default.yaml, the tables of
docs/settings.md, and what the chart's values may say of a model.

    python -m scripts.tools.settings_files

Run it after a setting or an option was added or changed; a test compares the files.
"""

import json
from typing import Any

from pydantic.fields import FieldInfo

from scripts.tools.chart_schema import SCHEMA, model_schema, schema_with
from scripts.tools.generated_pages import code, page_with, table_of
from shared.settings.command_line import FLAG_ALIASES, shown, shown_choices
from shared.settings.layers import env_name, env_names, flag_name, switch_flags, switch_names
from shared.settings.settings import Settings
from shared.settings.types import SECRETS
from shared.shipped import REPO_ROOT
from shared.tasks.runner_table import AUTO, RUNNERS

PAGE = REPO_ROOT / "docs" / "settings.md"
YAML = REPO_ROOT / "config" / "default.yaml"
OPTIONS_MARK = "options: made by python -m scripts.tools.settings_files"
MARK = "made by python -m scripts.tools.settings_files"

_HEAD = """\
# Settings of the fleet. A command-line flag outranks an environment variable (AIOS_<KEY>), which outranks this file.
# Every key is shown with its default; uncomment what you change. `aios serve hrm --print-config` shows what holds.
# Made by python -m scripts.tools.settings_files.
serve:
  hrm:
"""
_ENTRIES = f"""\
    #   each entry is id=path or a mapping; runner is {" | ".join((AUTO, *RUNNERS))}:
    #   [sample=models/sample-hrm-text, {{id: brain, path: brains/actv1, runner: hrm-act, dtype: float32,
    #    quantize: int8, context_window: 256, tokenizer_path: tokenizers/base, options: {{segments: q_halt}}}},
    #    {{id: maths, path: xl, condition: "synth,cot", gpu_required: true}}]
"""
_WIDTH = 32


def default_yaml() -> str:
    """Return config/default.yaml as it should be."""
    text = _HEAD
    for name, field in Settings.model_fields.items():
        text += _yaml_lines(name, field)
    return text


def _yaml_lines(name: str, field: FieldInfo) -> str:
    setting = f"{name}: {_yaml(field.default)}"
    if len(setting) < _WIDTH:
        setting = setting.ljust(_WIDTH)
    else:
        setting += "  "
    text = f"    # {setting}# {_description(field, ' | ')}"
    if name in SECRETS:
        text += f" (better in {env_name(name)})"
    text += "\n"
    if name == "models":
        text += _ENTRIES
    return text


def _yaml(value: Any) -> str:
    """Return the value as YAML: JSON, but for a bare word."""
    if isinstance(value, str) and value.isidentifier():
        return value
    return json.dumps(value)


def _description(field: FieldInfo, separator: str) -> str:
    """Return the description, with the choices behind it."""
    choices = separator.join(shown_choices(field))
    if not choices:
        return str(field.description)
    return f"{field.description}: {choices}"


def table() -> str:
    """Return the settings with their variables, flags and defaults."""
    rows = [_row(name, field) for name, field in Settings.model_fields.items()]
    return table_of(["setting", "variables", "default", ""], rows)


def options_table() -> str:
    """Return the options of all runners, with one row for an option of several."""
    declared: dict[str, FieldInfo] = {}
    runners: dict[str, list[str]] = {}
    for runner, info in RUNNERS.items():
        for name, field in info.options.model_fields.items():
            declared[name] = field
            runners.setdefault(name, []).append(runner)
    rows = []
    for name, field in declared.items():
        default = code(shown(field.default))
        rows.append([code(name), code(*runners[name]), default, _description(field, ", ")])
    return table_of(["option", "runners", "default", ""], rows)


def page() -> str:
    """Return docs/settings.md as it should be."""
    text = page_with(table(), PAGE.read_text(encoding="utf-8"), MARK)
    return page_with(options_table(), text, OPTIONS_MARK)


def chart_schema() -> str:
    """Return the schema of the chart's values as it should be."""
    return schema_with(model_schema(), SCHEMA.read_text(encoding="utf-8"))


def _row(name: str, field: FieldInfo) -> list[str]:
    flags = [flag_name(name), *FLAG_ALIASES.get(name, []), *switch_flags(name)]
    if field.annotation is bool:
        flags.append(flag_name(name).replace("--", "--no-", 1))
    variables = (*env_names(name), *switch_names(name))
    default = code(shown(field.default))
    return [code(*flags), code(*variables), default, _description(field, ", ")]


def main() -> None:
    YAML.write_text(default_yaml(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
    SCHEMA.write_text(chart_schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
