"""Forms of tasks, read from the OpenAPI document of a fleet.

An operation of the document has the tasks that it can be asked for (`x-tasks`), and the schema of
each body. So a task that a plugin adds has a form, too.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from scripts.ui.client import Body

LOCAL_INFERENCE = "/api/inference"
Media = Literal["image", "audio", "video", "any"]
FieldKind = Literal[
    "text", "line", "switch", "choice", "integer", "number", "lines", "series", "file", "json"
]
"""The kinds of fields: `text` is of several lines, `lines` a list of texts, one a line.

A `series` is a list of numbers, or CSV. `json` is anything else.
"""

# A page shows one answer at a time, of the model that is chosen beside it.
_LEFT_OUT = frozenset({"model", "model_id", "task", "pipeline_tag", "stream"})
_MEDIA: tuple[Media, ...] = ("image", "audio", "video")
# Browsers have no larger whole numbers.
_MOST_INTEGER = 2**53 - 1

Schema = Mapping[str, Any]


class FieldError(ValueError):
    """Raised for a text that is no value of its field; the message is for people."""


@dataclass(frozen=True)
class FormField:
    """A field of a body, at the keys of `path`.

    `initial` is the value that the field begins with: its default, or that of an example where the
    body must have the field. `least` and `most` are the bounds of a number, None where it has none.
    `media` is what a file has to be. A list that `may_be_one` is also given as its only text.
    """

    path: tuple[str, ...]
    kind: FieldKind
    about: str
    is_required: bool
    default: Any = None
    initial: Any = None
    least: float | None = None
    most: float | None = None
    choices: tuple[Any, ...] = ()
    media: Media = "any"
    may_be_one: bool = False

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def label(self) -> str:
        if self.media != "any":
            return self.media.capitalize()
        return self.path[-1].replace("_", " ").capitalize()

    @property
    def initial_text(self) -> str:
        """The initial value, for a field in which a person writes it as text."""
        if self.initial is None:
            return ""
        if isinstance(self.initial, str) and self.kind != "json":
            return self.initial
        if self.kind == "lines":
            return "\n".join(map(str, self.initial))
        if self.kind == "series":
            return ", ".join(map(str, self.initial))
        return json.dumps(self.initial, ensure_ascii=False)

    def value_of(self, text: str) -> Any:
        """Return the value that a person has written, None for an empty text. Raise FieldError."""
        if not text.strip():
            return None
        if self.kind == "lines":
            lines = [line for line in text.split("\n") if line.strip()]
            return lines[0] if self.may_be_one and len(lines) == 1 else lines
        if self.kind == "series":
            return _numbers_in(text)
        if self.kind == "json":
            try:
                return json.loads(text)
            except ValueError as error:
                raise FieldError(f"{self.label}: expected JSON; {error}") from None
        return text


@dataclass(frozen=True)
class TaskForm:
    """A way to ask for a task: a path, and the fields of its body.

    `task` is what a model must serve. `fixed` are the fields that no person fills in.
    """

    name: str
    task: str
    about: str
    path: str
    fields: tuple[FormField, ...]
    fixed: Body

    def body(self, values: Mapping[str, Any]) -> Body:
        """Return the body with these values, by the names of the fields.

        Values that are None, and those that are their field's default, are left out.
        """
        body = dict(self.fixed)
        for field in self.fields:
            value = values.get(field.name)
            if value is None or (value == field.default and not field.is_required):
                continue
            part = body
            for key in field.path[:-1]:
                part = part.setdefault(key, {})
            part[field.path[-1]] = value
        return body


def forms_of(document: Schema) -> dict[str, TaskForm]:
    """Return the forms of all tasks in a fleet's OpenAPI document, by their names.

    Those of local inference come first. Then come the paths of tasks that it does not know.
    """
    forms = {}
    for form in _forms_at(document, LOCAL_INFERENCE):
        forms[form.name] = form
    known = {form.task for form in forms.values()}
    for path in document["paths"]:
        for form in _forms_at(document, path):
            if form.task not in known:
                forms.setdefault(form.name, form)
    return forms


def _forms_at(document: Schema, path: str) -> Iterator[TaskForm]:
    operation = document["paths"].get(path, {}).get("post", {})
    rows = operation.get("x-tasks", [])
    if not rows:
        return
    reader = _SchemaReader(document)
    bodies = {}
    for schema in reader.shapes(operation["requestBody"]["content"]["application/json"]["schema"]):
        bodies[schema.get("title")] = schema
    for row in rows:
        body = bodies.get(row["body"])
        if body is None:
            continue
        fixed: Body = {}
        if path == LOCAL_INFERENCE:
            fixed["task"] = row["name"]
        if "stream" in body["properties"]:
            # Then the answer comes with its progress.
            fixed["stream"] = True
        yield TaskForm(
            name=row["name"],
            task=row["task"],
            about=row["about"],
            path=path,
            fields=tuple(reader.fields(body)),
            fixed=fixed,
        )


class _SchemaReader:
    """Reads the fields of bodies from their schemas."""

    def __init__(self, document: Schema) -> None:
        self._schemas: Mapping[str, Schema] = document["components"]["schemas"]

    def shapes(self, schema: Schema) -> list[Schema]:
        """Return the schemas that a value may have, without references, unions and null."""
        if "$ref" in schema:
            return self.shapes(self._schemas[schema["$ref"].rpartition("/")[2]])
        parts = schema.get("anyOf") or schema.get("oneOf")
        if not parts:
            return [] if schema.get("type") == "null" else [schema]
        shapes = []
        for part in parts:
            shapes += self.shapes(part)
        return shapes

    def fields(self, body: Schema) -> Iterator[FormField]:
        """Yield the fields of a body. One that needs no field begins as its example."""
        examples = body.get("examples") or [{}]
        needed = body.get("required") or examples[0].keys()
        yield from self._fields_in(body, (), needed=needed, example=examples[0])

    def _fields_in(
        self, schema: Schema, above: tuple[str, ...], *, needed: Collection[str], example: Any
    ) -> Iterator[FormField]:
        for name, part in schema["properties"].items():
            if name in _LEFT_OUT:
                continue
            path = (*above, name)
            shown = example.get(name) if isinstance(example, dict) else None
            shapes = self.shapes(part)
            if len(shapes) == 1 and "properties" in shapes[0]:
                inner = shapes[0].get("required", ())
                yield from self._fields_in(shapes[0], path, needed=inner, example=shown)
            elif shapes:
                yield _field(path, part, shapes, shown, is_required=name in needed)


def _field(
    path: tuple[str, ...],
    outer: Schema,
    shapes: list[Schema],
    example: Any,
    *,
    is_required: bool,
) -> FormField:
    """Return the field of a value with these shapes. `outer` has its description and default."""
    schema: Schema = {**shapes[0], **outer}
    kind = _kind_of(shapes, is_required=is_required)
    default = outer.get("default")
    initial = default
    if is_required and initial is None:
        initial = example
    media: Media = "any"
    if kind == "file":
        media = _media_of(example)
        initial = None
    least, most = _bounds_of(schema, is_whole=kind == "integer")
    return FormField(
        path=path,
        kind=kind,
        about=outer.get("description") or shapes[0].get("description", ""),
        is_required=is_required,
        default=default,
        initial=initial,
        least=least,
        most=most,
        choices=tuple(_choices_of(shapes)) if kind == "choice" else (),
        media=media,
        may_be_one=any(shape.get("type") == "string" for shape in shapes),
    )


def _kind_of(shapes: list[Schema], *, is_required: bool) -> FieldKind:
    types = {shape.get("type") for shape in shapes}
    items = set()
    for shape in shapes:
        if shape.get("type") == "array":
            items |= _item_types(shape)
    if any("contentEncoding" in shape for shape in shapes) and len(shapes) == 1:
        return "file"
    if any("enum" in shape or "const" in shape for shape in shapes):
        return "choice"
    if types == {"boolean"}:
        return "switch"
    if types == {"integer"}:
        return "integer"
    if types <= {"integer", "number"}:
        return "number"
    if types == {"string"}:
        return "text" if is_required else "line"
    if types <= {"array", "string"} and "string" in items:
        return "lines"
    if types <= {"array", "string"} and items <= {"integer", "number"}:
        return "series"
    return "json"


def _item_types(shape: Schema) -> set[str]:
    items = shape.get("items", {})
    types = set()
    for part in items.get("anyOf", [items]):
        types.add(part.get("type", "any"))
    return types


def _choices_of(shapes: list[Schema]) -> Iterator[Any]:
    for shape in shapes:
        if shape.get("type") == "boolean":
            yield from (False, True)
        elif "const" in shape:
            yield shape["const"]
        else:
            yield from shape.get("enum", ())


def _media_of(example: Any) -> Media:
    """Return what a file has to be, by the data URL of an example."""
    if isinstance(example, str):
        for media in _MEDIA:
            if example.startswith(f"data:{media}/"):
                return media
    return "any"


def _bounds_of(schema: Schema, *, is_whole: bool) -> tuple[float | None, float | None]:
    """Return the least and the greatest value of a number, None where there is no such bound."""
    step = 1 if is_whole else 0.01
    least = schema.get("minimum")
    if "exclusiveMinimum" in schema:
        least = schema["exclusiveMinimum"] + step
    most = schema.get("maximum")
    if "exclusiveMaximum" in schema:
        most = schema["exclusiveMaximum"] - step
    if least is not None and least < -_MOST_INTEGER:
        least = None
    if most is not None and most > _MOST_INTEGER:
        most = None
    return least, most


def _numbers_in(text: str) -> list[float] | str:
    """Return the numbers of a text in one line. A text of several lines is CSV, as it is."""
    if "\n" in text.strip():
        return text
    numbers = []
    for word in text.replace(",", " ").split():
        try:
            numbers.append(json.loads(word))
        except ValueError:
            raise FieldError(f"{word!r} is not a number.") from None
    return numbers
