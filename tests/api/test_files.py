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
def place(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
async def client(redis: Redis, place: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with in_memory(redis, artifact_url=str(place), max_upload_bytes=4 * MIB) as client:
        yield client


def form(
    data: bytes = SMALL, name: str = "note.txt", media_type: str = "text/plain", **fields: str
) -> dict[str, Any]:
    return {"files": {"file": (name, data, media_type)}, "data": {"purpose": "user_data"} | fields}


def files_in(place: Path) -> list[str]:
    return sorted(path.name for path in place.rglob("*") if path.is_file())


def shape_of(answer: httpx.Response) -> set[str]:
    keys: set[str] = set(answer.json()["error"])
    return keys


OPENAI_SHAPE = {"message", "type", "param", "code"}
OWN_SHAPE = {"message", "field", "code"}


def check_refused(
    answer: httpx.Response, status: int, code: str, words: str = "", field: str | None = None
) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    is_openai = "/v1/files" in str(answer.request.url)
    assert shape_of(answer) == (OPENAI_SHAPE if is_openai else OWN_SHAPE)
    error = answer.json()["error"]
    assert words in error["message"]
    if field is not None:
        assert error["param" if is_openai else "field"] == field


async def in_pieces(data: bytes, size: int = 65_536) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


# Files


@pytest.mark.parametrize("data", [SMALL, LARGE])
async def test_a_file_is_kept_told_of_sent_and_deleted(
    client: httpx.AsyncClient, place: Path, data: bytes
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
    assert file["expires_at"] - file["created_at"] in (86_400, 86_401)
    path = f"/v1/files/{file['id']}"
    assert (await client.get(path)).json() == file
    listed = (await client.get("/v1/files")).json()
    only = file["id"]
    assert listed == {
        "object": "list",
        "data": [file],
        "first_id": only,
        "last_id": only,
        "has_more": False,
    }
    for where in (f"{path}/content", f"/v1/artifacts/{only}"):
        sent = await client.get(where)
        assert sent.content == data
        assert sent.headers["Content-Type"] == "text/plain"
        assert sent.headers["Content-Length"] == str(len(data))
    assert (await client.delete(path)).json() == {"id": only, "object": "file", "deleted": True}
    for question in (client.get(path), client.get(f"{path}/content"), client.delete(path)):
        check_refused(await question, 404, "artifact_not_found", field="id")
    check_refused(await client.get(f"/v1/artifacts/{only}"), 404, "artifact_not_found")
    assert files_in(place) == []


async def test_openais_client_does_all_of_it(redis: Redis, place: Path, tmp_path: Path) -> None:
    async with live(redis, artifact_url=str(place)) as (http, _):
        client = openai.AsyncOpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0)
        async with client:
            (tmp_path / "batch.jsonl").write_bytes(LARGE)
            first = await client.files.create(file=tmp_path / "batch.jsonl", purpose="batch")
            second = await client.files.create(
                file=("é.txt", SMALL),
                purpose="user_data",
                expires_after={"anchor": "created_at", "seconds": 3600},
            )
            assert (first.bytes, first.filename, first.purpose) == (
                len(LARGE),
                "batch.jsonl",
                "batch",
            )
            assert second.filename == "é.txt"
            assert second.expires_at is not None and second.expires_at - second.created_at in (
                3600,
                3601,
            )
            listed = [file.id async for file in client.files.list(limit=1)]
            assert sorted(listed) == sorted([first.id, second.id])
            assert [file.id async for file in client.files.list(purpose="batch")] == [first.id]
            assert [file.id async for file in client.files.list(order="asc")] == listed[::-1]
            assert await client.files.retrieve(first.id) == first
            assert (await client.files.content(first.id)).content == LARGE
            assert (await client.files.delete(first.id)).deleted
            with pytest.raises(openai.NotFoundError) as gone:
                await client.files.retrieve(first.id)
            assert gone.value.code == "artifact_not_found"
            with pytest.raises(openai.BadRequestError):
                await client.files.create(file=("empty", b""), purpose="user_data")


async def test_lists_are_paged(client: httpx.AsyncClient) -> None:
    made = [
        (await client.post("/v1/files", **form(f"{n}".encode()))).json()["id"] for n in range(5)
    ]
    first = (await client.get("/v1/files", params={"limit": 3})).json()
    assert first["has_more"] and len(first["data"]) == 3
    rest = (await client.get("/v1/files", params={"limit": 3, "after": first["last_id"]})).json()
    assert not rest["has_more"]
    ids = [file["id"] for file in first["data"] + rest["data"]]
    assert sorted(ids) == sorted(made)
    for params, field in (
        ({"limit": "0"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"order": "up"}, "order"),
    ):
        check_refused(
            await client.get("/v1/files", params=params), 400, "invalid_request", field=field
        )
    check_refused(
        await client.get("/v1/files", params={"after": "file-x"}), 404, "artifact_not_found"
    )


# Forms

BOUNDARY = "b"
HEAD = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(name: str, data: str, filename: str | None = None, more: str = "") -> str:
    as_file = "" if filename is None else f'; filename="{filename}"'
    return (
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; "
        f'name="{name}"{as_file}\r\n{more}\r\n{data}\r\n'
    )


END = f"--{BOUNDARY}--\r\n"
FILE = part("file", "abc", "a.txt")
PURPOSE = part("purpose", "user_data")

LONG_LINE = f"X-Long: {'x' * 4100}\r\n"

BROKEN: list[tuple[str, str, int, str]] = [
    ("nothing", "", 400, "cut off"),
    ("no parts", END, 400, ""),
    ("no file", PURPOSE + END, 400, "file: this field is required"),
    ("a field for a file", part("file", "abc") + PURPOSE + END, 400, "file: expected a file"),
    ("another name", part("image", "abc", "a.txt") + PURPOSE + END, 400, "file: expected one file"),
    ("two files", FILE + FILE + PURPOSE + END, 400, "file: expected one file"),
    ("no purpose", FILE + END, 400, "purpose: this field is required"),
    ("no plain purpose", FILE + part("purpose", "A b") + END, 400, "purpose: expected up to 64"),
    (
        "no bytes",
        part("file", "", "a.txt") + PURPOSE + END,
        400,
        "file: expected at least one byte",
    ),
    (
        "no media type",
        part("file", "a", "a", "Content-Type: a b/c\r\n") + PURPOSE + END,
        400,
        "file: expected a media",
    ),
    (
        "no name",
        "--b\r\nContent-Disposition: form-data\r\n\r\na\r\n" + END,
        400,
        "a part has no name",
    ),
    ("cut", FILE + PURPOSE, 400, "cut off"),
    ("no form", "what is this", 400, "not well-formed"),
    ("no time", FILE + PURPOSE + part("expires_after[seconds]", "-1") + END, 400, "expires_after"),
    ("many parts", PURPOSE * 17 + END, 413, "at most 16 parts"),
    ("a long field", part("purpose", "x" * 5000) + END, 413, "purpose: expected at most 4096"),
    ("a long head", part("file", "a", "a", LONG_LINE * 2) + END, 413, "headers of a part"),
    (
        "a long line",
        part("file", "a", "a", f"X-Long: {'x' * 9000}\r\n") + END,
        400,
        "not well-formed",
    ),
]


@pytest.mark.parametrize(
    ("body", "status", "words"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN]
)
async def test_a_form_that_is_none(
    client: httpx.AsyncClient, redis: Redis, body: str, status: int, words: str
) -> None:
    for size in (1 << 20, 7):
        answer = await client.post(
            "/v1/files", content=in_pieces(body.encode(), size), headers=HEAD
        )
        code = {400: "invalid_request", 413: "payload_too_large"}[status]
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
        answer = await client.post(
            "/v1/files", content=in_pieces(body.encode(), size), headers=HEAD
        )
        assert (answer.json()["purpose"], answer.json()["bytes"]) == ("batch", 3)
        assert answer.json()["media_type"] == "application/octet-stream"


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
    query = {"filename": "a.webp", "purpose": "vision"}
    head = {"Content-Type": "Image/WebP; q=1"}
    created = await client.post(
        "/v1/artifacts", params=query, content=in_pieces(data), headers=head
    )
    told = created.json()
    assert (told["media_type"], told["filename"], told["purpose"]) == (
        "image/webp",
        "a.webp",
        "vision",
    )
    sent = await client.get(f"/v1/artifacts/{told['id']}")
    assert (sent.content, sent.headers["Content-Type"]) == (data, "image/webp")
    assert (await client.get(f"/v1/files/{told['id']}")).json() == told


async def test_bytes_in_json(client: httpx.AsyncClient) -> None:
    packed = base64.b64encode(SMALL).decode()
    bodies = [
        {"data": packed, "media_type": "text/plain", "filename": "a.txt"},
        {"data": f"data:text/plain;base64,{packed}", "filename": "a.txt", "purpose": "vision"},
    ]
    told = [(await client.post("/v1/artifacts", json=body)).json() for body in bodies]
    assert [one["media_type"] for one in told] == ["text/plain"] * 2
    assert told[0]["id"] == told[1]["id"]
    assert (await client.get(f"/v1/artifacts/{told[0]['id']}")).content == SMALL


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
    head = {"Content-Type": "application/json"}
    check_refused(
        await client.post("/v1/artifacts", content=body, headers=head),
        400,
        "invalid_request",
        words,
    )


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
    head = [(b"content-type", media_type.encode("latin-1"))]
    answer = await client.post("/v1/artifacts", content=SMALL, headers=head)
    check_refused(answer, 400, "invalid_request", words, "Content-Type")


# What browsers are told


@pytest.mark.parametrize(
    ("media_type", "kind"),
    [
        *(
            (name, "inline")
            for name in ("image/png", "audio/wav", "video/mp4", "text/plain; charset=utf-8")
        ),
        *(
            (name, "attachment")
            for name in ("text/html", "image/svg+xml", "application/xml", "text/xml")
        ),
        *(
            (name, "attachment")
            for name in ("application/xhtml+xml", "text/javascript", "application/pdf", "a/b")
        ),
    ],
)
async def test_what_could_run_is_not_shown(
    client: httpx.AsyncClient, media_type: str, kind: str
) -> None:
    query = {"filename": 'a"; b é.html'}
    head = {"Content-Type": media_type}
    told = (await client.post("/v1/artifacts", params=query, content=SMALL, headers=head)).json()
    for path in (f"/v1/artifacts/{told['id']}", f"/v1/files/{told['id']}/content"):
        sent = await client.get(path)
        assert sent.headers["Content-Type"] == media_type
        assert (
            sent.headers["Content-Disposition"]
            == f"{kind}; filename*=UTF-8''a%22%3B%20b%20%C3%A9.html"
        )
        assert sent.headers["X-Content-Type-Options"] == "nosniff"
        assert sent.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"


# Parts and conditions


@pytest.mark.parametrize("data", [SMALL, LARGE])
async def test_parts(client: httpx.AsyncClient, data: bytes) -> None:
    told = (await client.post("/v1/artifacts", content=data, headers=PLAIN)).json()
    size = len(data)
    etag = f'"{told["digest"]}"'
    parts = [
        ("bytes=0-0", 0, 1),
        ("bytes=3-7", 3, 8),
        ("bytes=5-", 5, size),
        ("bytes=-4", size - 4, size),
    ]
    parts += [("bytes=0-999999999", 0, size), ("bytes=-999999999", 0, size)]
    for path in (f"/v1/artifacts/{told['id']}", f"/v1/files/{told['id']}/content"):
        for asked, start, stop in parts:
            for more in ({}, {"If-Range": etag}):
                sent = await client.get(path, headers={"Range": asked} | more)
                assert (sent.status_code, sent.content) == (206, data[start:stop]), asked
                assert sent.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
                assert sent.headers["Content-Length"] == str(stop - start)
        for asked in ("bytes=5-3", "bytes=a-b", "items=0-1", "bytes=-", "bytes=0-1,3-4", "bytes"):
            sent = await client.get(path, headers={"Range": asked})
            assert (sent.status_code, sent.content) == (200, data), asked
        sent = await client.get(path, headers={"Range": "bytes=0-1", "If-Range": '"other"'})
        assert (sent.status_code, sent.content) == (200, data)
        for asked in (f"bytes={size}-", "bytes=-0", f"bytes={size + 5}-{size + 9}"):
            refused = await client.get(path, headers={"Range": asked})
            check_refused(refused, 416, "range_not_satisfiable", field="Range")
            assert refused.headers["Content-Range"] == f"bytes */{size}"


async def test_who_has_it_is_told_so(client: httpx.AsyncClient) -> None:
    told = (await client.post("/v1/artifacts", content=LARGE, headers=PLAIN)).json()
    path = f"/v1/artifacts/{told['id']}"
    etag = (await client.get(path)).headers["ETag"]
    assert etag == f'"{told["digest"]}"'
    for given in (etag, f'"x", {etag}', f"W/{etag}", "*"):
        answer = await client.get(path, headers={"If-None-Match": given})
        assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", etag)
    assert (await client.get(path, headers={"If-None-Match": '"x"'})).status_code == 200


async def test_head_reads_no_byte(
    redis: Redis, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a connection, where a length that is not kept would be noticed."""
    async with live(redis, artifact_url=str(place)) as (client, _):
        told = (await client.post("/v1/artifacts", content=LARGE, headers=PLAIN)).json()
        path = f"/v1/artifacts/{told['id']}"
        got = await client.get(path)
        part = await client.get(path, headers={"Range": "bytes=0-9"})

        def read(*_: object) -> None:
            raise AssertionError("it is read")

        monkeypatch.setattr(ArtifactStore, "read", read)
        for asked, expected in (({}, got), ({"Range": "bytes=0-9"}, part)):
            head = await client.head(path, headers=asked)
            assert (head.status_code, head.content) == (expected.status_code, b"")
            for name in (
                "content-length",
                "content-type",
                "etag",
                "accept-ranges",
                "content-disposition",
            ):
                assert head.headers[name] == expected.headers[name]
        assert (await client.get("/healthz")).status_code == 200


# Who


async def test_another_tenants_are_not_there(redis: Redis, place: Path) -> None:
    async with in_memory(redis, artifact_url=str(place), api_keys="ann:key-a,bob:key-b") as client:
        told = (await client.post("/v1/artifacts", content=SMALL, headers=PLAIN | ANN)).json()
        file = f"/v1/files/{told['id']}"
        for path in (file, f"{file}/content", f"/v1/artifacts/{told['id']}"):
            assert (await client.get(path)).status_code == 401
            check_refused(await client.get(path, headers=BOB), 404, "artifact_not_found")
            assert (await client.get(path, headers=ANN)).status_code == 200
        check_refused(await client.delete(file, headers=BOB), 404, "artifact_not_found")
        assert (await client.get("/v1/files", headers=BOB)).json()["data"] == []
        same = (await client.post("/v1/artifacts", content=SMALL, headers=PLAIN | BOB)).json()
        assert same["id"] != told["id"], "who sends the same bytes learns nothing of others"
        assert (await client.get(file, headers=ANN)).json() == told


async def test_a_key_is_asked_for_before_a_body_is_read(redis: Redis) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("it is read")
        yield b""

    async with in_memory(redis, api_keys="ann:key-a") as client:
        for path in ("/v1/files", "/v1/artifacts"):
            assert (await client.post(path, content=never())).status_code == 401


async def test_rates_count_uploads(redis: Redis) -> None:
    async with in_memory(redis, rate_limit="2/60") as client:
        for number, path in enumerate(("/v1/artifacts", "/v1/files", "/v1/artifacts", "/v1/files")):
            asked = form() if path == "/v1/files" else {"content": SMALL, "headers": PLAIN}
            answer = await client.post(path, **asked)
            if number < 2:
                assert answer.status_code == 200
            else:
                check_refused(answer, 429, "rate_limited")
                assert int(answer.headers["Retry-After"]) > 0
        assert (await client.get("/v1/files")).status_code == 200, "looking at files is not limited"


async def test_a_front_that_goes_takes_no_uploads(redis: Redis) -> None:
    async with live(redis) as (client, front):
        front.draining.set()
        check_refused(
            await client.post("/v1/artifacts", content=SMALL, headers=PLAIN), 503, "draining"
        )


# Limits


@pytest.mark.parametrize("path", ["/v1/files", "/v1/artifacts"])
async def test_a_body_over_the_cap(redis: Redis, place: Path, path: str) -> None:
    """Announced it is refused before a byte of it is read; in chunks as soon as so much has
    come."""
    head = HEAD if path == "/v1/files" else PLAIN
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        if path == "/v1/files":
            yield part("file", "", "a.txt").encode()[:-2]
        while sent < 1 << 30:
            sent += 65_536
            yield bytes(65_536)

    async with in_memory(redis, artifact_url=str(place), max_upload_bytes=MIB) as client:
        announced = await client.post(
            path, content=endless(), headers=head | {"Content-Length": str(MIB + 1)}
        )
        check_refused(announced, 413, "payload_too_large", f"at most {MIB} bytes")
        assert sent == 0
        chunked = await client.post(path, content=endless(), headers=head)
        check_refused(chunked, 413, "payload_too_large", f"at most {MIB} bytes")
        assert sent <= MIB + 65_536
        assert files_in(place) == []
        assert await redis.zcard(keys.LOOSE) == 0
        assert (
            await client.post(path, **(form() if head == HEAD else {"content": SMALL}))
        ).status_code == 200


async def test_who_is_refused_on_the_way_hears_of_it_over_a_connection(
    redis: Redis, place: Path
) -> None:
    async with live(redis, artifact_url=str(place), max_upload_bytes=MIB) as (client, _):
        for content in (in_pieces(LARGE * 4), bytes(2 * MIB)):
            answer = await client.post("/v1/artifacts", content=content, headers=PLAIN)
            check_refused(answer, 413, "payload_too_large", f"at most {MIB} bytes")
        assert (await client.post("/v1/artifacts", content=SMALL, headers=PLAIN)).status_code == 200
    assert files_in(place) == []


async def test_json_is_read_whole_and_so_has_the_cap_of_other_bodies(redis: Redis) -> None:
    async with in_memory(redis, max_body_bytes=1000) as client:
        body = {"data": base64.b64encode(bytes(1000)).decode()}
        answer = await client.post("/v1/artifacts", json=body)
        check_refused(answer, 413, "payload_too_large", "send the bytes as they are")
        assert (
            await client.post("/v1/artifacts", content=bytes(2000), headers=PLAIN)
        ).status_code == 200


async def test_without_a_place_large_ones_are_refused(redis: Redis) -> None:
    async with in_memory(redis) as client:
        head = {"Content-Type": "image/png"}
        answer = await client.post("/v1/artifacts", content=bytes(IN_REDIS_BYTES + 1), headers=head)
        check_refused(answer, 413, "payload_too_large", "--artifact-url")
        assert (
            await client.post("/v1/artifacts", content=bytes(IN_REDIS_BYTES), headers=head)
        ).status_code == 200


async def test_a_full_quota_says_what_helps(redis: Redis, place: Path) -> None:
    async with in_memory(redis, artifact_url=str(place), artifact_quota_bytes=MIB) as client:
        told = (await client.post("/v1/files", **form(LARGE[:MIB]))).json()
        for asked in (form(SMALL), form(LARGE)):
            refused = await client.post("/v1/files", **asked)
            check_refused(
                refused, 413, "storage_quota_exceeded", "Delete some, or wait until some expire"
            )
        assert (await client.post("/v1/files", **form(LARGE[:MIB]))).json()["id"] == told["id"]
        await client.delete(f"/v1/files/{told['id']}")
        assert (await client.post("/v1/files", **form(SMALL))).status_code == 200
        assert files_in(place) == []


async def test_codings_are_not_undone(client: httpx.AsyncClient) -> None:
    for path in ("/v1/files", "/v1/artifacts"):
        answer = await client.post(
            path, content=SMALL, headers=PLAIN | {"Content-Encoding": "gzip"}
        )
        check_refused(answer, 415, "unsupported_encoding", "Content-Encoding")


@pytest.mark.parametrize("path", ["/v1/files", "/v1/artifacts"])
async def test_memory_does_not_grow_with_an_upload(redis: Redis, place: Path, path: str) -> None:
    """64 MiB over a connection, there and back; client and front share this process."""
    whole = 64 * MIB
    piece = bytes(range(256)) * 256
    sha = hashlib.sha256()

    async def body() -> AsyncIterator[bytes]:
        if path == "/v1/files":
            yield (part("purpose", "batch") + part("file", "", "a.bin")).encode()[:-2]
        for _ in range(whole // len(piece)):
            sha.update(piece)
            yield piece
        if path == "/v1/files":
            yield f"\r\n{END}".encode()

    async with live(redis, artifact_url=str(place)) as (client, _):
        head = HEAD if path == "/v1/files" else {"Content-Type": "video/mp4"}
        assert (
            await client.post("/v1/artifacts", content=bytes(MIB), headers=PLAIN)
        ).status_code == 200
        tracemalloc.start()
        try:
            told = (await client.post(path, content=body(), headers=head)).json()
            assert (told["bytes"], told["digest"]) == (whole, sha.hexdigest())
            received = 0
            async with client.stream("GET", f"/v1/artifacts/{told['id']}") as answer:
                async for data in answer.aiter_raw():
                    received += len(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert received == whole
        assert peak < 16 * MIB


# Headers, filters and logs on what is streamed


async def test_one_key_is_one_upload(client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "an upload, No. 7"}
    first = await client.post("/v1/files", **form(LARGE), headers=key)
    again = await client.post("/v1/files", **form(LARGE), headers=key)
    assert first.status_code == again.status_code == 200
    assert first.json()["id"] == again.json()["id"]
    for asked in (form(SMALL), form(LARGE, name="other.txt"), form(LARGE + b"x")):
        check_refused(
            await client.post("/v1/files", **asked, headers=key), 409, "idempotency_conflict"
        )
    raw = await client.post("/v1/artifacts", content=SMALL, headers=PLAIN | key)
    check_refused(raw, 409, "idempotency_conflict", field="Idempotency-Key")
    wrong = await client.post(
        "/v1/artifacts", content=SMALL, headers=PLAIN | {"Idempotency-Key": "x" * 256}
    )
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
    redis: Redis, place: Path, tmp_path: Path, data: bytes, media_type: str, is_refused: bool
) -> None:
    (tmp_path / "terms").write_text(TERMS)
    terms = str(tmp_path / "terms")
    async with in_memory(
        redis, artifact_url=str(place), prohibited_terms=terms, log_bodies=True
    ) as client:
        raw = await client.post(
            "/v1/artifacts", content=in_pieces(data), headers={"Content-Type": media_type}
        )
        sent = await client.post("/v1/files", **form(data, media_type=media_type))
        for answer in (raw, sent):
            if is_refused:
                check_refused(answer, 400, "content_filter", "file: Prohibited content", "file")
            else:
                assert answer.status_code == 200
        named = await client.post("/v1/files", **form(b"fine", name="forbidden.txt"))
        check_refused(named, 400, "content_filter", field="filename")
        inline = {"data": base64.b64encode(data).decode(), "media_type": media_type}
        if len(data) < MIB // 2:
            assert (await client.post("/v1/artifacts", json=inline)).status_code == (
                400 if is_refused else 200
            )
    assert (files_in(place) == []) or not is_refused


async def test_the_log_has_sizes_and_no_bytes(
    redis: Redis, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with in_memory(redis, artifact_url=str(place), log_bodies=True) as client:
        head = {"Content-Type": "image/png"}
        told = (await client.post("/v1/artifacts", content=b"secret bytes", headers=head)).json()
        await client.get(f"/v1/artifacts/{told['id']}")
    created, sent = fields_of(caplog, "request")
    assert (created["route"], created["upload_bytes"], created["tenant"]) == (
        "/v1/artifacts",
        12,
        "public",
    )
    assert (sent["route"], sent["status"]) == ("/v1/artifacts/{id}", 200)
    assert "secret" not in caplog.text
    assert "Processing request: an upload of 12 bytes" in caplog.text


async def test_who_hangs_up_leaves_nothing(
    redis: Redis, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with live(redis, artifact_url=str(place)) as (client, _):
        begun = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield LARGE
            await until(lambda: bool(files_in(place)), "the front writes")
            begun.set()
            await asyncio.Event().wait()

        posting = asyncio.create_task(client.post("/v1/artifacts", content=body(), headers=PLAIN))
        await begun.wait()
        posting.cancel()
        await asyncio.gather(posting, return_exceptions=True)
        await until(lambda: files_in(place) == [], "the file is removed")
        await until(lambda: bool(fields_of(caplog, "request")), "the request has ended")
    [line] = fields_of(caplog, "request")
    assert (line["status"], line["error"]) == (499, "cancelled")
    assert await redis.zcard(keys.LOOSE) == 0
    assert "unhandled error" not in caplog.text


async def test_a_key_that_is_revoked_while_bytes_come_keeps_nothing(
    redis: Redis, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.access.caller.FRESH_S", -1.0)
    from shared.access import Grant, Keyring, digest_of

    keyring = Keyring(Broker(redis))
    key, _, _ = await keyring.create(Grant("ann", "ann"))

    async def body() -> AsyncIterator[bytes]:
        yield LARGE
        await keyring.revoke(digest_of(key))
        yield SMALL

    async with in_memory(redis, artifact_url=str(place)) as client:
        head = PLAIN | {"Authorization": f"Bearer {key}"}
        check_refused(
            await client.post("/v1/artifacts", content=body(), headers=head), 401, "invalid_api_key"
        )
    assert files_in(place) == []


async def test_storage_that_breaks_is_a_503(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise StorageUnavailable("full", retry_after_s=5)

    monkeypatch.setattr(ArtifactStore, "aside", broken)
    answer = await client.post("/v1/files", **form(LARGE))
    check_refused(answer, 503, "storage_unavailable")
    assert answer.headers["Retry-After"] == "5"
    assert (await client.post("/v1/files", **form(SMALL))).status_code == 200


async def test_a_redis_that_is_away_is_a_503(redis_server: Any) -> None:
    from shared.queue.broker import connect

    away = connect("redis://127.0.0.1:1")
    async with in_memory(away, require_key="no") as client:
        for asked in (client.get("/v1/files"), client.get("/v1/artifacts/file-" + "0" * 32)):
            check_refused(await asked, 503, "broker_unavailable")
        check_refused(await client.post("/v1/files", **form()), 503, "broker_unavailable")
    await away.aclose()


async def test_the_document_tells_of_forms_and_bytes(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    form_of_file = paths["/v1/files"]["post"]["requestBody"]["content"]["multipart/form-data"][
        "schema"
    ]
    assert set(form_of_file["properties"]) == set(form_of_file["required"]) == {"file", "purpose"}
    taken = set(paths["/v1/artifacts"]["post"]["requestBody"]["content"])
    assert taken == {"application/json", "application/octet-stream"}
    for path in ("/v1/files/{id}/content", "/v1/artifacts/{id}"):
        assert {"200", "206", "304"} <= set(paths[path]["get"]["responses"])
