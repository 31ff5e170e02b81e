"""Lines are the same however their bytes come, and a large file is validated in little memory."""

import tracemalloc
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.batches.lines import BatchLine, LineFault, RawLine, custom_id_of, raw_lines, read_line
from api.batches.validation import BatchRefused, Validation, validated
from tests.fixtures.api.batching import URL, line

MAX_BYTES = 20


async def pieces_of(data: bytes, cuts: list[int]) -> AsyncIterator[bytes]:
    start = 0
    for cut in [*sorted(cuts), len(data)]:
        yield data[start:cut]
        start = max(start, cut)


@given(
    data=st.lists(st.sampled_from([b"a", b"\n", b"\r\n", b"bc" * 9, b" "]), max_size=30),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
async def test_lines_do_not_depend_on_pieces(data: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(data)
    cuts = [cut for cut in cuts if cut <= len(whole)]

    found = [raw async for raw in raw_lines(pieces_of(whole, cuts), max_bytes=MAX_BYTES)]

    expected = whole.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    assert len(found) == len(expected)
    end = 0
    for number, (raw, text) in enumerate(zip(found, expected, strict=True), start=1):
        end = min(end + len(text) + 1, len(whole))
        assert (raw.number, raw.end) == (number, end)
        assert raw.data == (text if len(text) <= MAX_BYTES else None)

    # From behind any line the rest is found as it was.
    for raw in found:
        rest = [
            later
            async for later in raw_lines(
                pieces_of(whole[raw.end :], []),
                first=raw.number + 1,
                offset=raw.end,
                max_bytes=MAX_BYTES,
            )
        ]
        assert rest == found[raw.number :]


def test_a_line_is_read_byte_by_byte() -> None:
    data = b' {"custom_id":"a", "url":"/v1/completions", "body": {"prompt" : "x"}, "more": 1} \r'
    read = read_line(RawLine(3, 0, data), url=URL, max_bytes=100)
    assert read == BatchLine(3, "a", URL, b'{"prompt" : "x"}')


@pytest.mark.parametrize(
    ("data", "code", "custom_id"),
    [
        (None, "line_too_long", None),
        (b"{", "invalid_json_line", None),
        (b"7", "invalid_line", None),
        (b'{"custom_id": "a"}', "invalid_line", "a"),
        (b'{"custom_id": 7, "url": "/v1/completions", "body": {}}', "invalid_line", None),
        (b'{"custom_id": "", "url": "/v1/completions", "body": {}}', "invalid_line", None),
        (b'{"custom_id": "a", "url": "/other", "body": {}}', "mismatched_url", "a"),
        (
            b'{"custom_id": "a", "method": "GET", "url": "/v1/completions", "body": {}}',
            "invalid_method",
            "a",
        ),
    ],
)
def test_what_is_no_request(data: bytes | None, code: str, custom_id: str | None) -> None:
    read = read_line(RawLine(3, 0, data), url=URL, max_bytes=100)
    assert isinstance(read, LineFault)
    assert (read.number, read.code, read.custom_id) == (3, code, custom_id)


async def test_the_mark_of_an_editor_is_no_part_of_the_first_line() -> None:
    data = b"\xef\xbb\xbf" + line("a")
    [raw] = [raw async for raw in raw_lines(pieces_of(data, []), max_bytes=1000)]
    assert custom_id_of(raw) == "a"


async def check(data: bytes, max_lines: int = 10) -> Validation:
    lines = raw_lines(pieces_of(data, []), max_bytes=1000)
    return await validated(lines, url=URL, max_lines=max_lines, max_line_bytes=1000)


async def test_a_file_is_counted_and_names_that_come_twice_are_noted() -> None:
    rows = [line("a"), b"", line("b"), line("a"), b"{", line("b")]
    assert await check(b"\n".join(rows)) == Validation(total=5, duplicates=(4, 6))


@pytest.mark.parametrize(("data", "code"), [(b"", "empty_file"), (b"\n" * 11, "too_many_lines")])
async def test_a_file_that_is_refused(data: bytes, code: str) -> None:
    with pytest.raises(BatchRefused) as refused:
        await check(data)
    assert refused.value.error.code == code


async def test_a_large_file_is_validated_in_little_memory() -> None:
    """Some MB of 40 are in memory: a piece, and digests of the names."""
    num_lines = 20_000
    padding = "x" * 2000

    async def pieces() -> AsyncIterator[bytes]:
        rows: list[bytes] = []
        for number in range(num_lines):
            rows.append(line(f"line-{number}", prompt=padding) + b"\n")
            if len(rows) == 500:
                yield b"".join(rows)
                rows.clear()

    tracemalloc.start()
    lines = raw_lines(pieces(), max_bytes=1 << 20)
    found = await validated(lines, url=URL, max_lines=num_lines, max_line_bytes=1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.total == num_lines
    assert peak < 12 << 20
