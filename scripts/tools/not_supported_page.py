"""Generate the tables of docs/not-supported.md: refused fields of requests, and refused variables.

    python -m scripts.tools.not_supported_page

Run this after a field or a variable that is refused was added or changed. A test compares the page
with the output.
"""

import json
from collections.abc import Iterator

from api.schemas.fields import Refused, RequestBody
from scripts.tools.api_page import openapi
from scripts.tools.generated_pages import code, page_with, table_of
from scripts.tools.schema_words import Schema, names_in
from shared.settings.layers import NOT_OBEYED
from shared.shipped import REPO_ROOT

PAGE = REPO_ROOT / "docs" / "not-supported.md"
FIELDS_MARK = "fields: made by python -m scripts.tools.not_supported_page"
VARIABLES_MARK = "variables: made by python -m scripts.tools.not_supported_page"


def fields_table() -> str:
    """Return a table of the fields that endpoints refuse.

    Fields that the same paths refuse, and that may have the same values, share a row.
    """
    document = openapi()
    paths: dict[tuple[str, str], list[str]] = {}
    for path, operations in document["paths"].items():
        # A job's body is that of an endpoint.
        if path == "/v1/jobs" or "post" not in operations:
            continue
        for refusal in _refused_at(operations["post"], document["components"]["schemas"]):
            paths.setdefault(refusal, []).append(path)

    fields: dict[tuple[str, str], list[str]] = {}
    for (field, allowed), having in paths.items():
        fields.setdefault((code(*having), allowed), []).append(field)
    rows = []
    for (having_code, allowed), names in fields.items():
        rows.append([having_code, code(*names), allowed])
    return table_of(["at", "field", "may be"], sorted(rows))


def _refused_at(operation: Schema, schemas: dict[str, Schema]) -> list[tuple[str, str]]:
    """Return the refused fields of an operation's bodies, each with the values that it may have."""
    refused = refused_fields()
    found: dict[tuple[str, str], None] = {}
    for name in sorted(names_in(operation.get("requestBody", {}))):
        for prefix, inner in _parts_of(name, schemas):
            for field, harmless in refused.get(inner, {}).items():
                found[f"{prefix}{field}", code(*map(json.dumps, harmless))] = None
    return list(found)


def _parts_of(name: str, schemas: dict[str, Schema], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield a body and all bodies within it, each with the fields that lead to it: `options.`."""
    yield prefix, name
    for field, schema in schemas[name].get("properties", {}).items():
        for inner in sorted(names_in(schema)):
            yield from _parts_of(inner, schemas, f"{prefix}{field}.")


def refused_fields() -> dict[str, Refused]:
    """Return the fields that each body refuses, by the name of its class."""
    found: dict[str, Refused] = {}
    waiting: list[type[RequestBody]] = [RequestBody]
    while waiting:
        body = waiting.pop()
        waiting += body.__subclasses__()
        refused: Refused | None = getattr(body, "refused", None)
        if refused is not None:
            found[body.__name__] = refused
    return found


def variables_table() -> str:
    """Return a table of the environment variables that stop a start."""
    rows = []
    for name, (harmless, reason) in NOT_OBEYED.items():
        rows.append([code(name), code(*harmless), reason])
    return table_of(["variable", "may be", "why"], rows)


def page() -> str:
    """Return docs/not-supported.md as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    text = page_with(fields_table(), text, FIELDS_MARK)
    return page_with(variables_table(), text, VARIABLES_MARK)


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
