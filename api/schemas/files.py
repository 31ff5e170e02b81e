"""Bodies of `/v1/files`, in OpenAI's words, and of `/v1/artifacts`."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictStr

from shared.artifacts.store import Artifact
from shared.messages import ArtifactRef

PIXEL = "R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
"""The smallest picture, a GIF in base64."""
FRAMES = (
    "AAAAHGZ0eXBpc29tAAACAGlzb21pc28ybXA0MQAAAAhmcmVlAAAAGW1kYXQAAAGzABAHAAABthGBRy2/"
    "fwAAAzFtb292AAAAbG12aGQAAAAAAAAAAAAAAAAAAAPoAAAAfQABAAABAAAAAAAAAAAAAAAAAQAAAAAA"
    "AAAAAAAAAAAAAAEAAAAAAAAAAAAAAAAAAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAACAAAC"
    "W3RyYWsAAABcdGtoZAAAAAMAAAAAAAAAAAAAAAEAAAAAAAAAfQAAAAAAAAAAAAAAAAAAAAAAAQAAAAAA"
    "AAAAAAAAAAAAAAEAAAAAAAAAAAAAAAAAAEAAAAAAEAAAABAAAAAAACRlZHRzAAAAHGVsc3QAAAAAAAAA"
    "AQAAAH0AAAAAAAEAAAAAAdNtZGlhAAAAIG1kaGQAAAAAAAAAAAAAAAAAAEAAAAAIAFXEAAAAAAAtaGRs"
    "cgAAAAAAAAAAdmlkZQAAAAAAAAAAAAAAAFZpZGVvSGFuZGxlcgAAAAF+bWluZgAAABR2bWhkAAAAAQAA"
    "AAAAAAAAAAAAJGRpbmYAAAAcZHJlZgAAAAAAAAABAAAADHVybCAAAAABAAABPnN0YmwAAADac3RzZAAA"
    "AAAAAAABAAAAym1wNHYAAAAAAAAAAQAAAAAAAAAAAAAAAAAAAAAAEAAQAEgAAABIAAAAAAAAAAEAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAY//8AAABgZXNkcwAAAAADgICATwABAASAgIBBIBEA"
    "AAAAAARAAAAAAAWAgIAvAAABsAEAAAG1iRMAAAEAAAABIADEjYgARQCEAhRjAAABskxhdmM2Mi4yOC4x"
    "MDIGgICAAQIAAAAUYnRydAAAAAAAAARAAAAAAAAAABhzdHRzAAAAAAAAAAEAAAABAAAIAAAAABxzdHNj"
    "AAAAAAAAAAEAAAABAAAAAQAAAAEAAAAUc3RzegAAAAAAAAARAAAAAQAAABRzdGNvAAAAAAAAAAEAAAAs"
    "AAAAYnVkdGEAAABabWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAbWRpcmFwcGwAAAAAAAAAAAAAAAAtaWxz"
    "dAAAACWpdG9vAAAAHWRhdGEAAAABAAAAAExhdmY2Mi4xMi4xMDI="
)
"""A video of one grey frame, an MP4 in base64."""


class StoredFile(BaseModel):
    """The record of a file.

    `bytes` is its size, and `digest` its SHA-256. Times are in seconds since 1970.
    """

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    media_type: str
    digest: str


class MadeFile(BaseModel):
    """A file that a task has made: `GET /v1/artifacts/{id}` has its bytes."""

    id: str
    media_type: str
    bytes: int
    digest: str


class StoredFiles(BaseModel):
    object: Literal["list"] = "list"
    data: list[StoredFile]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class FileForm(BaseModel):
    """A form with a file; of its fields only `purpose` is needed."""

    file: str = Field(json_schema_extra={"format": "binary"})
    purpose: str = Field(description="What the file is for, such as user_data or batch.")


class InlineArtifact(BaseModel):
    """Bytes in `data`, as base64 or a data URL. Many bytes are better sent as they are."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"data": f"data:image/gif;base64,{PIXEL}", "filename": "pixel.gif"},
                {"data": "aGVsbG8=", "media_type": "text/plain"},
            ]
        }
    )

    data: StrictStr = Field(min_length=1)
    media_type: StrictStr | None = None
    filename: StrictStr = ""
    purpose: StrictStr = "user_data"


def stored_file(artifact: Artifact) -> StoredFile:
    return StoredFile(
        id=artifact.id,
        bytes=artifact.num_bytes,
        created_at=artifact.created_at,
        expires_at=artifact.expires_at,
        filename=artifact.name,
        purpose=artifact.purpose,
        media_type=artifact.media_type,
        digest=artifact.digest,
    )


def request_body(content: dict[str, Any]) -> dict[str, Any]:
    """Return the description, for the OpenAPI document, of a body that a route reads by itself."""
    return {"requestBody": {"required": True, "content": content}}


def made_file(ref: ArtifactRef) -> MadeFile:
    return MadeFile(id=ref.id, media_type=ref.media_type, bytes=ref.num_bytes, digest=ref.digest)
