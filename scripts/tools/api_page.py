"""Generate docs/reference-api.md: every path of the OpenAPI document, and every body's fields.

    python -m scripts.tools.api_page

Run this after an endpoint or a body was added or changed. A test compares the page with the output.
"""

import json
from functools import cache
from typing import Any

from api.endpoints.dialect import Access
from api.http.app import TABLE, create_app
from scripts.tools.generated_pages import code, page_with, table_of
from scripts.tools.schema_words import (
    Schema,
    default_of,
    meaning_of,
    names_in,
    type_of,
)
from shared.errors import FleetError
from shared.queue.broker import Broker, connect
from shared.settings.settings import Settings
from shared.shipped import REPO_ROOT

PAGE = REPO_ROOT / "docs" / "reference-api.md"
ERRORS_MARK = "errors: made by python -m scripts.tools.api_page"
HEADERS_MARK = "headers: made by python -m scripts.tools.api_page"
PATHS_MARK = "paths: made by python -m scripts.tools.api_page"
HIDDEN_MARK = "left out: made by python -m scripts.tools.api_page"
BODIES_MARK = "bodies: made by python -m scripts.tools.api_page"

_LOG_ONLY = 499
"""The status of callers that hung up: it is in logs alone."""


ACCESS = {
    Access.OPEN: "anybody",
    Access.CALLER: "callers",
    Access.KEY: "callers with a key",
    Access.ADMIN: "admins",
}
"""The callers that may call a path, in a word or three."""


@cache
def openapi() -> Schema:
    """Return the OpenAPI document. The front is built, not run: nobody calls its Redis."""
    return create_app(Settings(), Broker(connect("redis://127.0.0.1:1"))).openapi()


def errors_table() -> str:
    """Return a table of the codes of all errors, by their status."""
    rows = []
    for error in sorted(_classes_of_errors(), key=lambda error: (error.status, error.code)):
        if error.status == _LOG_ONLY:
            continue
        meaning = " ".join((error.__doc__ or "").split())
        if error is FleetError:
            meaning = "A fault of the fleet itself. The log has more, under the request's id."
        rows.append([str(error.status), code(error.code), meaning])
    return table_of(["status", "code", ""], rows)


def _classes_of_errors() -> list[type[FleetError]]:
    """Return all classes of errors of `shared.errors`. Each has a code of its own."""
    classes = [FleetError]
    for kind in FleetError.__subclasses__():
        # A plugin may have errors of its own.
        if kind.__module__ == FleetError.__module__:
            classes.append(kind)
    return classes


def headers_table(document: Schema) -> str:
    """Return a table of the headers that all endpoints take which create work."""
    return _parameters_table(common_headers(document))


def common_headers(document: Schema) -> list[Schema]:
    """Return the parameters of a path that creates work: they are the same for all."""
    headers: list[Schema] = document["paths"]["/v1/completions"]["post"]["parameters"]
    return headers


def paths_section(document: Schema) -> str:
    """Return a section for each tag, with a part for each path and method."""
    by_tag: dict[str, list[str]] = {}
    headers = common_headers(document)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            [tag] = operation["tags"]
            part = _operation(method.upper(), path, operation, headers)
            by_tag.setdefault(tag, []).append(part)
    text = ""
    for tag, parts in sorted(by_tag.items()):
        text += f"### Paths: {tag}\n\n" + "\n".join(parts) + "\n"
    return text


def _operation(method: str, path: str, operation: Schema, headers: list[Schema]) -> str:
    """Return the part about one method of one path."""
    text = f"#### {method} {path}\n\n"
    if "description" in operation:
        text += " ".join(operation["description"].split()) + "\n\n"

    entry = TABLE.find(method, path)
    assert entry is not None, path
    text += f"For {ACCESS[entry.access]}."
    parameters = operation.get("parameters", [])
    if parameters[: len(headers)] == headers:
        text += " Takes the [headers of work](#headers-of-work)."
        parameters = parameters[len(headers) :]
    text += "\n\n"
    # The title shows the parameters of the path.
    others = [parameter for parameter in parameters if parameter["in"] != "path"]
    if others:
        text += _parameters_table(others) + "\n"

    rows = []
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        rows.append(["body", code(media_type), _body_of(content)])
    return text + table_of(["", "media type", "fields"], rows + _answers(operation["responses"]))


def _answers(responses: Schema) -> list[list[str]]:
    """Return a row for each answer. Statuses with equal bodies share one."""
    statuses: dict[tuple[str, str], list[str]] = {}
    for status, response in responses.items():
        contents = response.get("content") or {"": {}}
        for media_type, content in contents.items():
            answer = (media_type, _body_of(content))
            statuses.setdefault(answer, []).append(status)
    rows = []
    for (media_type, body), having in statuses.items():
        rows.append([", ".join(having), code(media_type) if media_type else "-", body])
    return rows


def _body_of(content: Schema) -> str:
    schema = content.get("schema")
    if not schema:
        return "-"
    return type_of(schema)


def _parameters_table(parameters: list[Schema]) -> str:
    rows = []
    for parameter in parameters:
        required = [parameter["name"]] if parameter.get("required") else []
        schema = parameter["schema"]
        rows.append(
            [
                code(parameter["name"]),
                parameter["in"],
                type_of(schema),
                default_of(parameter["name"], schema, required),
                parameter.get("description", ""),
            ]
        )
    return table_of(["parameter", "in", "type", "default", ""], rows)


def hidden_table() -> str:
    """Return a table of the paths that are served and are not in the document."""
    rows = []
    for entry in TABLE.entries:
        if not entry.route.include_in_schema:
            methods = " ".join(sorted(entry.route.methods or ()))
            path = entry.route.path.replace(":path}", "}")
            rows.append([code(f"{methods} {path}"), ACCESS[entry.access]])
    return table_of(["method and path", "for"], sorted(rows))


def bodies_section(document: Schema) -> str:
    """Return a table for each body: first those of requests, then those of answers."""
    schemas = document["components"]["schemas"]
    asked = _reachable(_request_bodies(document), schemas)
    text = "### Bodies of requests\n\n"
    for name in sorted(asked):
        text += _body(name, schemas[name], with_defaults=True)
    text += "### Bodies of answers\n\n"
    for name in sorted(set(schemas) - asked):
        text += _body(name, schemas[name], with_defaults=False)
    return text


def _request_bodies(document: Schema) -> list[Any]:
    bodies = []
    for operations in document["paths"].values():
        for operation in operations.values():
            bodies.append(operation.get("requestBody", {}))
    return bodies


def _reachable(bodies: list[Any], schemas: dict[str, Schema]) -> set[str]:
    """Return the names of all schemas in these bodies, and of those that they refer to."""
    found: set[str] = set()
    waiting = names_in(bodies)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting |= names_in(schemas[name])
    return found


def _body(name: str, schema: Schema, *, with_defaults: bool) -> str:
    """Return the part about one schema: its description, its fields, and an example."""
    text = f"#### {name}\n\n"
    if "description" in schema:
        text += " ".join(schema["description"].split()) + "\n\n"
    if "properties" not in schema:
        return text + type_of(schema) + "\n\n"

    rows = []
    for field, inner in schema["properties"].items():
        row = [code(field), type_of(inner)]
        if with_defaults:
            row.append(default_of(field, inner, schema.get("required", [])))
        rows.append([*row, meaning_of(inner)])
    titles = ["field", "type", ""]
    if with_defaults:
        titles = ["field", "type", "default", ""]
    text += table_of(titles, rows) + "\n"
    if with_defaults and schema.get("examples"):
        text += f"```json\n{json.dumps(schema['examples'][0], ensure_ascii=False)}\n```\n\n"
    return text


def page() -> str:
    """Return docs/reference-api.md as it should be."""
    document = openapi()
    text = PAGE.read_text(encoding="utf-8")
    text = page_with(errors_table(), text, ERRORS_MARK)
    text = page_with(headers_table(document), text, HEADERS_MARK)
    text = page_with(paths_section(document), text, PATHS_MARK)
    text = page_with(hidden_table(), text, HIDDEN_MARK)
    return page_with(bodies_section(document), text, BODIES_MARK)


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
