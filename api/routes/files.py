"""`/v1/files` as the OpenAI clients expect it: files are artifacts of the caller's tenant."""

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import WithJsonSchema

from api.access.caller import CallerDep
from api.deps import FrontDep, RequestStateDep
from api.endpoints.dialect import Dialect
from api.http.error_format import OPENAI
from api.http.media_types import FORM, media_type_of
from api.http.multipart import FilePart, Form, read_form
from api.schemas.errors import OpenAIErrorBody, Responses, errors_of
from api.schemas.files import (
    FileDeleted,
    FileForm,
    StoredFile,
    StoredFiles,
    request_body,
    stored_file,
)
from api.submit.request_options import KeyDep
from api.submit.uploads import ScannedUpload, admit, bytes_of, keep, label_of, pieces_of
from shared.artifacts.store import DEFAULT_MEDIA_TYPE
from shared.errors import InvalidRequest

router = APIRouter(prefix="/v1/files", tags=["files"], responses=errors_of(OpenAIErrorBody))

PATH = "/v1/files"
_ANY: dict[str, Any] = {"*/*": {}}
BYTES: Responses = {
    200: {"description": "The bytes, with the media type they came with.", "content": _ANY},
    206: {"description": "The part that `Range` asks for.", "content": _ANY},
    304: {"description": "`If-None-Match` names these bytes."},
}
"""The answers of a route that sends an artifact."""

_FORM = {FORM: {"schema": FileForm.model_json_schema()}}
_FILE = "file"
"""The name of the part that has the file."""
_LIVES = "expires_after[seconds]"
_ANCHOR = "expires_after[anchor]"
_MOST_LISTED = 1000
_DEFAULT_LISTED = 100
_NUMBER = re.compile(r"[0-9]{1,9}")
_Limit = Annotated[
    str | None,
    Query(description="How many at most."),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 10_000}),
]
_After = Annotated[
    str | None,
    Query(description="The id behind which the list begins."),
    WithJsonSchema({"type": "string"}),
]
_Order = Annotated[
    str | None,
    Query(),
    WithJsonSchema({"type": "string", "enum": ["asc", "desc"]}),
]
_Purpose = Annotated[str | None, Query(), WithJsonSchema({"type": "string"})]


@router.post("", response_model=StoredFile, openapi_extra=request_body(_FORM))
async def create_file(
    request: Request,
    front: FrontDep,
    caller: CallerDep,
    key: KeyDep,
) -> StoredFile:
    """Keep a file. The same bytes again are the same file, which then lives on."""
    await admit(front, caller, request)
    content_type = request.headers.get("content-type", "")
    async with front.artifacts.upload(caller.tenant) as upload:
        scanned = ScannedUpload(front, upload)

        async def take(part: FilePart, data: bytes) -> None:
            await scanned.write(data, part.media_type)

        form = await read_form(pieces_of(request), content_type, take, files=(_FILE,))
        file = _only(form)
        purpose = form.fields.get("purpose")
        if purpose is None:
            raise InvalidRequest("purpose: this field is required.", field="purpose")
        media_type = media_type_of(file.media_type or DEFAULT_MEDIA_TYPE, field=_FILE)
        label = label_of(media_type, file.name, purpose, _lives_s(form.fields))
        return stored_file(await keep(front, request, upload, label, key=key))


@router.get("")
async def files(
    front: FrontDep,
    caller: CallerDep,
    *,
    limit: _Limit = None,
    after: _After = None,
    order: _Order = None,
    purpose: _Purpose = None,
) -> StoredFiles:
    """List the files of the caller's tenant, the latest first."""
    page, has_more = await front.artifacts.page(
        caller.tenant,
        limit=_limit_of(limit),
        after=after or "",
        purpose=purpose or "",
        is_oldest_first=_order_of(order) == "asc",
    )
    return StoredFiles(
        data=[stored_file(artifact) for artifact in page],
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=has_more,
    )


@router.get("/{id}")
async def file(id: str, front: FrontDep, caller: CallerDep) -> StoredFile:
    return stored_file(await front.artifacts.find(caller.tenant, id))


@router.get("/{id}/content", response_class=Response, responses=BYTES)
async def content(
    id: str,
    request: Request,
    front: FrontDep,
    caller: CallerDep,
    request_state: RequestStateDep,
) -> Response:
    """Return the bytes of a file, or a part of them."""
    artifact = await front.artifacts.find(caller.tenant, id)
    return await bytes_of(front, artifact, request, request_state)


@router.delete("/{id}")
async def delete_file(id: str, front: FrontDep, caller: CallerDep) -> FileDeleted:
    await front.artifacts.delete(caller.tenant, id)
    return FileDeleted(id=id)


def _only(form: Form) -> FilePart:
    """Return the file of a form. Raise InvalidRequest for none and for several."""
    if len(form.files) == 1:
        return form.files[0]
    expected = "this field is required"
    if form.files:
        expected = f"expected one file, in a part of the name {_FILE}"
    elif _FILE in form.fields:
        expected = "expected a file, with a filename (curl -F file=@NAME)"
    raise InvalidRequest(f"{_FILE}: {expected}.", field=_FILE)


def _lives_s(fields: dict[str, str]) -> float | None:
    """Return for how many seconds the file is to be kept, as OpenAI's `expires_after` says it.

    None leaves that to the fleet. Raise InvalidRequest.
    """
    if _LIVES not in fields:
        return None
    is_number = _NUMBER.fullmatch(fields[_LIVES]) is not None and int(fields[_LIVES]) > 0
    if not is_number or fields.get(_ANCHOR) != "created_at":
        raise InvalidRequest(
            "expires_after: expected the anchor created_at and a number of seconds.",
            field="expires_after",
        )
    return float(fields[_LIVES])


def _limit_of(text: str | None) -> int:
    if text is None:
        return _DEFAULT_LISTED
    if not _NUMBER.fullmatch(text) or not 1 <= int(text) <= 10_000:
        raise InvalidRequest("limit: expected a whole number from 1 to 10000.", field="limit")
    return min(int(text), _MOST_LISTED)


def _order_of(text: str | None) -> Literal["asc", "desc"]:
    if text == "asc":
        return "asc"
    if text in (None, "desc"):
        return "desc"
    raise InvalidRequest("order: expected asc or desc.", field="order")


DIALECT = Dialect(router=router, prefix=PATH, errors=OPENAI, uploads=frozenset({PATH}))
