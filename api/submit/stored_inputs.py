"""The files in a body become artifacts before its work is planned.

A field of type `ByteInput` (`api/schemas/fields.py`) holds base64, a data URL or the id of an
artifact. Here the bytes are stored and the field gets their id, so plans and tasks know ids alone.
"""

import typing
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel

from api.endpoints.context import RequestContext
from api.http.media_types import file_name
from api.redis_timeout import redis_answers
from api.schemas.fields import BYTES
from api.submit.byte_inputs import StoredBytes, byte_input_of
from api.submit.uploads import ScannedUpload
from shared.artifacts.store import Label
from shared.errors import InvalidRequest

Body = TypeVar("Body", bound=BaseModel)
Store = Callable[[str, str], Awaitable[str]]
"""A function from a field's text and name to the id of the artifact that it stands for."""


async def with_stored_inputs(context: RequestContext, body: Body) -> Body:
    """Return the body with an artifact's id in each field that holds bytes.

    The same bytes of a tenant are one artifact, and keep the name that they have. Raise
    InvalidRequest for a field that holds no bytes, ArtifactNotFound, and what `ArtifactStore.put`
    raises.
    """
    front = context.front
    tenant = context.caller.tenant

    async def store(text: str, name: str) -> str:
        given = byte_input_of(text, name=name, max_bytes=front.artifacts.max_bytes)
        async with redis_answers():
            if isinstance(given, StoredBytes):
                return (await front.artifacts.find(tenant, given.artifact_id)).id
            if not given.data:
                raise InvalidRequest(f"{name}: expected at least one byte.", field=name)
            async with front.artifacts.upload(tenant) as upload:
                await ScannedUpload(front, upload).write(given.data, given.media_type)
                return (await upload.keep(input_label(given.media_type))).id

    return await with_ids(body, store)


async def with_ids(body: Body, store: Store) -> Body:
    """Return the body with the id that `store` returns in each field that holds bytes."""
    if not holds_bytes_anywhere(type(body)):
        return body
    return typing.cast(Body, await _stored(body, "", store))


def input_label(media_type: str, name: str = "") -> Label:
    """Return the label of a file that comes with a request. Kept bytes keep their own label."""
    return Label(media_type, file_name(name), purpose="input", is_new=True)


def byte_fields(body: type[BaseModel]) -> list[str]:
    """Return the fields of a body whose own texts hold bytes, without those of its parts."""
    return [name for name, holds_bytes in _fields(body).items() if holds_bytes]


async def _stored(value: Any, name: str, store: Store, *, is_bytes: bool = False) -> Any:
    """Return a value with an id in place of each text that holds bytes."""
    if isinstance(value, BaseModel):
        changed = {}
        for field, holds_bytes in _fields(type(value)).items():
            before = getattr(value, field)
            path = f"{name}.{field}" if name else field
            after = await _stored(before, path, store, is_bytes=holds_bytes)
            if after is not before:
                changed[field] = after
        return value.model_copy(update=changed) if changed else value
    if isinstance(value, list):
        items = []
        for index, item in enumerate(value):
            items.append(await _stored(item, f"{name}.{index}", store, is_bytes=is_bytes))
        is_same = all(one is other for one, other in zip(items, value, strict=True))
        return value if is_same else items
    if is_bytes and isinstance(value, str):
        return await store(value, name)
    return value


@cache
def holds_bytes_anywhere(model: type[BaseModel]) -> bool:
    """Return whether a body of this type has a field that holds bytes, at any depth."""
    fields = model.model_fields.values()
    return any(_fields(model).values()) or any(_has_part(field.annotation) for field in fields)


def _has_part(annotation: Any) -> bool:
    """Return whether an annotation names a model with a field that holds bytes."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return holds_bytes_anywhere(annotation)
    return any(_has_part(part) for part in typing.get_args(annotation))


@cache
def _fields(model: type[BaseModel]) -> dict[str, bool]:
    """Return the fields of a body, and whether the texts in each of them hold bytes."""
    holds_bytes = {}
    for name, field in model.model_fields.items():
        holds_bytes[name] = BYTES in field.metadata or _is_marked(field.annotation)
    return holds_bytes


def _is_marked(annotation: Any) -> bool:
    if typing.get_origin(annotation) is Annotated and BYTES in annotation.__metadata__:
        return True
    return any(_is_marked(part) for part in typing.get_args(annotation))
