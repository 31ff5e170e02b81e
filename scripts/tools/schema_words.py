"""A JSON schema in words: the type of a value with its bounds, and the rows of an object's table.

References become links to the headings of the page that `api_page.py` makes.
"""

import json
from typing import Any

from scripts.tools.generated_pages import code

Schema = dict[str, Any]

_FIRST_LARGE = 2**31 - 1
"""From here on a bound is written as a power of two, if it is next to one."""


def type_of(schema: Schema) -> str:
    """Return the type of a value, as "integer (1 to 16)" or a link to an object's table."""
    if "$ref" in schema:
        return link_to(name_of(schema))
    if "const" in schema:
        return code(json.dumps(schema["const"]))
    if "enum" in schema:
        return ", ".join(code(json.dumps(value)) for value in schema["enum"])
    if "anyOf" in schema or "oneOf" in schema:
        return _choices(schema) + _counted(schema, "Items", "")
    if "allOf" in schema:
        return " and ".join(type_of(part) for part in schema["allOf"])
    return _plain(schema)


def meaning_of(schema: Schema) -> str:
    """Return the description of a field, else those of its alternatives."""
    if "description" in schema:
        return _one_line(schema["description"])
    meanings = []
    for part in _parts(schema):
        if "description" in part:
            meanings.append(_one_line(part["description"]))
    return " ".join(meanings)


def default_of(name: str, schema: Schema, required: list[str]) -> str:
    """Return "required", or the default of a field as JSON, or a dash where it has none."""
    if name in required:
        return "required"
    if schema.get("default") is None:
        return "-"
    return code(json.dumps(schema["default"]))


def names_in(schema: Any) -> set[str]:
    """Return the names of all schemas that this one refers to, wherever in it they stand."""
    names: set[str] = set()
    if isinstance(schema, dict):
        for key, inner in schema.items():
            if key == "$ref":
                names.add(name_of(schema))
            else:
                names |= names_in(inner)
    elif isinstance(schema, list):
        for inner in schema:
            names |= names_in(inner)
    return names


def name_of(reference: Schema) -> str:
    """Return the name of the schema to which a `$ref` leads."""
    return str(reference["$ref"].rpartition("/")[2])


def link_to(name: str) -> str:
    """Return a link to the table of this schema."""
    return f"[{name}](#{name.lower()})"


def _parts(schema: Schema) -> list[Schema]:
    parts: list[Schema] = schema.get("anyOf") or schema.get("oneOf") or []
    return parts


def _choices(schema: Schema) -> str:
    """Return the types of a union, each once, null last."""
    words: list[str] = []
    has_null = False
    for part in _parts(schema):
        if part.get("type") == "null":
            has_null = True
            continue
        word = type_of(part)
        if word not in words:
            words.append(word)
    if has_null:
        words.append("null")
    return " or ".join(words)


def _plain(schema: Schema) -> str:
    kind = schema.get("type", "anything")
    if kind in ("integer", "number"):
        return f"{kind}{_range(schema)}"
    if kind == "string":
        return _string(schema)
    if kind == "array":
        return _array(schema)
    if kind == "object":
        return _object(schema)
    return str(kind)


def _range(schema: Schema) -> str:
    least = schema.get("minimum")
    above = schema.get("exclusiveMinimum")
    most = schema.get("maximum")
    below = schema.get("exclusiveMaximum")
    words: list[str] = []
    if above is not None:
        words.append(f"above {_number(above)}")
    if least is not None and most is not None:
        words.append(f"{_number(least)} to {_number(most)}")
    elif least is not None:
        words.append(f"at least {_number(least)}")
    elif most is not None:
        words.append(f"at most {_number(most)}")
    if below is not None:
        words.append(f"below {_number(below)}")
    return _in_brackets(words)


def _number(value: float) -> str:
    """Return a bound: whole numbers without a point, large ones as powers of two."""
    if value != int(value):
        return repr(value)
    whole = int(value)
    if abs(whole) < _FIRST_LARGE:
        return str(whole)
    sign = "-" if whole < 0 else ""
    magnitude = abs(whole)
    if magnitude.bit_count() == 1:
        return f"{sign}2^{magnitude.bit_length() - 1}"
    if (magnitude + 1).bit_count() == 1:
        return f"{sign}2^{magnitude.bit_length()} - 1"
    return str(whole)


def _string(schema: Schema) -> str:
    if schema.get("format") == "binary":
        return "bytes"
    words = "string"
    if "contentMediaType" in schema:
        words += f" of {schema['contentMediaType']}"
    words += _counted(schema, "Length", "character")
    if "pattern" in schema:
        words += f" as {code(schema['pattern'])}"
    return words


def _array(schema: Schema) -> str:
    if "prefixItems" in schema:
        entries = ", ".join(type_of(part) for part in schema["prefixItems"])
        return f"[{entries}]"
    words = f"array{_counted(schema, 'Items', '')}"
    if schema.get("items"):
        words += f" of {type_of(schema['items'])}"
    return words


def _object(schema: Schema) -> str:
    words = f"object{_counted(schema, 'Properties', 'key')}"
    values = schema.get("additionalProperties")
    if isinstance(values, dict) and values:
        words += f" of {type_of(values)}"
    elif "properties" in schema:
        words += f" with {_fields(schema['properties'])}"
    return words


def _fields(properties: dict[str, Schema]) -> str:
    """Return the names of fields, each with its value if it has only one."""
    fields = []
    for name, schema in properties.items():
        field = code(name)
        if "const" in schema:
            field += f" {type_of(schema)}"
        fields.append(field)
    return ", ".join(fields)


def _counted(schema: Schema, of: str, noun: str) -> str:
    """Return how many there may be, as " (1 to 16 characters)"; nothing where any number may."""
    least = schema.get(f"min{of}")
    most = schema.get(f"max{of}")
    if least is not None and most is not None:
        words = f"{least} to {most}"
    elif least is not None:
        words = f"at least {least}"
    elif most is not None:
        words = f"at most {most}"
    else:
        return ""
    if noun and (most or least) == 1:
        words += f" {noun}"
    elif noun:
        words += f" {noun}s"
    return _in_brackets([words])


def _in_brackets(words: list[str]) -> str:
    if not words:
        return ""
    return f" ({', '.join(words)})"


def _one_line(text: str) -> str:
    return " ".join(text.split())
