"""`/v1/artifacts`: bytes in and bytes out, as they are."""

import json
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from api.access.caller import CallerDep
from api.deps import Front, FrontDep, RequestStateDep
from api.endpoints.dialect import Dialect
from api.http.media_types import FORM, media_type_of
from api.routes.files import BYTES
from api.schemas.errors import PlainErrorBody, errors_of
from api.schemas.files import InlineArtifact, StoredFile, request_body, stored_file
from api.submit.byte_inputs import InlineBytes, byte_input_of
from api.submit.request_options import KeyDep
from api.submit.uploads import ScannedUpload, admit, bytes_of, keep, label_of, pieces_of
from shared.artifacts.store import DEFAULT_MEDIA_TYPE, Artifact, Upload
from shared.errors import InvalidRequest, PayloadTooLarge

router = APIRouter(prefix="/v1/artifacts", tags=["files"], responses=errors_of(PlainErrorBody))

PATH = "/v1/artifacts"
_JSON = "application/json"
_CURL_DEFAULT = "application/x-www-form-urlencoded"
"""The media type that curl gives to whatever it posts, unless it is told another."""
_BODY = {
    _JSON: {"schema": InlineArtifact.model_json_schema()},
    DEFAULT_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}},
}
_Name = Annotated[str, Query(description="The name of the file, where the body is its bytes.")]


@router.post("", response_model=StoredFile, openapi_extra=request_body(_BODY))
async def create_artifact(
    request: Request,
    front: FrontDep,
    caller: CallerDep,
    *,
    key: KeyDep,
    filename: _Name = "",
    purpose: Annotated[str, Query()] = "user_data",
) -> StoredFile:
    """Keep the body as an artifact of its `Content-Type`. A JSON body has the bytes in base64."""
    await admit(front, caller, request)
    media_type = _media_type(request)
    async with front.artifacts.upload(caller.tenant) as upload:
        if media_type.partition(";")[0] == _JSON:
            return stored_file(await _keep_inline(front, request, upload, key))
        scanned = ScannedUpload(front, upload)
        async for piece in pieces_of(request):
            await scanned.write(piece, media_type)
        label = label_of(media_type, filename, purpose)
        return stored_file(await keep(front, request, upload, label, key=key))


@router.get("/{id}", response_class=Response, responses=BYTES)
async def artifact(
    id: str,
    request: Request,
    front: FrontDep,
    caller: CallerDep,
    request_state: RequestStateDep,
) -> Response:
    """Return the bytes of an artifact, or a part of them."""
    stored = await front.artifacts.find(caller.tenant, id)
    return await bytes_of(front, stored, request, request_state)


def _media_type(request: Request) -> str:
    given = request.headers.get("content-type", DEFAULT_MEDIA_TYPE)
    media_type = media_type_of(given, field="Content-Type")
    if media_type == _CURL_DEFAULT:
        raise InvalidRequest(
            "Content-Type: expected the media type of the bytes, got the default of curl; tell it"
            " another, as by -H 'Content-Type: image/png'.",
            field="Content-Type",
        )
    if media_type == FORM:
        raise InvalidRequest(
            "Content-Type: expected the bytes alone; forms go to POST /v1/files.",
            field="Content-Type",
        )
    return media_type


async def _keep_inline(front: Front, request: Request, upload: Upload, key: str) -> Artifact:
    """Make an artifact of the bytes in a JSON body."""
    body = _parsed(await _read_all(request, front.max_body_bytes))
    given = byte_input_of(body.data, name="data", max_bytes=front.artifacts.max_bytes)
    if not isinstance(given, InlineBytes):
        raise InvalidRequest("data: this is an artifact already.", field="data")
    media_type = given.media_type
    if body.media_type is not None:
        media_type = media_type_of(body.media_type, field="media_type")
    await ScannedUpload(front, upload).write(given.data, media_type)
    label = label_of(media_type, body.filename, body.purpose)
    return await keep(front, request, upload, label, key=key)


async def _read_all(request: Request, max_bytes: int) -> bytes:
    """Return a body that must be in memory as a whole. Raise PayloadTooLarge."""
    body = bytearray()
    async for piece in pieces_of(request):
        body += piece
        if len(body) > max_bytes:
            most = f"at most {max_bytes} bytes"
            raise PayloadTooLarge(f"Expected a JSON body of {most}; send the bytes as they are.")
    return bytes(body)


def _parsed(body: bytes) -> InlineArtifact:
    """Return the JSON body. Raise InvalidRequest and RequestValidationError."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        message = "Expected a JSON object as the body; this is not valid JSON."
        raise InvalidRequest(message) from None
    try:
        return InlineArtifact.model_validate(value)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


DIALECT = Dialect(router=router, prefix=PATH, uploads=frozenset({PATH}))
