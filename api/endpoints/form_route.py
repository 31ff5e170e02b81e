"""Forms (`multipart/form-data`) in place of JSON, for endpoints whose bodies hold files.

The files of a form become artifacts as they come. The endpoint then reads a body in JSON, with
their ids, so it knows nothing of forms.
"""

import json
import typing
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo
from starlette.datastructures import MutableHeaders

from api.access.caller import caller_of
from api.deps import front_of
from api.http.media_types import is_form, media_type_of
from api.http.middleware import replay
from api.http.multipart import FilePart, Form, read_form
from api.http.request_state import request_state_of
from api.submit.stored_inputs import byte_fields, input_label
from api.submit.uploads import ScannedUpload, admit, keep, pieces_of
from shared.artifacts.store import DEFAULT_MEDIA_TYPE, Artifact, Upload
from shared.errors import InvalidRequest

Handle = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass(frozen=True)
class FormFields:
    """The names of the fields of bodies that hold `files`, and of those that are JSON `objects`."""

    files: tuple[str, ...]
    objects: tuple[str, ...]


def form_fields_of(bodies: Iterable[type[BaseModel]]) -> FormFields | None:
    """Return the fields of a form in place of these bodies, None where no body holds a file."""
    files: dict[str, None] = {}
    objects: dict[str, None] = {}
    texts: set[str] = set()
    for body in bodies:
        holding_bytes = byte_fields(body)
        for name, field in body.model_fields.items():
            if name in holding_bytes:
                files |= dict.fromkeys(_names(name, field))
            elif _is_object(field.annotation):
                objects |= dict.fromkeys(_names(name, field))
            else:
                texts.update(_names(name, field))
    if not files:
        return None
    # What is an object in one body and a text in another is taken as text.
    return FormFields(tuple(files), tuple(name for name in objects if name not in texts))


def _names(name: str, field: FieldInfo) -> list[str]:
    """Return the names by which a field may be given."""
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return [str(choice) for choice in alias.choices]
    return [str(alias or name)]


def _is_object(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(_is_object(part) for part in typing.get_args(annotation))


def form_route(fields: FormFields) -> type[APIRoute]:
    """Return the class of a route that takes forms with these fields as well as JSON."""

    class FormRoute(APIRoute):
        def get_route_handler(self) -> Handle:
            handle = super().get_route_handler()

            async def handle_form(request: Request) -> Response:
                if is_form(request.headers.get("content-type", "")):
                    request = await _in_json(request, fields)
                return await handle(request)

            return handle_form

    return FormRoute


def form_schema(fields: FormFields) -> dict[str, Any]:
    """Return the description of the form for the OpenAPI document."""
    properties: dict[str, Any] = {}
    for name in fields.files:
        properties[name] = {"type": "string", "format": "binary"}
    for name in fields.objects:
        properties[name] = {"type": "string", "contentMediaType": "application/json"}
    return {
        "type": "object",
        "description": "A file, and the other fields of the body as text.",
        "properties": properties,
    }


@dataclass(frozen=True)
class _File:
    """A file of a form that is being uploaded."""

    part: FilePart
    upload: Upload
    scanned: ScannedUpload


async def _in_json(request: Request, fields: FormFields) -> Request:
    """Return the request with a body in JSON that has the ids of the form's files.

    Raise as uploads do, InvalidRequest for a broken form among it.
    """
    front = front_of(request.app)
    caller = await caller_of(request)
    await admit(front, caller, request)
    request_state = request_state_of(request.scope)
    request_state.is_admitted = True

    files: list[_File] = []
    async with AsyncExitStack() as stack:

        async def take(part: FilePart, data: bytes) -> None:
            if not files or files[-1].part is not part:
                upload = await stack.enter_async_context(front.artifacts.upload(caller.tenant))
                files.append(_File(part, upload, ScannedUpload(front, upload)))
            await files[-1].scanned.write(data, part.media_type)

        content_type = request.headers["content-type"]
        form = await read_form(pieces_of(request), content_type, take, files=fields.files)
        if len(files) < len(form.files):
            empty = next(part for part in form.files if part not in [file.part for file in files])
            raise InvalidRequest(f"{empty.field}: expected at least one byte.", field=empty.field)
        artifacts: list[tuple[FilePart, Artifact]] = []
        for file in files:
            declared = file.part.media_type or DEFAULT_MEDIA_TYPE
            media_type = media_type_of(declared, field=file.part.field)
            label = input_label(media_type, file.part.name)
            artifacts.append((file.part, await keep(front, request, file.upload, label, key="")))

    body = _body(form, fields)
    # Two requests with one idempotency key are the same if their files have the same bytes, and
    # bytes that were kept anew have another id.
    digests = [(part, artifact.digest) for part, artifact in artifacts]
    request_state.body = json.dumps(_with_files(body, digests)).encode()
    ids = [(part, artifact.id) for part, artifact in artifacts]
    return with_body(request, json.dumps(_with_files(body, ids)).encode())


def _body(form: Form, fields: FormFields) -> dict[str, Any]:
    """Return the fields of a form without its files. Raise InvalidRequest."""
    body: dict[str, Any] = {**form.fields, **form.lists}
    for name in fields.objects:
        if name not in form.fields:
            continue
        try:
            body[name] = json.loads(form.fields[name])
        except ValueError as error:
            raise InvalidRequest(f"{name}: expected an object in JSON.", field=name) from error
    return body


def _with_files(body: dict[str, Any], files: list[tuple[FilePart, str]]) -> dict[str, Any]:
    """Return the body with the name of a file, or a list of them, in each field with files."""
    names: dict[str, list[str]] = {}
    lists: set[str] = set()
    for part, name in files:
        names.setdefault(part.field, []).append(name)
        if part.is_item or len(names[part.field]) > 1:
            lists.add(part.field)
    filled = dict(body)
    for field, given in names.items():
        filled[field] = given if field in lists else given[0]
    return filled


def with_body(request: Request, body: bytes) -> Request:
    """Return the request with this body in JSON in place of its own."""
    scope = dict(request.scope)
    headers = MutableHeaders(raw=list(scope["headers"]))
    headers["content-type"] = "application/json"
    headers["content-length"] = str(len(body))
    scope["headers"] = headers.raw
    return Request(scope, replay(body, request.receive))
