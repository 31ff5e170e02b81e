"""Files and artifacts over HTTP: every endpoint, every refusal, and bodies that no front ever holds
as a whole."""

import asyncio
import base64
import hashlib
import json
import logging
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from redis.asyncio import Redis

from shared.artifacts.store import IN_REDIS_BYTES, ArtifactStore
from shared.errors import StorageUnavailable
from shared.queue import keys
from shared.queue.broker import Broker
from tests.fixtures.api.fronts import in_memory, live
from tests.fixtures.logged import fields_of
from tests.fixtures.polling import until

MIB = 1 << 20
SMALL = b"a small file\n"
LARGE = bytes(range(256)) * (2 * MIB // 256)
PLAIN = {"Content-Type": "text/plain"}
ANN = {"Authorization": "Bearer key-a"}
BOB = {"Authorization": "Bearer key-b"}


@pytest.fixture
def artifact_dir(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
async def client(redis: Redis, artifact_dir: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with in_memory(redis, artifact_url=str(artifact_dir), max_upload_bytes=4 * MIB) as client:
        yield client


def form(
    data: bytes = SMALL, name: str = "note.txt", media_type: str = "text/plain", **fields: str
) -> dict[str, Any]:
    """Return httpx's arguments for a multipart upload."""
    return {"files": {"file": (name, data, media_type)}, "data": {"purpose": "user_data"} | fields}


def upload_to(path: str) -> dict[str, Any]:
    """Return httpx's arguments for a small upload in the format that this path takes."""
    if path == "/v1/files":
        return form()
    return {"content": SMALL, "headers": PLAIN}


async def upload(
    client: httpx.AsyncClient, data: bytes, headers: dict[str, str] = PLAIN
) -> dict[str, Any]:
    """Upload an artifact and return the answer's object."""
    answer = await client.post("/v1/artifacts", content=data, headers=headers)
    created: dict[str, Any] = answer.json()
    return created


def files_in(folder: Path) -> list[str]:
    """Return the sorted names of all files below the folder."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def error_fields_of(answer: httpx.Response) -> set[str]:
    fields: set[str] = set(answer.json()["error"])
    return fields


OPENAI_SHAPE = {"message", "type", "param", "code"}
OWN_SHAPE = {"message", "field", "code"}


def check_refused(
    answer: httpx.Response, status: int, code: str, words: str = "", field: str | None = None
) -> None:
    """Check the status and the error, in the shape of the dialect that was spoken."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code, answer.text

    # Errors of `/v1/files` have OpenAI's shape, all others our own.
    shape = OWN_SHAPE
    field_name = "field"
    if "/v1/files" in str(answer.request.url):
        shape = OPENAI_SHAPE
        field_name = "param"

    assert error_fields_of(answer) == shape
    assert words in error["message"]
    if field is not None:
        assert error[field_name] == field


async def in_pieces(data: bytes, size: int = 65_536) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


# Files


@pytest.mark.parametrize("data", [SMALL, LARGE])
async def test_a_file_is_kept_told_of_sent_and_deleted(
    client: httpx.AsyncClient, artifact_dir: Path, data: bytes
) -> None:
    created = await client.post("/v1/files", **form(data))

    assert created.status_code == 200, created.text
    file = created.json()
    assert file == {
        "id": file["id"],
        "object": "file",
        "bytes": len(data),
        "created_at": file["created_at"],
        "expires_at": file["expires_at"],
        "filename": "note.txt",
        "purpose": "user_data",
        "status": "processed",
        "media_type": "text/plain",
        "digest": hashlib.sha256(data).hexdigest(),
    }
    # A day, give or take the rounding to seconds.
    assert file["expires_at"] - file["created_at"] in (86_400, 86_401)

    id = file["id"]
    path = f"/v1/files/{id}"
    assert (await client.get(path)).json() == file

    listed = (await client.get("/v1/files")).json()
    assert listed == {
        "object": "list",
        "data": [file],
        "first_id": id,
        "last_id": id,
        "has_more": False,
    }

    for content_path in (f"{path}/content", f"/v1/artifacts/{id}"):
        download = await client.get(content_path)
        assert download.content == data
        assert download.headers["Content-Type"] == "text/plain"
        assert download.headers["Content-Length"] == str(len(data))

    assert (await client.delete(path)).json() == {"id": id, "object": "file", "deleted": True}

    for request in (client.get(path), client.get(f"{path}/content"), client.delete(path)):
        check_refused(await request, 404, "artifact_not_found", field="id")
    check_refused(await client.get(f"/v1/artifacts/{id}"), 404, "artifact_not_found")
    assert files_in(artifact_dir) == []


async def test_openais_client_does_all_of_it(
    redis: Redis, artifact_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "batch.jsonl").write_bytes(LARGE)

    async with live(redis, artifact_url=str(artifact_dir)) as (http, _):
        client = openai.AsyncOpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0)
        async with client:
            first = await client.files.create(file=tmp_path / "batch.jsonl", purpose="batch")
            assert first.bytes == len(LARGE)
            assert first.filename == "batch.jsonl"
            assert first.purpose == "batch"

            second = await client.files.create(
                file=("é.txt", SMALL),
                purpose="user_data",
                expires_after={"anchor": "created_at", "seconds": 3600},
            )
            assert second.filename == "é.txt"
            assert second.expires_at is not None
            assert second.expires_at - second.created_at in (3600, 3601)

            listed = [file.id async for file in client.files.list(limit=1)]
            assert sorted(listed) == sorted([first.id, second.id])
            batches = [file.id async for file in client.files.list(purpose="batch")]
            assert batches == [first.id]
            ascending = [file.id async for file in client.files.list(order="asc")]
            assert ascending == listed[::-1]

            assert await client.files.retrieve(first.id) == first
            assert (await client.files.content(first.id)).content == LARGE

            assert (await client.files.delete(first.id)).deleted
            with pytest.raises(openai.NotFoundError) as missing:
                await client.files.retrieve(first.id)
            assert missing.value.code == "artifact_not_found"

            with pytest.raises(openai.BadRequestError):
                await client.files.create(file=("empty", b""), purpose="user_data")


async def test_lists_are_paged(client: httpx.AsyncClient) -> None:
    created_ids = []
    for n in range(5):
        created = await client.post("/v1/files", **form(f"{n}".encode()))
        created_ids.append(created.json()["id"])

    first = (await client.get("/v1/files", params={"limit": 3})).json()
    rest = (await client.get("/v1/files", params={"limit": 3, "after": first["last_id"]})).json()

    assert first["has_more"]
    assert len(first["data"]) == 3
    assert not rest["has_more"]
    listed_ids = [file["id"] for file in first["data"] + rest["data"]]
    assert sorted(listed_ids) == sorted(created_ids)

    for params, field in (
        ({"limit": "0"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"order": "up"}, "order"),
    ):
        refused = await client.get("/v1/files", params=params)
        check_refused(refused, 400, "invalid_request", field=field)
    unknown = await client.get("/v1/files", params={"after": "file-x"})
    check_refused(unknown, 404, "artifact_not_found")


# Forms

BOUNDARY = "b"
HEAD = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(name: str, data: str, filename: str | None = None, more: str = "") -> str:
    """Return one part of a form; `more` is further header lines."""
    as_file = "" if filename is None else f'; filename="{filename}"'
    return (
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; "
        f'name="{name}"{as_file}\r\n{more}\r\n{data}\r\n'
    )


def open_part(name: str, filename: str) -> str:
    """Return a part up to where its data begins."""
    return part(name, "", filename).removesuffix("\r\n")


END = f"--{BOUNDARY}--\r\n"
FILE = part("file", "abc", "a.txt")
PURPOSE = part("purpose", "user_data")

NO_MEDIA_TYPE = "Content-Type: a b/c\r\n"
LONG_LINE = f"X-Long: {'x' * 4100}\r\n"
TOO_LONG_LINE = f"X-Long: {'x' * 9000}\r\n"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        pytest.param("", 400, "cut off", id="nothing"),
        pytest.param(END, 400, "", id="no parts"),
        pytest.param(PURPOSE + END, 400, "file: this field is required", id="no file"),
        pytest.param(
            part("file", "abc") + PURPOSE + END,
            400,
            "file: expected a file",
            id="a field for a file",
        ),
        pytest.param(
            part("image", "abc", "a.txt") + PURPOSE + END,
            400,
            "image: expected files in parts of the name file alone",
            id="another name",
        ),
        pytest.param(FILE + FILE + PURPOSE + END, 400, "file: expected one file", id="two files"),
        pytest.param(FILE + END, 400, "purpose: this field is required", id="no purpose"),
        pytest.param(
            FILE + part("purpose", "A b") + END,
            400,
            "purpose: expected up to 64",
            id="no plain purpose",
        ),
        pytest.param(
            part("file", "", "a.txt") + PURPOSE + END,
            400,
            "file: expected at least one byte",
            id="no bytes",
        ),
        pytest.param(
            part("file", "a", "a", NO_MEDIA_TYPE) + PURPOSE + END,
            400,
            "file: expected a media",
            id="no media type",
        ),
        pytest.param(
            "--b\r\nContent-Disposition: form-data\r\n\r\na\r\n" + END,
            400,
            "a part has no name",
            id="no name",
        ),
        pytest.param(FILE + PURPOSE, 400, "cut off", id="cut"),
        pytest.param("what is this", 400, "not well-formed", id="no form"),
        pytest.param(
            FILE + PURPOSE + part("expires_after[seconds]", "-1") + END,
            400,
            "expires_after",
            id="no time",
        ),
        pytest.param(PURPOSE * 65 + END, 413, "at most 64 parts", id="many parts"),
        pytest.param(
            part("purpose", "x" * 70_000) + END,
            413,
            "purpose: expected at most 65536",
            id="a long field",
        ),
        pytest.param(
            part("file", "a", "a", LONG_LINE * 2) + END, 413, "headers of a part", id="a long head"
        ),
        pytest.param(
            part("file", "a", "a", TOO_LONG_LINE) + END, 400, "not well-formed", id="a long line"
        ),
    ],
)
async def test_a_form_that_is_none(
    client: httpx.AsyncClient, redis: Redis, body: str, status: int, words: str
) -> None:
    code = {400: "invalid_request", 413: "payload_too_large"}[status]

    # Whole, and in pieces of a few bytes.
    for size in (1 << 20, 7):
        pieces = in_pieces(body.encode(), size)
        answer = await client.post("/v1/files", content=pieces, headers=HEAD)
        check_refused(answer, status, code, words)

    assert await redis.zcard(keys.EXPIRING) == 0


@pytest.mark.parametrize(
    "media_type", ["application/json", "multipart/form-data", "multipart/mixed; boundary=b", ""]
)
async def test_a_body_that_is_no_form(client: httpx.AsyncClient, media_type: str) -> None:
    answer = await client.post(
        "/v1/files", content=FILE + END, headers={"Content-Type": media_type}
    )
    check_refused(answer, 400, "invalid_request", "multipart/form-data")


async def test_the_purpose_may_come_last_and_others_are_passed_over(
    client: httpx.AsyncClient,
) -> None:
    body = part("other", "x") + FILE + part("purpose", "batch") + part("more", "y") + END

    for size in (1, 10, 1000):
        pieces = in_pieces(body.encode(), size)
        answer = await client.post("/v1/files", content=pieces, headers=HEAD)
        file = answer.json()
        assert file["purpose"] == "batch"
        assert file["bytes"] == 3
        assert file["media_type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        (r"C:\x\cat.png", "cat.png"),
        ("a\x07b", "ab"),
        ("x" * 300, "x" * 255),
        ("", ""),
    ],
)
async def test_names_of_files_are_names_alone(
    client: httpx.AsyncClient, given: str, kept: str
) -> None:
    answer = await client.post(
        "/v1/artifacts", params={"filename": given}, content=SMALL, headers=PLAIN
    )
    assert answer.json()["filename"] == kept


# Artifacts


@pytest.mark.parametrize("data", [SMALL, LARGE])
async def test_bytes_in_bytes_out(client: httpx.AsyncClient, data: bytes) -> None:
    created = await client.post(
        "/v1/artifacts",
        params={"filename": "a.webp", "purpose": "vision"},
        content=in_pieces(data),
        headers={"Content-Type": "Image/WebP; q=1"},
    )
    artifact = created.json()
    assert artifact["media_type"] == "image/webp"
    assert artifact["filename"] == "a.webp"
    assert artifact["purpose"] == "vision"

    download = await client.get(f"/v1/artifacts/{artifact['id']}")
    assert download.content == data
    assert download.headers["Content-Type"] == "image/webp"
    assert (await client.get(f"/v1/files/{artifact['id']}")).json() == artifact


async def test_bytes_in_json(client: httpx.AsyncClient) -> None:
    packed = base64.b64encode(SMALL).decode()
    as_base64 = {"data": packed, "media_type": "text/plain", "filename": "a.txt"}
    as_data_url = {
        "data": f"data:text/plain;base64,{packed}",
        "filename": "a.txt",
        "purpose": "vision",
    }

    first = (await client.post("/v1/artifacts", json=as_base64)).json()
    second = (await client.post("/v1/artifacts", json=as_data_url)).json()

    assert first["media_type"] == "text/plain"
    assert second["media_type"] == "text/plain"
    assert first["id"] == second["id"]
    assert (await client.get(f"/v1/artifacts/{first['id']}")).content == SMALL


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "expected an object"),
        (b"{}", "data: this field is required"),
        (b'{"data": 1}', "data: "),
        (b'{"data": "https://example.com/a.png"}', "URLs are not fetched"),
        (b'{"data": "file:///etc/passwd"}', "paths are not opened"),
        (b'{"data": "/etc/passwd"}', "paths are not opened"),
        (b'{"data": "aGk=", "media_type": "none"}', "media_type: expected a media type"),
        (b'{"data": "data:image/png;base64,"}', "at least one byte"),
        (json.dumps({"data": "file-" + "0" * 32}).encode(), "an artifact already"),
    ],
)
async def test_json_that_has_no_bytes(client: httpx.AsyncClient, body: bytes, words: str) -> None:
    answer = await client.post(
        "/v1/artifacts", content=body, headers={"Content-Type": "application/json"}
    )
    check_refused(answer, 400, "invalid_request", words)


@pytest.mark.parametrize(
    ("media_type", "words"),
    [
        ("nonsense", "expected a media type"),
        ("text/plain/x", "expected a media type"),
        ("text/pl\u00e4in", "expected a media type"),
        ("application/x-www-form-urlencoded", "curl"),
        ("multipart/form-data; boundary=b", "/v1/files"),
    ],
)
async def test_a_type_that_is_none(client: httpx.AsyncClient, media_type: str, words: str) -> None:
    # As bytes: httpx encodes a header's text as ASCII, and one row is Latin-1.
    headers = [(b"content-type", media_type.encode("latin-1"))]
    answer = await client.post("/v1/artifacts", content=SMALL, headers=headers)
    check_refused(answer, 400, "invalid_request", words, field="Content-Type")


# Headers that keep a browser from running what was uploaded


@pytest.mark.parametrize(
    ("media_type", "kind"),
    [
        ("image/png", "inline"),
        ("audio/wav", "inline"),
        ("video/mp4", "inline"),
        ("text/plain; charset=utf-8", "inline"),
        ("text/html", "attachment"),
        ("image/svg+xml", "attachment"),
        ("application/xml", "attachment"),
        ("text/xml", "attachment"),
        ("application/xhtml+xml", "attachment"),
        ("text/javascript", "attachment"),
        ("application/pdf", "attachment"),
        ("a/b", "attachment"),
    ],
)
async def test_what_could_run_is_not_shown(
    client: httpx.AsyncClient, media_type: str, kind: str
) -> None:
    created = await client.post(
        "/v1/artifacts",
        params={"filename": 'a"; b é.html'},
        content=SMALL,
        headers={"Content-Type": media_type},
    )
    id = created.json()["id"]

    disposition = f"{kind}; filename*=UTF-8''a%22%3B%20b%20%C3%A9.html"
    for path in (f"/v1/artifacts/{id}", f"/v1/files/{id}/content"):
        download = await client.get(path)
        assert download.headers["Content-Type"] == media_type
        assert download.headers["Content-Disposition"] == disposition
        assert download.headers["X-Content-Type-Options"] == "nosniff"
        assert download.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"


# Parts and conditions


@pytest.mark.parametrize("data", [SMALL, LARGE])
async def test_parts(client: httpx.AsyncClient, data: bytes) -> None:
    """A range that holds is answered with 206, a malformed one is ignored, and one outside the file
    is refused."""
    artifact = await upload(client, data)
    size = len(data)
    etag = f'"{artifact["digest"]}"'

    satisfiable = [
        ("bytes=0-0", 0, 1),
        ("bytes=3-7", 3, 8),
        ("bytes=5-", 5, size),
        ("bytes=-4", size - 4, size),
        ("bytes=0-999999999", 0, size),
        ("bytes=-999999999", 0, size),
    ]
    ignored = ("bytes=5-3", "bytes=a-b", "items=0-1", "bytes=-", "bytes=0-1,3-4", "bytes")
    outside = (f"bytes={size}-", "bytes=-0", f"bytes={size + 5}-{size + 9}")

    for path in (f"/v1/artifacts/{artifact['id']}", f"/v1/files/{artifact['id']}/content"):
        for range_header, start, stop in satisfiable:
            for condition in ({}, {"If-Range": etag}):
                partial = await client.get(path, headers={"Range": range_header} | condition)
                assert partial.status_code == 206, range_header
                assert partial.content == data[start:stop], range_header
                assert partial.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
                assert partial.headers["Content-Length"] == str(stop - start)

        for range_header in ignored:
            whole = await client.get(path, headers={"Range": range_header})
            assert (whole.status_code, whole.content) == (200, data), range_header

        # Another entity tag than the file's: the client has a part of another file.
        whole = await client.get(path, headers={"Range": "bytes=0-1", "If-Range": '"other"'})
        assert (whole.status_code, whole.content) == (200, data)

        for range_header in outside:
            refused = await client.get(path, headers={"Range": range_header})
            check_refused(refused, 416, "range_not_satisfiable", field="Range")
            assert refused.headers["Content-Range"] == f"bytes */{size}"


async def test_who_has_it_is_told_so(client: httpx.AsyncClient) -> None:
    artifact = await upload(client, LARGE)
    path = f"/v1/artifacts/{artifact['id']}"
    etag = (await client.get(path)).headers["ETag"]
    assert etag == f'"{artifact["digest"]}"'

    for given in (etag, f'"x", {etag}', f"W/{etag}", "*"):
        answer = await client.get(path, headers={"If-None-Match": given})
        assert answer.status_code == 304
        assert answer.content == b""
        assert answer.headers["ETag"] == etag
    assert (await client.get(path, headers={"If-None-Match": '"x"'})).status_code == 200


async def test_head_reads_no_byte(
    redis: Redis, artifact_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A HEAD has the headers of its GET and reads nothing from storage.

    It goes over a connection, where a wrong Content-Length would be noticed.
    """

    def read(*_: object) -> None:
        raise AssertionError("it is read")

    async with live(redis, artifact_url=str(artifact_dir)) as (client, _):
        artifact = await upload(client, LARGE)
        path = f"/v1/artifacts/{artifact['id']}"
        whole = await client.get(path)
        partial = await client.get(path, headers={"Range": "bytes=0-9"})
        monkeypatch.setattr(ArtifactStore, "read", read)

        for headers, expected in (({}, whole), ({"Range": "bytes=0-9"}, partial)):
            head = await client.head(path, headers=headers)
            assert head.status_code == expected.status_code
            assert head.content == b""
            for name in (
                "content-length",
                "content-type",
                "etag",
                "accept-ranges",
                "content-disposition",
            ):
                assert head.headers[name] == expected.headers[name]
        assert (await client.get("/healthz")).status_code == 200


# Tenants


async def test_another_tenants_are_not_there(redis: Redis, artifact_dir: Path) -> None:
    api_keys = "ann:key-a,bob:key-b"
    async with in_memory(redis, artifact_url=str(artifact_dir), api_keys=api_keys) as client:
        artifact = await upload(client, SMALL, headers=PLAIN | ANN)
        file = f"/v1/files/{artifact['id']}"

        for path in (file, f"{file}/content", f"/v1/artifacts/{artifact['id']}"):
            assert (await client.get(path)).status_code == 401
            check_refused(await client.get(path, headers=BOB), 404, "artifact_not_found")
            assert (await client.get(path, headers=ANN)).status_code == 200
        check_refused(await client.delete(file, headers=BOB), 404, "artifact_not_found")
        assert (await client.get("/v1/files", headers=BOB)).json()["data"] == []

        same_bytes = await upload(client, SMALL, headers=PLAIN | BOB)
        assert same_bytes["id"] != artifact["id"], "equal bytes disclose nothing of other tenants"
        assert (await client.get(file, headers=ANN)).json() == artifact


async def test_a_key_is_asked_for_before_a_body_is_read(redis: Redis) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("it is read")
        yield b""

    async with in_memory(redis, api_keys="ann:key-a") as client:
        for path in ("/v1/files", "/v1/artifacts"):
            assert (await client.post(path, content=never())).status_code == 401


async def test_rates_count_uploads(redis: Redis) -> None:
    async with in_memory(redis, rate_limit="2/60") as client:
        for path in ("/v1/artifacts", "/v1/files"):
            answer = await client.post(path, **upload_to(path))
            assert answer.status_code == 200

        for path in ("/v1/artifacts", "/v1/files"):
            answer = await client.post(path, **upload_to(path))
            check_refused(answer, 429, "rate_limited")
            assert int(answer.headers["Retry-After"]) > 0

        assert (await client.get("/v1/files")).status_code == 200, "looking at files is not limited"


async def test_a_front_that_goes_takes_no_uploads(redis: Redis) -> None:
    async with live(redis) as (client, front):
        front.draining.set()
        answer = await client.post("/v1/artifacts", content=SMALL, headers=PLAIN)
        check_refused(answer, 503, "draining")


# Limits


@pytest.mark.parametrize("path", ["/v1/files", "/v1/artifacts"])
async def test_a_body_over_the_cap(redis: Redis, artifact_dir: Path, path: str) -> None:
    """A body whose length is announced is refused before a byte of it is read.

    A chunked one is refused as soon as too much has come.
    """
    headers = HEAD if path == "/v1/files" else PLAIN
    num_sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_sent
        if path == "/v1/files":
            yield open_part("file", "a.txt").encode()
        while num_sent < 1 << 30:
            num_sent += 65_536
            yield bytes(65_536)

    async with in_memory(redis, artifact_url=str(artifact_dir), max_upload_bytes=MIB) as client:
        announced = await client.post(
            path, content=endless(), headers=headers | {"Content-Length": str(MIB + 1)}
        )
        check_refused(announced, 413, "payload_too_large", f"at most {MIB} bytes")
        assert num_sent == 0

        chunked = await client.post(path, content=endless(), headers=headers)
        check_refused(chunked, 413, "payload_too_large", f"at most {MIB} bytes")
        # One chunk more than the cap: the chunk that crosses it.
        assert num_sent <= MIB + 65_536
        assert files_in(artifact_dir) == []
        assert await redis.zcard(keys.LOOSE) == 0

        allowed = form() if path == "/v1/files" else {"content": SMALL}
        assert (await client.post(path, **allowed)).status_code == 200


async def test_who_is_refused_on_the_way_hears_of_it_over_a_connection(
    redis: Redis, artifact_dir: Path
) -> None:
    async with live(redis, artifact_url=str(artifact_dir), max_upload_bytes=MIB) as (client, _):
        for content in (in_pieces(LARGE * 4), bytes(2 * MIB)):
            answer = await client.post("/v1/artifacts", content=content, headers=PLAIN)
            check_refused(answer, 413, "payload_too_large", f"at most {MIB} bytes")

        answer = await client.post("/v1/artifacts", content=SMALL, headers=PLAIN)
        assert answer.status_code == 200

    assert files_in(artifact_dir) == []


async def test_json_is_read_whole_and_so_has_the_cap_of_other_bodies(redis: Redis) -> None:
    async with in_memory(redis, max_body_bytes=1000) as client:
        body = {"data": base64.b64encode(bytes(1000)).decode()}
        in_json = await client.post("/v1/artifacts", json=body)
        check_refused(in_json, 413, "payload_too_large", "send the bytes as they are")

        raw = await client.post("/v1/artifacts", content=bytes(2000), headers=PLAIN)
        assert raw.status_code == 200


async def test_without_a_place_large_ones_are_refused(redis: Redis) -> None:
    """Without --artifact-url, artifacts stay in Redis and have its limit."""
    headers = {"Content-Type": "image/png"}
    async with in_memory(redis) as client:
        too_large = await client.post(
            "/v1/artifacts", content=bytes(IN_REDIS_BYTES + 1), headers=headers
        )
        check_refused(too_large, 413, "payload_too_large", "--artifact-url")

        largest = await client.post("/v1/artifacts", content=bytes(IN_REDIS_BYTES), headers=headers)
        assert largest.status_code == 200


async def test_a_full_quota_says_what_helps(redis: Redis, artifact_dir: Path) -> None:
    url = str(artifact_dir)
    async with in_memory(redis, artifact_url=url, artifact_quota_bytes=MIB) as client:
        whole_quota = form(LARGE[:MIB])
        file = (await client.post("/v1/files", **whole_quota)).json()

        for upload_form in (form(SMALL), form(LARGE)):
            refused = await client.post("/v1/files", **upload_form)
            check_refused(
                refused, 413, "storage_quota_exceeded", "Delete some, or wait until some expire"
            )

        # The same bytes again are the same file, and take nothing more of the quota.
        assert (await client.post("/v1/files", **whole_quota)).json()["id"] == file["id"]

        await client.delete(f"/v1/files/{file['id']}")
        assert (await client.post("/v1/files", **form(SMALL))).status_code == 200
        assert files_in(artifact_dir) == []


async def test_codings_are_not_undone(client: httpx.AsyncClient) -> None:
    headers = PLAIN | {"Content-Encoding": "gzip"}
    for path in ("/v1/files", "/v1/artifacts"):
        answer = await client.post(path, content=SMALL, headers=headers)
        check_refused(answer, 415, "unsupported_encoding", "Content-Encoding")


@pytest.mark.parametrize("path", ["/v1/files", "/v1/artifacts"])
async def test_memory_does_not_grow_with_an_upload(
    redis: Redis, artifact_dir: Path, path: str
) -> None:
    """64 MiB go over a connection, there and back; client and front share this process."""
    num_bytes = 64 * MIB
    piece = bytes(range(256)) * 256
    sha = hashlib.sha256()

    async def body() -> AsyncIterator[bytes]:
        if path == "/v1/files":
            yield (part("purpose", "batch") + open_part("file", "a.bin")).encode()
        for _ in range(num_bytes // len(piece)):
            sha.update(piece)
            yield piece
        if path == "/v1/files":
            yield f"\r\n{END}".encode()

    headers = HEAD if path == "/v1/files" else {"Content-Type": "video/mp4"}
    async with live(redis, artifact_url=str(artifact_dir)) as (client, _):
        # The first upload imports and allocates once; it is not measured.
        warm_up = await client.post("/v1/artifacts", content=bytes(MIB), headers=PLAIN)
        assert warm_up.status_code == 200

        tracemalloc.start()
        try:
            created = (await client.post(path, content=body(), headers=headers)).json()
            assert created["bytes"] == num_bytes
            assert created["digest"] == sha.hexdigest()

            num_received = 0
            async with client.stream("GET", f"/v1/artifacts/{created['id']}") as answer:
                async for data in answer.aiter_raw():
                    num_received += len(data)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert num_received == num_bytes
    assert peak_bytes < 16 * MIB


# Headers, filters and logs on what is streamed


async def test_one_key_is_one_upload(client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "an upload, No. 7"}
    first = await client.post("/v1/files", **form(LARGE), headers=key)
    again = await client.post("/v1/files", **form(LARGE), headers=key)
    assert first.status_code == again.status_code == 200
    assert first.json()["id"] == again.json()["id"]

    for other_form in (form(SMALL), form(LARGE, name="other.txt"), form(LARGE + b"x")):
        refused = await client.post("/v1/files", **other_form, headers=key)
        check_refused(refused, 409, "idempotency_conflict")

    raw = await client.post("/v1/artifacts", content=SMALL, headers=PLAIN | key)
    check_refused(raw, 409, "idempotency_conflict", field="Idempotency-Key")

    too_long_key = {"Idempotency-Key": "x" * 256}
    wrong = await client.post("/v1/artifacts", content=SMALL, headers=PLAIN | too_long_key)
    check_refused(wrong, 400, "invalid_request", "Idempotency-Key")


TERMS = "Forbidden\ntwo words\n"


@pytest.mark.parametrize(
    ("data", "media_type", "is_refused"),
    [
        (b"so FORBIDDEN it is", "text/plain", True),
        (b"so FORBIDDEN it is", "application/octet-stream", True),
        (b"two \n words", "text/markdown", True),
        ("\uff46orbidden".encode(), "application/yaml", True),
        (b"x" * (65_536 - 4) + b"forbidden", "text/plain", True),
        (b"two" + b" " * 200_000 + b"words", "text/plain", True),
        (b"x" * MIB + b"forbidden", "text/csv", True),
        (b"forbid den", "text/plain", False),
        (b"\0\xff forbidden", "application/octet-stream", False),
        (b"\x89PNG forbidden", "image/png", False),
    ],
)
async def test_terms_are_found_in_text_wherever_it_is_cut(
    redis: Redis, artifact_dir: Path, tmp_path: Path, data: bytes, media_type: str, is_refused: bool
) -> None:
    (tmp_path / "terms").write_text(TERMS)
    async with in_memory(
        redis,
        artifact_url=str(artifact_dir),
        prohibited_terms=str(tmp_path / "terms"),
        log_bodies=True,
    ) as client:
        raw = await client.post(
            "/v1/artifacts", content=in_pieces(data), headers={"Content-Type": media_type}
        )
        in_form = await client.post("/v1/files", **form(data, media_type=media_type))
        for answer in (raw, in_form):
            if is_refused:
                check_refused(answer, 400, "content_filter", "file: Prohibited content", "file")
            else:
                assert answer.status_code == 200

        named = await client.post("/v1/files", **form(b"fine", name="forbidden.txt"))
        check_refused(named, 400, "content_filter", field="filename")

        # The largest row is over the cap of a JSON body.
        if len(data) < MIB // 2:
            inline = {"data": base64.b64encode(data).decode(), "media_type": media_type}
            answer = await client.post("/v1/artifacts", json=inline)
            assert answer.status_code == (400 if is_refused else 200)

    if is_refused:
        assert files_in(artifact_dir) == []


async def test_the_log_has_sizes_and_no_bytes(
    redis: Redis, artifact_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with in_memory(redis, artifact_url=str(artifact_dir), log_bodies=True) as client:
        artifact = await upload(client, b"secret bytes", headers={"Content-Type": "image/png"})
        await client.get(f"/v1/artifacts/{artifact['id']}")

    created, sent = fields_of(caplog, "request")
    assert created["route"] == "/v1/artifacts"
    assert created["upload_bytes"] == 12
    assert created["tenant"] == "public"
    assert sent["route"] == "/v1/artifacts/{id}"
    assert sent["status"] == 200
    assert "secret" not in caplog.text
    assert "Processing request: an upload of 12 bytes" in caplog.text


async def test_who_hangs_up_leaves_nothing(
    redis: Redis, artifact_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    is_written = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield LARGE
        await until(lambda: bool(files_in(artifact_dir)), "the front writes")
        is_written.set()
        await asyncio.Event().wait()

    async with live(redis, artifact_url=str(artifact_dir)) as (client, _):
        posting = asyncio.create_task(client.post("/v1/artifacts", content=body(), headers=PLAIN))
        await is_written.wait()
        posting.cancel()
        await asyncio.gather(posting, return_exceptions=True)
        await until(lambda: files_in(artifact_dir) == [], "the file is removed")
        await until(lambda: bool(fields_of(caplog, "request")), "the request has ended")

    [line] = fields_of(caplog, "request")
    assert line["status"] == 499
    assert line["error"] == "cancelled"
    assert await redis.zcard(keys.LOOSE) == 0
    assert "unhandled error" not in caplog.text


async def test_a_key_that_is_revoked_while_bytes_come_keeps_nothing(
    redis: Redis, artifact_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The front looks a key up each time, instead of trusting it for a second.
    monkeypatch.setattr("api.access.caller.FRESH_S", -1.0)
    from shared.access import Grant, Keyring, digest_of

    keyring = Keyring(Broker(redis))
    key, _, _ = await keyring.create(Grant("ann", "ann"))

    async def body() -> AsyncIterator[bytes]:
        yield LARGE
        await keyring.revoke(digest_of(key))
        yield SMALL

    async with in_memory(redis, artifact_url=str(artifact_dir)) as client:
        headers = PLAIN | {"Authorization": f"Bearer {key}"}
        answer = await client.post("/v1/artifacts", content=body(), headers=headers)
        check_refused(answer, 401, "invalid_api_key")

    assert files_in(artifact_dir) == []


async def test_storage_that_breaks_is_a_503(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise StorageUnavailable("full", retry_after_s=5)

    monkeypatch.setattr(ArtifactStore, "aside", broken)

    answer = await client.post("/v1/files", **form(LARGE))
    check_refused(answer, 503, "storage_unavailable")
    assert answer.headers["Retry-After"] == "5"

    # A small file goes into Redis and does not need the storage.
    assert (await client.post("/v1/files", **form(SMALL))).status_code == 200


async def test_a_redis_that_is_away_is_a_503(redis_server: Any) -> None:
    from shared.queue.broker import connect

    away = connect("redis://127.0.0.1:1")
    async with in_memory(away, require_key="no") as client:
        id = "file-" + "0" * 32
        for request in (
            client.get("/v1/files"),
            client.get(f"/v1/artifacts/{id}"),
            client.post("/v1/files", **form()),
        ):
            check_refused(await request, 503, "broker_unavailable")
    await away.aclose()


async def test_the_document_tells_of_forms_and_bytes(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]

    file_body = paths["/v1/files"]["post"]["requestBody"]["content"]
    schema = file_body["multipart/form-data"]["schema"]
    assert set(schema["properties"]) == {"file", "purpose"}
    assert set(schema["required"]) == {"file", "purpose"}

    artifact_body = paths["/v1/artifacts"]["post"]["requestBody"]["content"]
    assert set(artifact_body) == {"application/json", "application/octet-stream"}

    for path in ("/v1/files/{id}/content", "/v1/artifacts/{id}"):
        assert {"200", "206", "304"} <= set(paths[path]["get"]["responses"])
