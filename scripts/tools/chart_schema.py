"""The schema of a model in the chart's values: a part of values.schema.json.

It is made of the settings of a model, and of the options that runners declare.
"""

import json
from typing import Any

from shared.settings.models import ModelEntry
from shared.shipped import REPO_ROOT
from shared.tasks.runner_table import AUTO, RUNNERS

SCHEMA = REPO_ROOT / "deploy" / "helm" / "aios-fleet" / "values.schema.json"
_BEGIN = '    "model": {\n'
_END = '    "pool": {\n'
_WIDTH = 100
_FOR_PEOPLE = ("title", "default", "description")


def model_schema() -> dict[str, Any]:
    """Return the JSON schema of an entry of the models."""
    whole = ModelEntry.model_json_schema()
    schema = _plain(whole, whole["$defs"])
    schema["properties"]["runner"] = {"enum": [AUTO, *RUNNERS]}
    schema["properties"]["options"] = options_schema()
    return schema


def options_schema() -> dict[str, Any]:
    """Return the JSON schema of a model's options: all that some runner of ours declares."""
    properties: dict[str, Any] = {}
    for info in RUNNERS.values():
        for name, declared in info.options.model_json_schema().get("properties", {}).items():
            properties[name] = _plain(declared, {})
    return {"type": "object", "additionalProperties": False, "properties": properties}


def schema_with(model: dict[str, Any], text: str) -> str:
    """Return the file with this definition of a model.

    Raise ValueError if the file has no place for it.
    """
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{SCHEMA.name}: expected the definition of a model before that of a pool")
    return f'{before}    "model": {_written(model, indent=4)},\n{end}{after}'


def _plain(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without what only people read, and without null.

    In values null stands for the chart's own default.
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
    """Return JSON: on one line where that fits, else one key a line."""
    line = json.dumps(value)
    if not isinstance(value, dict):
        return line
    if "properties" not in value and indent + len(line) < _WIDTH:
        return line
    space = " " * (indent + 2)
    parts = []
    for key, inner in value.items():
        parts.append(f"{space}{json.dumps(key)}: {_written(inner, indent + 2)}")
    return "{\n" + ",\n".join(parts) + "\n" + " " * indent + "}"
