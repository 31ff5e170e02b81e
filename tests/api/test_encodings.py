"""Compressed bodies: whatever Python packs is unpacked, and nothing beyond the limit."""

import gzip
import json
import time
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from api.http.encodings import decoded
from shared.errors import InvalidRequest, PayloadTooLarge, UnsupportedEncoding
from tests.fixtures.api.echo_worker import EchoWorker
from tests.fixtures.api.fronts import in_memory

JSON = {"Content-Type": "application/json"}


def bare(data: bytes) -> bytes:
    """Return raw deflate without zlib's header, as some clients send it."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": bare,
    "identity": bytes,
    "": bytes,
}


@given(st.lists(st.sampled_from(sorted(PACKERS)), max_size=4), st.binary(min_size=1, max_size=3000))
def test_what_was_packed_is_unpacked(codings: list[str], data: bytes) -> None:
    """Codings are undone from the last one of the header to the first."""
    packed = data
    for coding in codings:
        packed = PACKERS[coding](packed)

    assert decoded(packed, " , ".join(codings), max_bytes=10_000) == data


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5), st.integers(0, 20))
def test_gzip_in_several_members_with_padding(parts: list[bytes], padding: int) -> None:
    packed = b""
    for part in parts:
        packed += gzip.compress(part)
    packed += b"\0" * padding

    assert decoded(packed, "gzip", max_bytes=1000) == b"".join(parts)


@given(st.binary(min_size=1, max_size=500), st.sampled_from(["gzip", "deflate"]))
def test_the_limit_is_exact(data: bytes, coding: str) -> None:
    packed = PACKERS[coding](data)
    assert decoded(packed, coding, max_bytes=len(data)) == data
    with pytest.raises(PayloadTooLarge):
        decoded(packed, coding, max_bytes=len(data) - 1)


@given(st.binary(min_size=1, max_size=300), st.data())
def test_a_cut_or_changed_body_is_refused(data: bytes, draw: st.DataObject) -> None:
    """A body that is cut anywhere is refused, and so is one with a byte before or behind it."""
    coding = draw.draw(st.sampled_from(["gzip", "deflate"]))
    packed = PACKERS[coding](data)
    num_kept = draw.draw(st.integers(1, len(packed) - 1))
    cut = packed[:num_kept]

    # This byte begins neither a gzip nor a zlib nor a bare deflate stream.
    for broken in (cut, packed + b"x", b"\xff" + packed):
        with pytest.raises(InvalidRequest):
            decoded(broken, coding, max_bytes=10_000)


@pytest.mark.parametrize(
    "coding", ["br", "zstd", "compress", "gzip, br", "gzip;q=1", "gzip," * 5 + "gzip", "é"]
)
def test_another_coding_is_named(coding: str) -> None:
    with pytest.raises(UnsupportedEncoding):
        decoded(b"x", coding, max_bytes=100)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "gzip, gzip", "deflate, gzip"])
def test_a_bomb_costs_no_more_memory_than_a_body_may(coding: str) -> None:
    """100 MB that are packed into 100 kB or less meet a limit of 1 MB."""
    packed = b"\0" * 100_000_000
    for name in coding.split(", "):
        packed = PACKERS[name](packed)

    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            decoded(packed, coding, max_bytes=1_000_000)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 5_000_000


def test_thousands_of_empty_members_cost_no_time() -> None:
    packed = gzip.compress(b"") * 50_000
    started_s = time.thread_time()
    with pytest.raises(InvalidRequest):
        decoded(packed, "gzip", max_bytes=1 << 20)
    assert time.thread_time() - started_s < 0.5, "to unpack them all takes seconds"


BODIES: list[tuple[str, dict[str, Any], str]] = [
    ("/generate", {"prompts": ["a b"]}, "plain"),
    ("/v1/completions", {"prompt": "a b"}, "openai"),
    ("/v1/jobs", {"task": "generate", "prompts": ["a b"]}, "plain"),
    ("/", {"inputs": "a b"}, "tgi"),
    ("/api/inference", {"task": "text-generation", "inputs": "a b"}, "api"),
]


def shape_of(answer: httpx.Response) -> str:
    """Return the name of the error's shape, by the field that only this shape has."""
    body = answer.json()
    if "error_type" in body:
        return "tgi"

    [field] = body["error"].keys() - {"code", "message", "type"}
    return {"field": "plain", "param": "openai", "details": "api"}[field]


@pytest.mark.parametrize(("path", "body", "shape"), BODIES)
async def test_every_dialect_takes_them_and_refuses_in_its_own_shape(
    redis: Redis, worker: EchoWorker, path: str, body: dict[str, Any], shape: str
) -> None:
    plain = json.dumps(body).encode()
    packed = gzip.compress(plain)
    cases = [
        (packed, "gzip", (200, 202)),
        (plain, "gzip", (400,)),
        (packed[:-4], "gzip", (400,)),
        (packed, "br", (415,)),
        (gzip.compress(b" " * 2000), "gzip", (413,)),
        (gzip.compress(b"{"), "gzip", (400, 422)),
    ]

    async with in_memory(redis, max_body_bytes=1000, max_inline_bytes=1000) as client:
        for content, coding, expected in cases:
            headers = JSON | {"Content-Encoding": coding}
            answer = await client.post(path, content=content, headers=headers)
            assert answer.status_code in expected, (coding, answer.text)
            if answer.status_code >= 400:
                assert shape_of(answer) == shape

            # RFC 9110: the refusal of a coding tells which ones are taken.
            if answer.status_code == 415:
                assert answer.headers["Accept-Encoding"] == "gzip, deflate"
                assert "br" in answer.text
            else:
                assert "Accept-Encoding" not in answer.headers


async def test_packed_or_not_it_is_the_same_request(redis: Redis, worker: EchoWorker) -> None:
    """The idempotency key compares unpacked bodies. Two lines of the header are one list."""
    body = json.dumps({"prompts": ["a b"]}).encode()
    packed_twice = gzip.compress(zlib.compress(body))

    async with in_memory(redis) as client:
        first = await client.post(
            "/generate", content=body, headers=JSON | {"Idempotency-Key": "k"}
        )
        second = await client.post(
            "/generate",
            content=packed_twice,
            headers=[
                ("Content-Type", "application/json"),
                ("Content-Encoding", "deflate"),
                ("Content-Encoding", "gzip"),
                ("Idempotency-Key", "k"),
            ],
        )

    assert first.status_code == 200
    assert second.status_code == 200
    assert first.headers["X-Job-Id"] == second.headers["X-Job-Id"]
    assert len(worker.jobs) == 1
