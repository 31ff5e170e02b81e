"""Bytes in a field: base64, a data URL or an artifact's id, and nothing that would be fetched or
opened."""

import base64

import pytest

from api.submit.byte_inputs import InlineBytes, StoredBytes, byte_input_of
from shared.errors import FleetError, InvalidRequest, PayloadTooLarge
from shared.queue.keys import new_artifact_id

DATA = bytes(range(256))
PACKED = base64.b64encode(DATA).decode()
OCTETS = "application/octet-stream"


@pytest.mark.parametrize(
    ("text", "data", "media_type"),
    [
        (PACKED, DATA, OCTETS),
        (PACKED[:40] + "\n" + PACKED[40:] + "\n", DATA, OCTETS),
        (f"data:image/png;base64,{PACKED}", DATA, "image/png"),
        (f"DATA:Image/PNG;base64,{PACKED}", DATA, "image/png"),
        ("data:text/plain;charset=UTF-8;base64,aGk=", b"hi", "text/plain; charset=utf-8"),
        ("data:;base64,aGk=", b"hi", "text/plain"),
        ("data:,a%20b", b"a b", "text/plain"),
        ("/9j/4AAQ", b"\xff\xd8\xff\xe0\x00\x10", OCTETS),
    ],
)
def test_bytes(text: str, data: bytes, media_type: str) -> None:
    assert byte_input_of(text, name="image", max_bytes=256) == InlineBytes(data, media_type)


def test_an_id() -> None:
    artifact_id = new_artifact_id()
    assert byte_input_of(artifact_id, name="image", max_bytes=1) == StoredBytes(artifact_id)


@pytest.mark.parametrize(
    "text",
    [
        # URLs
        "https://example.com/cat.png",
        "HTTP://169.254.169.254/",
        "ftp://a/b",
        "s3://bucket/key",
        "gopher:x",
        # Paths
        "file:///etc/passwd",
        "/etc/passwd",
        "../secret",
        "./cat.png",
        "~/cat.png",
        r"C:\cat.png",
        "cat.png",
        # Neither an artifact's id nor base64
        "file-" + "0" * 31,
        "a",
        "not base64!",
        "aGk=aGk=",
        "=" * 4,
    ],
)
def test_what_would_be_fetched_or_opened_is_neither(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        byte_input_of(text, name="image", max_bytes=256)
    assert refused.value.field == "image"
    assert "URLs are not fetched and paths are not opened" in refused.value.message


@pytest.mark.parametrize(
    "text", ["data:image/png;base64", "data:no type;base64,aGk=", "data:image/png;base64,a!"]
)
def test_a_broken_data_url(text: str) -> None:
    with pytest.raises(FleetError) as refused:
        byte_input_of(text, name="image", max_bytes=256)
    assert refused.value.status == 400
    assert refused.value.field == "image"


@pytest.mark.parametrize("text", [PACKED, f"data:image/png;base64,{PACKED}", "data:," + "a" * 256])
def test_a_cap_is_exact(text: str) -> None:
    byte_input_of(text, name="image", max_bytes=256)
    with pytest.raises(PayloadTooLarge, match="at most 255 bytes; this has 256"):
        byte_input_of(text, name="image", max_bytes=255)
