"""Generate the files that list settings and options of runners.

    python -m scripts.tools.settings_files

They are config/default.yaml, the tables of docs/settings.md, and the definition of a model in the
JSON schema of the chart's values. Run this after a setting or an option was added or changed. A
test compares the files with the output.
"""

import json
from typing import Any

from pydantic.fields import FieldInfo

from scripts.tools.generated_pages import code, page_with, table_of
from shared.settings.command_line import FLAG_ALIASES, shown, shown_choices
from shared.settings.layers import env_name, env_names, flag_name, switch_flags, switch_names
from shared.settings.models import ModelEntry
from shared.settings.settings import Settings
from shared.settings.types import SECRETS
from shared.shipped import REPO_ROOT
from shared.tasks.runner_table import AUTO, RUNNERS

SCHEMA = REPO_ROOT / "deploy" / "helm" / "aios-fleet" / "values.schema.json"
_BEGIN = '    "model": {\n'
_END = '    "pool": {\n'
_SCHEMA_WIDTH = 100
_FOR_PEOPLE = ("title", "default", "description")


def model_schema() -> dict[str, Any]:
    """Return the JSON schema of an entry of the setting `models`."""
    whole = ModelEntry.model_json_schema()
    schema = _plain(whole, whole["$defs"])
    schema["properties"]["runner"] = {"enum": [AUTO, *RUNNERS]}
    schema["properties"]["options"] = options_schema()
    return schema


def options_schema() -> dict[str, Any]:
    """Return the JSON schema of a model's options: those of all runners together."""
    properties: dict[str, Any] = {}
    for info in RUNNERS.values():
        declared = info.options.model_json_schema().get("properties", {})
        for name, schema in declared.items():
            properties[name] = _plain(schema, {})
    return {"type": "object", "additionalProperties": False, "properties": properties}


def schema_with(model: dict[str, Any], text: str) -> str:
    """Return the chart's schema `text` with this definition of a model.

    Raise ValueError if the text has no definition of a model before that of a pool.
    """
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{SCHEMA.name}: expected the definition of a model before that of a pool")
    return f'{before}    "model": {_written(model, indent=4)},\n{end}{after}'


def _plain(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without references, without texts for people, and without null.

    In the chart's values null stands for the chart's default, so the chart does not need it here.
    """
    if "anyOf" in node:
        [node] = [choice for choice in node["anyOf"] if choice.get("type") != "null"]
    if "$ref" in node:
        node = definitions[node["$ref"].rpartition("/")[2]]
    schema: dict[str, Any] = {}
    # These three come first, in this order; the others follow as they are.
    for key in ("type", "additionalProperties", "properties", *node):
        if key in node and key not in (*_FOR_PEOPLE, "$defs"):
            schema[key] = node[key]
    if "enum" in schema:
        schema.pop("type", None)
    if "properties" in schema:
        properties = {}
        for name, inner in node["properties"].items():
            properties[name] = _plain(inner, definitions)
        schema["properties"] = properties
    return schema


def _written(value: Any, indent: int) -> str:
    """Return the value as JSON, on one line where that fits, else with one key a line."""
    line = json.dumps(value)
    if not isinstance(value, dict):
        return line
    if "properties" not in value and indent + len(line) < _SCHEMA_WIDTH:
        return line
    space = " " * (indent + 2)
    parts = []
    for key, inner in value.items():
        parts.append(f"{space}{json.dumps(key)}: {_written(inner, indent + 2)}")
    return "{\n" + ",\n".join(parts) + "\n" + " " * indent + "}"


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
    #   [sample=models/hrm-text-math, {{id: brain, path: brains/actv1, runner: hrm-act, dtype: float32,
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
    """Return the commented line of a setting; behind that of `models` are examples of entries."""
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
    """Return the value as YAML: a word as it is, any other value as JSON."""
    if isinstance(value, str) and value.isidentifier():
        return value
    return json.dumps(value)


def _description(field: FieldInfo, separator: str) -> str:
    """Return the description of a setting or option, with its choices behind it."""
    choices = separator.join(shown_choices(field))
    if not choices:
        return str(field.description)
    return f"{field.description}: {choices}"


def table() -> str:
    """Return a table of the settings with their flags, variables and defaults."""
    rows = [_row(name, field) for name, field in Settings.model_fields.items()]
    return table_of(["setting", "variables", "default", ""], rows)


def options_table() -> str:
    """Return a table of the options of all runners.

    An option that means the same for several runners has one row.
    """
    runners: dict[tuple[str, str, str], list[str]] = {}
    for runner, info in RUNNERS.items():
        for name, field in info.options.model_fields.items():
            meaning = (name, code(shown(field.default)), _description(field, ", "))
            runners.setdefault(meaning, []).append(runner)
    rows = []
    for (name, default, description), having in runners.items():
        rows.append([code(name), code(*having), default, description])
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
