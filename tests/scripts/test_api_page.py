"""docs/reference-api.md has every path and every field of the OpenAPI document, as they are."""

import json
import re
from typing import Any

import pytest

from scripts.tools.api_page import PAGE, errors_table, openapi, page
from scripts.tools.schema_words import default_of, meaning_of, type_of

SECTIONS = re.compile(r"^#### (.+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi()


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    """Return the parts of the page by their titles: paths with a method, and bodies."""
    _, *parts = SECTIONS.split(PAGE.read_text(encoding="utf-8"))
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_it_is_that_of_today() -> None:
    """The page is up to date; `python -m scripts.tools.api_page` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_operation_names_its_bodies_and_statuses(
    document: dict[str, Any], sections: dict[str, str]
) -> None:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            part = sections[f"{method.upper()} {path}"]
            for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(operation)):
                assert f"[{name}](#{name.lower()})" in part
            for status in operation["responses"]:
                assert re.search(rf"^\| [^|]*\b{status}\b", part, re.MULTILINE), (path, status)


def test_every_field_is_a_row(document: dict[str, Any], sections: dict[str, str]) -> None:
    for name, schema in document["components"]["schemas"].items():
        for field in schema.get("properties", {}):
            assert f"\n| `{field}` | " in sections[name], (name, field)


def test_bounds_defaults_and_an_example_are_told(sections: dict[str, str]) -> None:
    completions = sections["CompletionRequest"]
    assert "| `temperature` | number (0 to 2) | `1.0` | 0 is greedy. |" in completions
    assert "| `n` | integer (1 to 16) | `1` | Completions of each prompt. |" in completions
    assert re.search(r"^\| `prompt` \| string .* \| required \| \|$", completions, re.MULTILINE)
    [example] = re.findall(r"```json\n(.*)\n```", completions)
    assert "prompt" in json.loads(example)
    assert "For admins." in sections["GET /v1/fleet"]
    assert "headers of work" in sections["POST /v1/completions"]
    assert "headers of work" not in sections["GET /v1/models"]


def test_every_code_of_an_error_has_a_meaning() -> None:
    rows = errors_table().splitlines()[2:]
    assert all(re.fullmatch(r"\| [45]\d\d \| `\w+` \| .{10,} \|", row) for row in rows)
    assert any(row.startswith("| 429 | `queue_full` | ") for row in rows)
    assert "499" not in "".join(rows)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 0.0, "maximum": 2147483647.0}, "integer (0 to 2^31 - 1)"),
        ({"type": "number", "exclusiveMinimum": 0.5}, "number (above 0.5)"),
        ({"type": "integer", "exclusiveMaximum": 2.0**64}, "integer (below 2^64)"),
        ({"type": "string", "minLength": 1}, "string (at least 1 character)"),
        ({"type": "string", "maxLength": 9, "pattern": "a"}, "string (at most 9 characters) as `a`"),
        ({"type": "array", "maxItems": 2, "items": {"type": "null"}}, "array (at most 2) of null"),
        ({"type": "object", "additionalProperties": {"type": "null"}}, "object of null"),
        ({"anyOf": [{"type": "null"}, {"$ref": "#/x/Box"}]}, "[Box](#box) or null"),
        ({"enum": ["a", 1]}, '`"a"`, `1`'),
        ({"const": "batch", "type": "string"}, '`"batch"`'),
        ({}, "anything"),
    ],
)  # fmt: skip
def test_types_in_words(schema: dict[str, Any], words: str) -> None:
    assert type_of(schema) == words


def test_a_description_may_stand_in_an_alternative() -> None:
    schema = {"anyOf": [{"type": "string", "description": "Of a\nmodel."}, {"type": "null"}]}
    assert meaning_of(schema) == "Of a model."
    assert meaning_of(schema | {"description": "Its own."}) == "Its own."
    assert default_of("a", schema | {"default": None}, []) == "-"
    assert default_of("a", schema, ["a"]) == "required"
